"""A decoder-only transformer: one that reads as Llama, Qwen, Gemma and others.

What differs between families is said by a `Spec`. Layers are unrolled: a
compiled loop over them took 1.5 times as long where they are small.

Axes: B rows, L tokens of a row, D width, V vocabulary, H heads, K key heads, d
a head's width, F the MLP's, S slots of a cache.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from kd.errors import UserError
from kd.models import quantized
from kd.models.attention import Places, attend
from kd.models.outputs import Outputs
from kd.models.rope import rotate
from kd.models.spec import ACTIVATIONS, REMAT, LayerSpec, Numerics, Spec

STD = 0.02  # of initial weights (GPT-2: Radford et al. 2019)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values of the tokens so far, each in the slot of its position.

  A row holds one document, from slot 0. See `Decoder.hidden`.
  """

  keys: tuple[Float[Array, "B S K d"], ...]
  values: tuple[Float[Array, "B S K d"], ...]


class RMSNorm(nnx.Module):
  """x / sqrt(mean(x^2) + eps) times w or 1 + w, see `Spec.norm`."""

  def __init__(self, size: int, spec: Spec, numerics: Numerics):
    start = 0.0 if spec.norm == "one_plus" else 1.0
    self.scale = nnx.Param(jnp.full(size, start, numerics.param_dtype))
    self.kind, self.eps = spec.norm, spec.norm_eps

  def __call__(self, x: Float[Array, "*axes D"]) -> Float[Array, "*axes D"]:
    y, w = x.astype(jnp.float32), self.scale[...]
    y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    if self.kind == "round":
      return w.astype(x.dtype) * y.astype(x.dtype)
    w = w.astype(jnp.float32) + (self.kind == "one_plus")
    return (w * y).astype(x.dtype)


def linear(d_in: int, d_out: int, numerics, rngs, *, bias: bool, std=STD):
  return nnx.Linear(
    d_in,
    d_out,
    use_bias=bias,
    kernel_init=nnx.initializers.normal(std),
    dtype=numerics.dtype,
    param_dtype=numerics.param_dtype,
    rngs=rngs,
  )


class Attention(nnx.Module):
  """Attention of several query heads to each key head, within documents."""

  def __init__(self, spec: Spec, layer: LayerSpec, numerics, rngs):
    wide, narrow = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    make = lambda *widths, **keys: linear(*widths, numerics, rngs, **keys)
    self.q = make(spec.width, wide, bias=spec.qkv_bias)
    self.k = make(spec.width, narrow, bias=spec.qkv_bias)
    self.v = make(spec.width, narrow, bias=spec.qkv_bias)
    # Two in each layer add to the stream, which so keeps its size (GPT-2).
    std = STD / (2 * len(spec.layers)) ** 0.5
    self.o = make(wide, spec.width, bias=spec.o_bias, std=std)
    each = spec.qk_norm == "head"
    sizes = (spec.head_dim, spec.head_dim) if each else (wide, narrow)
    norms = [RMSNorm(size, spec, numerics) for size in sizes]
    self.q_norm, self.k_norm = norms if spec.qk_norm else (None, None)
    self.spec, self.layer, self.numerics = spec, layer, numerics

  def __call__(self, x_BxLxD, angles, places: Places, kv):
    """Returns ([B, L, D], (keys, values)): its output, and the cache of this
    layer with the new tokens in it, or their keys and values if there is none.
    """
    q_BxLxHxd = self.heads(self.q(x_BxLxD), self.q_norm, angles)
    k_BxSxKxd = self.heads(self.k(x_BxLxD), self.k_norm, angles)
    v_BxSxKxd = self.heads(self.v(x_BxLxD), None, None)
    keys = None
    if kv is not None:
      k_BxSxKxd = _write(kv[0], k_BxSxKxd, places)
      v_BxSxKxd = _write(kv[1], v_BxSxKxd, places)
      slots = jnp.broadcast_to(jnp.arange(v_BxSxKxd.shape[1]), kv[0].shape[:2])
      keys = Places(jnp.ones_like(slots), slots)
    y_BxLxHxd = attend(
      q_BxLxHxd,
      k_BxSxKxd,
      v_BxSxKxd,
      places,
      keys,
      scale=self.spec.attention_scale,
      window=self.layer.window,
      cap=self.spec.attention_cap,
      implementation=self.numerics.attention,
    )
    y_BxLxD = self.o(y_BxLxHxd.reshape(*x_BxLxD.shape[:2], -1))
    return y_BxLxD, (k_BxSxKxd, v_BxSxKxd)

  def heads(self, x_BxLxE, norm: RMSNorm | None, angles):
    """Splits E = heads x d, normalised and turned."""
    if norm is not None and self.spec.qk_norm == "width":
      x_BxLxE = norm(x_BxLxE)
    x_BxLxHxd = x_BxLxE.reshape(*x_BxLxE.shape[:2], -1, self.spec.head_dim)
    if norm is not None and self.spec.qk_norm == "head":
      x_BxLxHxd = norm(x_BxLxHxd)
    return x_BxLxHxd if angles is None else rotate(x_BxLxHxd, angles)


