"""Distil one teacher into one student, many objectives side by side."""
