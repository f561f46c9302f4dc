"""Published weights: a Hugging Face folder, read and written.

A folder holds config.json and model.safetensors, or several files that
model.safetensors.index.json names. Nothing is unpickled, and no code that comes
with weights is run.
"""

import contextlib
import os
import pathlib
import re
from typing import Any

import numpy as np
import safetensors.numpy

from kd import files
from kd.errors import UserError, brief, why
from kd.models import config_json
from kd.models.attention import Implementation
from kd.models.decoder import Decoder, arrays, build
from kd.models.spec import Numerics, Spec

WEIGHTS = "model.safetensors"
INDEX = WEIGHTS + ".index.json"
DTYPES = ("F32", "BF16", "F16")
# What we compute ourselves, and the parts of a model that see images.
SKIPPED = re.compile(
  r".*rotary_emb\.inv_freq|(model\.)?(vision_tower|multi_modal_projector)\..*"
)


def load_pretrained(
  folder: str | os.PathLike,
  dtype: Any = None,
  *,
  param_dtype: Any = None,
  remat: str = "none",
  attention: Implementation = "auto",
) -> Decoder:
  """Returns a decoder with published weights, one tensor read at a time.

  Args:
    folder: as the module says; of a family in `families.FAMILIES`.
    dtype: of its computation; None is that of the file's embeddings.
    param_dtype: of its weights; None is `dtype`. bfloat16 computation on
      float32 weights is dtype="bfloat16", param_dtype="float32".
    remat, attention: see `Numerics`.

  Raises:
    UserError: something in the folder is missing, unknown, of another shape or
      cut short.
  """
  folder, spec = pathlib.Path(folder), spec_of(folder)
  with contextlib.ExitStack() as stack:
    tensors = _open(folder, stack)
    found = _matched(folder, tensors, spec)
    dtype = dtype or tensors[found["embed.embedding"]].dtype
    numerics = Numerics(dtype, param_dtype or dtype, remat, attention)

    def read(path: str, shape: tuple[int, ...]) -> np.ndarray:
      tensor, turned = tensors[found[path]], path.endswith("kernel")
      shape = shape[::-1] if turned else shape
      if tensor.shape != shape:
        raise UserError(
          f"{tensor.path}: {tensor.name} has shape {list(tensor.shape)}, "
          f"config.json says {list(shape)}"
        )
      return tensor.read().T if turned else tensor.read()

    return build(spec, numerics, read)


def spec_of(folder: str | os.PathLike) -> Spec:
  """Returns what a folder's config.json describes.

  Raises:
    UserError: it is missing or damaged, or says what we don't know.
  """
  path = os.path.join(folder, "config.json")
  return config_json.read(files.read_json(path, "config of a model"), path)


def save_pretrained(model: Decoder, folder: str | os.PathLike) -> None:
  """Writes config.json and model.safetensors, which transformers loads.

  Weights keep their dtype. A folder is whole where it has a config.json.

  Raises:
    UserError: the model's family cannot say what it is, or nothing can be
      written there.
  """
  config = config_json.write(model.spec)
  where, own = names(model.spec), {}
  for path, array in arrays(model).items():
    array = np.asarray(array)
    array = array.T if path.endswith("kernel") else array
    # A view would be written in the order of its memory.
    own[where[path]] = np.ascontiguousarray(array)
  dtype = str(own["model.embed_tokens.weight"].dtype)
  config |= {"dtype": dtype, "torch_dtype": dtype}
  path = pathlib.Path(folder) / WEIGHTS
  scratch = f"{path}.tmp"
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(own, scratch, metadata={"format": "pt"})
    os.replace(scratch, path)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f"{path}: cannot be written ({why(error)})") from error
  files.write_json(str(path.with_name("config.json")), config)


class Tensor:
  """A tensor that lies in a file, mapped into memory until it is read."""

  def __init__(self, handle, path: pathlib.Path, name: str):
    self.handle, self.path, self.name = handle, path, name
    lying = handle.get_slice(name)
    self.shape = tuple(lying.get_shape())
    kind = lying.get_dtype()
    if kind not in DTYPES:
      raise UserError(
        f"{path}: {name} is {kind}: expected one of {', '.join(DTYPES)}"
      )
    self.dtype = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[kind]

  def read(self) -> np.ndarray:
    return self.handle.get_tensor(self.name)


