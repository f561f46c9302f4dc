"""A model made smaller, and as a folder of its own."""