def _write(old_BxSxKxd, new_BxLxKxd, places: Places):
  """Puts what is no padding into the slots of its positions."""
  nowhere = old_BxSxKxd.shape[1]
  slots_BxL = jnp.where(places.segments > 0, places.positions, nowhere)
  rows = jnp.arange(len(old_BxSxKxd))[:, None]
  new_BxLxKxd = new_BxLxKxd.astype(old_BxSxKxd.dtype)
  return old_BxSxKxd.at[rows, slots_BxL].set(new_BxLxKxd, mode="drop")


class MLP(nnx.Module):
  """down(activation(gate(x)) * up(x))."""

  def __init__(self, spec: Spec, numerics: Numerics, rngs):
    make = lambda *widths, **keys: linear(
      *widths, numerics, rngs, bias=spec.mlp_bias, **keys
    )
    self.gate = make(spec.width, spec.mlp_width)
    self.up = make(spec.width, spec.mlp_width)
    std = STD / (2 * len(spec.layers)) ** 0.5
    self.down = make(spec.mlp_width, spec.width, std=std)
    self.activation = spec.activation

  def __call__(self, x_BxLxD):
    gate_BxLxF = ACTIVATIONS[self.activation](self.gate(x_BxLxD))
    return self.down(gate_BxLxF * self.up(x_BxLxD))


class Layer(nnx.Module):
  """x + f(x) twice: of attention, and of the MLP, with norms around them."""

  def __init__(self, spec: Spec, layer: LayerSpec, numerics, rngs):
    norm = lambda wanted: (
      RMSNorm(spec.width, spec, numerics) if wanted else None
    )
    self.attention_norm = norm(spec.pre_norm)
    self.attention = Attention(spec, layer, numerics, rngs)
    self.attention_post_norm = norm(spec.post_norm)
    self.mlp_norm = norm(spec.pre_norm)
    self.mlp = MLP(spec, numerics, rngs)
    self.mlp_post_norm = norm(spec.post_norm)
    self.residual_scale = spec.residual_scale

  def __call__(self, x_BxLxD, angles, places: Places, kv=None):
    """Returns ([B, L, D], (keys, values)), see `Attention`."""
    y_BxLxD, kv = self.attention(
      _maybe(self.attention_norm, x_BxLxD), angles, places, kv
    )
    y_BxLxD = _maybe(self.attention_post_norm, y_BxLxD)
    x_BxLxD += self.residual_scale * y_BxLxD
    y_BxLxD = self.mlp(_maybe(self.mlp_norm, x_BxLxD))
    y_BxLxD = _maybe(self.mlp_post_norm, y_BxLxD)
    return x_BxLxD + self.residual_scale * y_BxLxD, kv


def _maybe(norm: RMSNorm | None, x):
  return x if norm is None else norm(x)


