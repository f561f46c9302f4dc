"""A study's results as a page, figures and records. Imports no jax."""
