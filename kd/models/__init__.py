"""Networks, what they return, and their published weights."""

from kd.models.cnn import CNN
from kd.models.decoder import Decoder
from kd.models.mlp import MLP
from kd.models.prefill import read_prefix
from kd.models.pretrained import load_pretrained, save_pretrained, spec_of
from kd.models.registry import MODELS, check, create, num_params
from kd.models.sampler import completion_lengths, generate
from kd.models.scoring import token_scores

__all__ = [
  "CNN",
  "MLP",
  "MODELS",
  "Decoder",
  "check",
  "completion_lengths",
  "create",
  "generate",
  "load_pretrained",
  "num_params",
  "read_prefix",
  "save_pretrained",
  "spec_of",
  "token_scores",
]
