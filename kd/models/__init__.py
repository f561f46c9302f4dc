"""Networks, what they return, and their published weights."""

from kd.models.registry import CNN, MLP, MODELS, check, create, num_params

__all__ = ["CNN", "MLP", "MODELS", "check", "create", "num_params"]