class Decoder(nnx.Module):
  """Embeddings, layers, a norm and a head, as `spec` says.

  Tokens come with the document (`segments`) and the place in it (`positions`)
  that they have: nothing attends across documents, so that rows of several
  documents give what each gives alone. Segment 0 is padding. Without segments a
  row is one document; positions count from 0 in each document unless given,
  and then rise by one from token to token within it.

  Attributes:
    spec, numerics: what it is, and how it computes.
    vocab_size: V of its outputs, where columns beyond it pad the vocabulary;
      None: all are.
  """

  vocab_size: int | None = None

  def __init__(self, spec: Spec, numerics: Numerics, *, rngs: nnx.Rngs):
    self.spec, self.numerics = spec, numerics
    self.embed = nnx.Embed(
      spec.vocab_size,
      spec.width,
      embedding_init=nnx.initializers.normal(STD),
      dtype=numerics.dtype,
      param_dtype=numerics.param_dtype,
      rngs=rngs,
    )
    self.layers = nnx.List(
      Layer(spec, layer, numerics, rngs) for layer in spec.layers
    )
    self.norm = RMSNorm(spec.width, spec, numerics)
    self.head = (
      None
      if spec.tie
      else linear(spec.width, spec.vocab_size, numerics, rngs, bias=False)
    )

  @overload
  def hidden(
    self, ids_BxL, *, segments_BxL=..., positions_BxL=..., cache: None = None
  ) -> Float[Array, "B L D"]: ...

  @overload
  def hidden(
    self, ids_BxL, *, segments_BxL=..., positions_BxL=..., cache: Cache
  ) -> tuple[Float[Array, "B L D"], Cache]: ...

  def hidden(
    self,
    ids_BxL: Int[Array, "B L"],
    *,
    segments_BxL: Int[Array, "B L"] | None = None,
    positions_BxL: Int[Array, "B L"] | None = None,
    cache: Cache | None = None,
  ):
    """Returns what the head is applied to.

    Given a cache, which `empty_cache` makes, tokens also see what is in it, and
    the result is a pair with the cache that holds them too. Each row is then
    one document, segment 1 (0 is padding, which is not kept); a token is kept
    in the slot of its position, below S. A prompt is one call, from position 0;
    each further token is a call with L = 1 and its position.
    """
    if segments_BxL is None:
      segments_BxL = jnp.ones_like(ids_BxL)
    if positions_BxL is None:
      positions_BxL = restarting(segments_BxL)
    places = Places(segments_BxL, positions_BxL)
    spec = self.spec
    angles = {
      rope: rope and rope.angles(positions_BxL, spec.head_dim)
      for rope in dict.fromkeys(layer.rope for layer in spec.layers)
    }
    # Rounded after the look-up, whose gradient so adds up in param_dtype.
    x_BxLxD = quantized.looked_up(self.embed, ids_BxL)
    x_BxLxD = x_BxLxD.astype(self.numerics.dtype)
    x_BxLxD *= jnp.asarray(spec.embed_scale, x_BxLxD.dtype)
    policy, kept = REMAT[self.numerics.remat], []
    for i, (layer, own) in enumerate(
      zip(self.layers, spec.layers, strict=True)
    ):
      # A new function each time: a trace that is kept has the layer's weights.
      run = functools.partial(layer)
      run = jax.checkpoint(run, policy=policy) if policy else run
      kv = cache and (cache.keys[i], cache.values[i])
      x_BxLxD, kv = run(x_BxLxD, angles[own.rope], places, kv)
      kept.append(kv)
    x_BxLxD = self.norm(x_BxLxD)
    return (
      x_BxLxD if cache is None else (x_BxLxD, Cache(*zip(*kept, strict=True)))
    )

  def empty_cache(self, batch: int, slots: int) -> Cache:
    """Returns room for `slots` tokens of each row, in `numerics.dtype`."""
    shape = (batch, slots, self.spec.kv_heads, self.spec.head_dim)
    make = lambda: tuple(
      jnp.zeros(shape, self.numerics.dtype) for _ in self.spec.layers
    )
    return Cache(make(), make())

  @property
  def kernel(self) -> Float[Array, "D V"] | quantized.Kernel:
    """The head's kernel, in `numerics.dtype`."""
    nothing = jnp.zeros((1, self.spec.width), self.numerics.dtype)
    return self.outputs(nothing).kernel

  def to_logits(
    self, hidden: Float[Array, "*axes D"]
  ) -> Float[Array, "*axes V"]:
    """Applies the head to what `hidden` gave, in float32."""
    return self.outputs(hidden).logits

  def outputs(self, hidden: Float[Array, "*axes D"]) -> Outputs:
    """Returns what the head, with all of its columns, makes of `hidden`."""
    cap, scale = self.spec.logits_cap, self.spec.logits_scale
    head = self.embed if self.head is None else self.head
    hidden, kernel = quantized.operands(head, hidden)
    if not isinstance(kernel, quantized.Kernel):
      kernel = jnp.asarray(kernel, self.numerics.dtype)
    return Outputs(hidden, kernel, soft_cap=cap, scale=scale)

  def logits(
    self,
    ids_BxL: Int[Array, "B L"],
    *,
    segments_BxL: Int[Array, "B L"] | None = None,
    positions_BxL: Int[Array, "B L"] | None = None,
  ) -> Float[Array, "B L V"]:
    """Returns the scores of each next token."""
    hidden_BxLxD = self.hidden(
      ids_BxL, segments_BxL=segments_BxL, positions_BxL=positions_BxL
    )
    return self.to_logits(hidden_BxLxD)

  def __call__(
    self, x_BxCxL: Int[Array, "B C L"], rngs: nnx.Rngs | None = None
  ) -> Outputs:
    """Returns the outputs of B L positions, row by row.

    Args:
      x_BxCxL: token ids, and the document that each is of, see the class; a
        further line is not read.
      rngs: unused, it has no dropout.
    """
    del rngs
    x_CxBxL = x_BxCxL.astype(jnp.int32).swapaxes(0, 1)
    ids_BxL, segments_BxL, *_ = x_CxBxL
    hidden_BxLxD = self.hidden(ids_BxL, segments_BxL=segments_BxL)
    made = self.outputs(hidden_BxLxD.reshape(-1, self.spec.width))
    return dataclasses.replace(made, vocab_size=self.vocab_size)


