"""Devices and hosts."""
