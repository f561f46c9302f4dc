"""Networks, what they return, and their published weights."""

from kd.models.cnn import CNN
from kd.models.decoder import Decoder
from kd.models.mlp import MLP
from kd.models.pretrained import load_pretrained, save_pretrained
from kd.models.registry import MODELS, check, create, num_params

__all__ = [
  "CNN",
  "MLP",
  "MODELS",
  "Decoder",
  "check",
  "create",
  "load_pretrained",
  "num_params",
  "save_pretrained",
]