def padded_from(columns: int, num_classes: int, where: str) -> int | None:
  """Returns `Decoder.vocab_size` of a task's vocabulary.

  Raises:
    UserError: it has ids without a column.
  """
  if num_classes > columns:
    raise UserError(
      f"{where}: {columns} columns for a vocabulary of {num_classes}: ids "
      f"{columns} to {num_classes - 1} of the tokenizer have none"
    )
  return num_classes if num_classes < columns else None


def restarting(segments_BxL: Int[Array, "B L"]) -> Int[Array, "B L"]:
  """Returns positions that count from 0 in each segment.

  >>> restarting(jnp.array([[1, 1, 1, 2, 2, 0]])).tolist()
  [[0, 1, 2, 0, 1, 0]]
  """
  index = jnp.arange(segments_BxL.shape[1])
  before = jnp.roll(segments_BxL, 1, axis=1)
  starts = jnp.where((segments_BxL != before) & (index > 0), index, 0)
  return index - jax.lax.cummax(starts, axis=1)


def dotted(path: Sequence[Any]) -> str:
  """Returns a weight's path as a text, such as "layers.0.mlp.up.kernel"."""
  return ".".join(map(str, path))


def arrays(model: nnx.Module) -> dict[str, Array]:
  """Returns the weights by their paths (`dotted`)."""
  state = nnx.to_flat_state(nnx.state(model, nnx.Param))
  return {dotted(parts): x.get_value() for parts, x in state}


def build(
  spec: Spec, numerics: Numerics, read: Callable[[str, tuple[int, ...]], Any]
) -> Decoder:
  """Returns a decoder of the weights read(path, shape), one after another."""
  model = nnx.eval_shape(lambda: Decoder(spec, numerics, rngs=nnx.Rngs(0)))
  graphdef, state = nnx.split(model)
  flat = {}
  for parts, x in nnx.to_flat_state(state):
    array = read(dotted(parts), x.shape)
    flat[parts] = x.replace(jnp.asarray(array, x.dtype))
  return nnx.merge(graphdef, nnx.from_flat_state(flat))
