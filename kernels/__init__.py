"""Fused distillation losses for any elementwise divergence."""

from kernels.api import distill_loss, token_log_probs
from kernels.types import Head, Logits, Rows, TopK

__all__ = ["Head", "Logits", "Rows", "TopK", "distill_loss", "token_log_probs"]