def _open(
  folder: pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, Tensor]:
  """Returns the tensors of all files; `stack` closes them."""
  index = folder / INDEX
  places = None
  if index.exists():
    places = files.read_json(str(index), "index of weights").get("weight_map")
    if not isinstance(places, dict):
      raise UserError(f"{index}: expected a weight_map of tensors to files")
  shards = sorted(set(places.values())) if places else [WEIGHTS]
  tensors = {}
  for shard in shards:
    path = folder / shard
    if not path.exists():
      raise UserError(
        f"{path}: no such file"
        + (f", which {INDEX} names" if places else f", nor {INDEX} beside it")
        + "; weights are read from safetensors alone"
      )
    try:
      handle = stack.enter_context(safetensors.safe_open(path, framework="np"))
      tensors |= {x: Tensor(handle, path, x) for x in handle.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
      raise UserError(
        f"{path}: no whole safetensors file ({why(error)})"
      ) from error
  for name, shard in (places or {}).items():
    if name not in tensors:
      raise UserError(f"{folder / shard}: has no {name}, which {INDEX} names")
  return {name: tensors[name] for name in sorted(tensors)}


def _matched(folder, tensors: dict[str, Tensor], spec: Spec) -> dict[str, str]:
  """Returns {our path: the tensor's name in these files}.

  Raises:
    UserError: a tensor is missing, or left over.
  """
  prefixes = "model.", ""  # of the body, and of the head
  if any(x.startswith("model.language_model.") for x in tensors):  # sees images
    prefixes = "model.language_model.", ""
  elif any(x.startswith("language_model.") for x in tensors):
    prefixes = "language_model.model.", "language_model."
  found = {
    ours: prefixes[0] + name.removeprefix("model.")
    if name.startswith("model.")
    else prefixes[1] + name
    for ours, name in names(spec).items()
  }
  missing = [name for name in found.values() if name not in tensors]
  if missing:
    raise UserError(f"{folder}: no tensors {brief(missing)}")
  over = [
    name
    for name in tensors
    if name not in found.values() and not SKIPPED.fullmatch(name)
  ]
  embed = tensors[found["embed.embedding"]]
  if spec.tie and len(over) == 1 and over[0].endswith("lm_head.weight"):
    # Some files hold the table twice.
    head = tensors[over.pop()]
    if not np.array_equal(head.read(), embed.read()):
      raise UserError(
        f"{head.path}: {head.name} differs from {embed.name}, and config.json "
        "says tie_word_embeddings = true"
      )
  if over:
    raise UserError(
      f"{folder}: tensors that model_type {spec.family!r} does not have: "
      + brief(over)
    )
  return found


def names(spec: Spec) -> dict[str, str]:
  """Returns {our path: Hugging Face's tensor}, for all that `spec` has."""
  found = {"embed.embedding": "model.embed_tokens", "norm.scale": "model.norm"}
  if not spec.tie:
    found["head.kernel"] = "lm_head"
  parts = {f"attention.{x}.kernel": f"self_attn.{x}_proj" for x in "qkvo"}
  parts |= {f"mlp.{x}.kernel": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
  biased = "qkv" * spec.qkv_bias + "o" * spec.o_bias
  parts |= {f"attention.{x}.bias": f"self_attn.{x}_proj" for x in biased}
  if spec.mlp_bias:
    parts |= {f"mlp.{x}.bias": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
  if spec.qk_norm:
    parts |= {f"attention.{x}_norm.scale": f"self_attn.{x}_norm" for x in "qk"}
  if spec.pre_norm:
    before = "pre_feedforward" if spec.post_norm else "post_attention"
    parts["attention_norm.scale"] = "input_layernorm"
    parts["mlp_norm.scale"] = f"{before}_layernorm"
  if spec.post_norm:
    parts["attention_post_norm.scale"] = "post_attention_layernorm"
    parts["mlp_post_norm.scale"] = "post_feedforward_layernorm"
  for i in range(len(spec.layers)):
    for ours, theirs in parts.items():
      found[f"layers.{i}.{ours}"] = f"model.layers.{i}.{theirs}"
  ends = {True: ".bias", False: ".weight"}
  return {k: v + ends[k.endswith("bias")] for k, v in found.items()}
