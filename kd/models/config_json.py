"""A decoder's config.json, read and written."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from kd.config import rules
from kd.errors import UserError
from kd.models import families
from kd.models.families import ACTIVATIONS, SCALINGS
from kd.models.rope import Rope
from kd.models.spec import LayerSpec, Spec

FULL, SLIDING = "full_attention", "sliding_attention"


def read(config: Mapping[str, Any], path: str) -> Spec:
  """Returns what a config.json describes.

  Args:
    config: as JSON has it.
    path: of the file, for errors.

  Raises:
    UserError: an architecture that is none of `families`, a key that is neither
      read nor HARMLESS, or a value that is not built.
  """
  if not isinstance(config, Mapping):
    raise UserError(f"{path}: expected an object of keys and values")
  if config.get("model_type") == "gemma3":
    inner = {**config.get("text_config", {}), "model_type": "gemma3_text"}
    tie = config.get("tie_word_embeddings", True)
    return read({"tie_word_embeddings": tie, **inner}, f"{path}: text_config")
  family = config.get("model_type")
  if family not in families.FAMILIES:
    raise UserError(
      f"{path}: model_type = {family!r}: expected one of "
      f"{', '.join(families.FAMILIES)}, gemma3; a teacher of another "
      "architecture can leave a stored signal, or answers as text "
      "(teacher.answers)"
    )
  defaults = families.FAMILIES[family]
  for key, value in config.items():
    if key in families.ONLY:
      if value not in families.ONLY[key]:
        raise UserError(
          f"{path}: {key} = {value!r}: expected {families.ONLY[key][0]!r}"
        )
    elif key not in defaults and not families.HARMLESS.fullmatch(key):
      raise UserError(
        f"{path}: {key} = {value!r}: unknown key of model_type {family!r}"
      )
  full = {**defaults, **config}
  for key in families.SHAPES:
    value, optional = full[key], families.SHAPES[key] is None
    if not ((optional and value is None) or rules.integer(1).accepts(value)):
      found = repr(value) if key in config else "missing"
      raise UserError(f"{path}: {key} is {found}: expected a whole number >= 1")
  heads, kv_heads = full["num_attention_heads"], full["num_key_value_heads"]
  if heads % (kv_heads or heads):
    raise UserError(
      f"{path}: num_key_value_heads = {kv_heads}: expected a divisor of "
      f"num_attention_heads = {heads}"
    )
  return _spec(family, full, _kept(config), path)


def _kept(config: Mapping[str, Any]) -> str:
  kept = {
    key: value
    for key, value in config.items()
    if families.HARMLESS.fullmatch(key) and not families.NOT_KEPT.fullmatch(key)
  }
  return json.dumps(kept, sort_keys=True)


def _spec(family: str, c: Mapping[str, Any], kept: str, path: str) -> Spec:
  activation = c.get("hidden_activation", c["hidden_act"])
  if activation not in ACTIVATIONS:
    raise UserError(
      f"{path}: hidden_act = {activation!r}: expected one of "
      f"{', '.join(ACTIVATIONS)}"
    )
  width, heads = c["hidden_size"], c["num_attention_heads"]
  head_dim = c["head_dim"] or width // heads
  scale = c.get("query_pre_attn_scalar", head_dim) ** -0.5
  bias = c.get("attention_bias", False)
  gemma = family.startswith("gemma")
  fields: dict[str, Any] = {
    "family": family,
    "vocab_size": c["vocab_size"],
    "width": width,
    "mlp_width": c["intermediate_size"],
    "heads": heads,
    "kv_heads": c["num_key_value_heads"] or heads,
    "head_dim": head_dim,
    "layers": _layers(family, c, path),
    "norm_eps": c["rms_norm_eps"],
    "qkv_bias": bias,
    "o_bias": bias,
    "mlp_bias": c.get("mlp_bias", False),
    "activation": ACTIVATIONS[activation],
    "embed_scale": width**0.5 if gemma else c.get("embedding_multiplier", 1.0),
    "attention_scale": c.get("attention_multiplier", scale),
    "residual_scale": c.get("residual_multiplier", 1.0),
    "attention_cap": c.get("attn_logit_softcapping"),
    "logits_scale": 1 / c.get("logits_scaling", 1.0),
    "logits_cap": c.get("final_logit_softcapping"),
    "tie": c["tie_word_embeddings"],
    "kept": kept,
  }
  return Spec(**fields | families.TRAITS.get(family, {}))


def _layers(family: str, c: Mapping[str, Any], path: str):
  """Returns each layer's window and rope."""
  n = c["num_hidden_layers"]
  turned = c.get("no_rope_layers")
  if turned is None:
    every = c.get("no_rope_layer_interval", n + 1)
    turned = [(i + 1) % every != 0 for i in range(n)]
  slides: Callable[[int], bool] = {
    "gemma2": lambda i: i % 2 == 0,
    "gemma3_text": lambda i: (i + 1) % c["sliding_window_pattern"] != 0,
    "mistral": lambda i: True,
    "smollm3": lambda i: not turned[i],
  }.get(family, lambda i: i >= c.get("max_window_layers", n))
  window = c.get("sliding_window")
  if not c.get("use_sliding_window", True):
    window = None
  types = c.get("layer_types")
  if types is None:
    kinds = (FULL, SLIDING)
    types = [kinds[window is not None and slides(i)] for i in range(n)]
  if len(types) != n or len(turned) < n or set(types) - {FULL, SLIDING}:
    raise UserError(
      f"{path}: layer_types = {types}: expected {n} of {FULL!r} and {SLIDING!r}"
    )
  ropes = _ropes(family, c, path)
  return tuple(
    LayerSpec(
      window=window if kind == SLIDING else None,
      rope=ropes[kind] if on else None,
    )
    for kind, on in zip(types, turned, strict=False)
  )


