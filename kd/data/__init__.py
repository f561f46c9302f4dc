"""A task: its examples, splits, order, and what a model sees of them."""
