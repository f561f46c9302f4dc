"""Which weights of a decoder train: all, some, or adapters beside them.

LoRA (Hu et al. 2021, arXiv:2106.09685) trains, for a frozen kernel W [D, F],

    y = x W + (alpha / rank) (x A) B,   A [D, rank], B [rank, F]

with B = 0 at the start. It is our own: qwix 0.1.8 finds a weight by its array,
and so neither one that is cast to bfloat16 nor one inside a rematerialised
layer.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kd.config import rules
from kd.errors import UserError
from kd.models.decoder import Decoder

PARTS = ("q", "k", "v", "o", "gate", "up", "down")
LORA = {
  "rank": rules.integer(1, 2**16),
  "alpha": rules.number(above=0),
  "parts": rules.tuple_of(rules.choice(*PARTS), least=1),
}
SECTION = rules.Check(
  "None or a section", lambda v: v is None or isinstance(v, Mapping)
)
# Options of a student that begins with given weights.
OPTIONS = {
  "lora": SECTION,
  "freeze": rules.tuple_of(rules.TEXT),
}


def check(path: str, options: Mapping[str, Any]) -> None:
  """Checks the options `lora` and `freeze` of the section `path`.

  Raises:
    UserError: naming the key.
  """
  lora = options.get("lora")
  if lora is None:
    return
  rules.check_keys(f"{path}.lora", {"parts": PARTS, **lora}, LORA)
  if options.get("freeze"):
    raise UserError(
      f"{path}.freeze = {options['freeze']}: expected (), since with "
      f"{path}.lora all weights are frozen but the adapters"
    )


class Adapted(nnx.Module):
  """A linear layer with an adapter, see the module.

  Its weights keep their names; `lora_a` and `lora_b` are float32.
  """

  def __init__(
    self, linear: nnx.Linear, rank: int, alpha: float, rngs: nnx.Rngs
  ):
    self.kernel, self.bias, self.dtype = (
      linear.kernel,
      linear.bias,
      linear.dtype,
    )
    d_in, d_out = linear.kernel.shape
    draw = nnx.initializers.he_uniform()
    self.lora_a = nnx.Param(draw(rngs.params(), (d_in, rank), jnp.float32))
    self.lora_b = nnx.Param(jnp.zeros((rank, d_out), jnp.float32))
    self.scale = alpha / rank

  def __call__(self, x: Float[Array, "*axes D"]) -> Float[Array, "*axes F"]:
    cast = lambda w: jnp.asarray(w[...], self.dtype)
    x = jnp.asarray(x, self.dtype)
    y = x @ cast(self.kernel)
    y = y if self.bias is None else y + cast(self.bias)
    low = x @ cast(self.lora_a)
    return y + (self.scale * low) @ cast(self.lora_b)


def is_adapter(path: str) -> bool:
  """Whether weights belong to an adapter."""
  return path.endswith((".lora_a", ".lora_b"))


def adapt(model: Decoder, lora: Mapping[str, Any], rngs: nnx.Rngs) -> None:
  """Gives a decoder's layers adapters.

  Args:
    model: changed in place.
    lora: `rank`, `alpha`, and which `parts` of a layer, of PARTS; usually all.
    rngs: of A.
  """
  chosen = lora.get("parts", PARTS)
  for layer in model.layers:
    for part in chosen:
      owner = layer.attention if part in "qkvo" else layer.mlp
      linear = getattr(owner, part)
      adapted = Adapted(linear, lora["rank"], float(lora["alpha"]), rngs)
      setattr(owner, part, adapted)


def merged(
  weights: Mapping[str, Any], lora: Mapping[str, Any]
) -> dict[str, Array]:
  """Returns {path: weights} without adapters, W + (alpha / rank) A B."""
  scale = lora["alpha"] / lora["rank"]
  found = {path: x for path, x in weights.items() if not is_adapter(path)}
  for path in weights:
    if path.endswith("lora_a"):
      stem = path.removesuffix("lora_a")
      kernel = found[f"{stem}kernel"]
      change = scale * (weights[path] @ weights[f"{stem}lora_b"])
      found[f"{stem}kernel"] = (kernel + change).astype(kernel.dtype)
  return found


def is_frozen(path: str, freeze: Sequence[str], adapted: bool = False) -> bool:
  """Whether a weight stays as it was.

  Args:
    path: as "layers.0.mlp.up.kernel".
    freeze: patterns of paths or of their beginnings, * for anything.
    adapted: whether there are adapters, which then train alone.

  >>> is_frozen("layers.3.mlp.up.kernel", ("embed", "layers.*.mlp"))
  True
  """
  if adapted:
    return not is_adapter(path)
  return any(
    fnmatch.fnmatchcase(path, p) or fnmatch.fnmatchcase(path, f"{p}.*")
    for p in freeze
  )


def refuse_useless(
  path: str, options: Mapping[str, Any], paths: Sequence[str]
) -> None:
  """Raises UserError where a pattern of `freeze` fits no weight, or all do.

  Args:
    path: of the section.
    options: that it holds.
    paths: of all weights.
  """
  freeze = options.get("freeze", ())
  for pattern in freeze:
    if not any(is_frozen(x, (pattern,)) for x in paths):
      raise UserError(
        f"{path}.freeze: {pattern!r} fits no weight; expected patterns of "
        "embed, layers.N, layers.*.attention, layers.*.mlp, norm, head"
      )
  if freeze and all(is_frozen(x, freeze) for x in paths):
    raise UserError(
      f"{path}.freeze = {tuple(freeze)}: nothing is left to train"
    )
