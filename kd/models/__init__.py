"""Networks, what they return, and their published weights."""

from kd.models.registry import MODELS, check, create, num_params

__all__ = ["MODELS", "check", "create", "num_params"]