def _ropes(family: str, c: Mapping[str, Any], path: str) -> dict[str, Rope]:
  """Returns the rope of each type of layer, from old keys or new ones."""
  theta = c["rope_theta"] or families.THETAS.get(family, 1e4)
  old = {FULL: (theta, c["rope_scaling"] or {})}
  old[SLIDING] = old[FULL]
  if family == "gemma3_text":
    old[SLIDING] = (c["rope_local_base_freq"] or 1e4, {})
  found = {k: _rope(*old[k], c, f"{path}: rope_scaling") for k in old}
  new = c["rope_parameters"]
  if new is None:
    return found
  nested = new if FULL in new else dict.fromkeys((FULL, SLIDING), new)
  where = f"{path}: rope_parameters"
  said = {
    kind: _rope(old[kind][0], nested.get(kind) or {}, c, where) for kind in old
  }
  if c["rope_scaling"] and said != found:
    raise UserError(
      f"{path}: rope_scaling = {c['rope_scaling']} and rope_parameters = {new} "
      "say different things: expected one of them"
    )
  return said


def _rope(theta, own: Mapping[str, Any], c: Mapping[str, Any], where) -> Rope:
  own = {k: v for k, v in own.items() if v is not None}
  kind = own.pop("rope_type", own.pop("type", "default"))
  own.pop("type", None)
  theta = own.pop("rope_theta", theta)
  if own.pop("partial_rotary_factor", 1) != 1:
    raise UserError(f"{where}.partial_rotary_factor: expected 1")
  if kind not in SCALINGS:
    raise UserError(
      f"{where}.rope_type = {kind!r}: expected one of {', '.join(SCALINGS)}"
    )
  length = "original_max_position_embeddings"
  if length in SCALINGS[kind] and "max_position_embeddings" in c:
    own.setdefault(length, c["max_position_embeddings"])
  for key in own:
    if key not in SCALINGS[kind]:
      raise UserError(f"{where}.{key} = {own[key]!r}: unknown key of {kind!r}")
  for key, needed in SCALINGS[kind].items():
    if needed and key not in own:
      raise UserError(f"{where}.{key} is missing: expected a number")
  if kind == "default":
    return Rope(float(theta))
  return Rope(float(theta), tuple(sorted({"rope_type": kind, **own}.items())))


def write(spec: Spec) -> dict[str, Any]:
  """Returns the config.json of a decoder, with old rope keys and new ones.

  Raises:
    UserError: its family has no keys to say what it is.
  """
  layers = spec.layers
  sliding = [layer.window is not None for layer in layers]
  window = next((x.window for x in layers if x.window is not None), None)
  names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
  ropes = {
    kind: next((x.rope for x in chosen if x.rope is not None), None)
    for kind, chosen in {
      FULL: [x for x in layers if x.window is None],
      SLIDING: [x for x in layers if x.window is not None],
    }.items()
  }
  if spec.family != "gemma3_text":
    ropes[FULL] = ropes[FULL] or ropes[SLIDING]
  full, local = (rope or Rope(1e4) for rope in ropes.values())
  flat = {k: _rope_keys(rope) for k, rope in ((FULL, full), (SLIDING, local))}
  scalar = spec.attention_scale**-2
  values = {
    "architectures": families.FAMILIES[spec.family]["architectures"],
    "vocab_size": spec.vocab_size,
    "hidden_size": spec.width,
    "intermediate_size": spec.mlp_width,
    "num_hidden_layers": len(layers),
    "num_attention_heads": spec.heads,
    "num_key_value_heads": spec.kv_heads,
    "head_dim": spec.head_dim,
    "hidden_act": names[spec.activation],
    "hidden_activation": names[spec.activation],
    "rms_norm_eps": spec.norm_eps,
    "tie_word_embeddings": spec.tie,
    "attention_bias": spec.o_bias,
    "mlp_bias": spec.mlp_bias,
    "use_sliding_window": any(sliding),
    "sliding_window": window,
    "max_window_layers": sliding.index(True) if any(sliding) else len(layers),
    "layer_types": [SLIDING if x else FULL for x in sliding],
    "query_pre_attn_scalar": (
      round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar
    ),
    "final_logit_softcapping": spec.logits_cap,
    "attn_logit_softcapping": spec.attention_cap,
    "no_rope_layers": [int(x.rope is not None) for x in layers],
    "embedding_multiplier": spec.embed_scale,
    "attention_multiplier": spec.attention_scale,
    "residual_multiplier": spec.residual_scale,
    "logits_scaling": 1 / spec.logits_scale,
    "rope_theta": full.theta,
    "rope_scaling": dict(full.scaling) or None,
    "rope_parameters": flat[FULL],
  }
  if spec.family == "gemma3_text":
    values["rope_local_base_freq"] = local.theta
    values["rope_parameters"] = flat
  config = {k: values[k] for k in families.FAMILIES[spec.family] if k in values}
  config |= json.loads(spec.kept)
  config["model_type"] = spec.family
  again = read(config, "config.json")
  if again != spec:
    differ = [k for k in vars(spec) if getattr(again, k) != getattr(spec, k)]
    raise UserError(
      f"model_type {spec.family!r} has no keys for this decoder's "
      f"{', '.join(differ)}"
    )
  return config


def _rope_keys(rope: Rope) -> dict[str, Any]:
  return {
    "rope_type": "default",
    **dict(rope.scaling),
    "rope_theta": rope.theta,
  }
