"""Networks, what they return, and their published weights."""

from kd.models.cnn import CNN
from kd.models.mlp import MLP
from kd.models.registry import MODELS, check, create, num_params

__all__ = ["CNN", "MLP", "MODELS", "check", "create", "num_params"]
