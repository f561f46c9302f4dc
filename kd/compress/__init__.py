"""A trained model made smaller: rounded, pruned, kept in few bytes; and as a
folder of its own."""

from kd.compress.folder import load, save, size_bytes
from kd.compress.pruning import prune
from kd.compress.rounding import quantize

__all__ = ["load", "prune", "quantize", "save", "size_bytes"]
