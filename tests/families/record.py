"""Records what transformers computes for small models of each family.

Run by hand where a family or a version changes:

  python3.11 -m venv peer
  peer/bin/pip install torch==2.13.0 transformers==5.23.0
  peer/bin/python tests/families/record.py .venv/bin/python

It writes recorded.json: configs as transformers writes them, the shapes of
tensors, and logits, from which the suite tests without torch. Then, for each
model and in a temporary folder: transformers saves it in shards, the given
interpreter loads it with kd.models and saves it again (round_trip.py), and
transformers loads what that saved. Printed is the largest difference of our
logits from theirs, relative to the largest logit, and whether weights and
logits came back bit for bit. Given a folder after the interpreter, a model that
lies there is compared likewise and not recorded.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import zlib

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
RECORDED = HERE / "recorded.json"
LENGTH, VOCABULARY = 20, 23
BASE = {
  "vocab_size": VOCABULARY,
  "hidden_size": 24,
  "intermediate_size": 40,
  "num_hidden_layers": 4,
  "num_attention_heads": 6,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "pad_token_id": 2,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}
PLAIN = {"rope_type": "default", "rope_theta": 100.0}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": 6}
# name: (model_type, what differs from BASE). Windows are shorter than the text,
# and rotations and caps strong enough to matter.
MODELS = {
  "llama": ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
  "llama_biases": (
    "llama",
    {"attention_bias": True, "mlp_bias": True, "rope_parameters": LINEAR},
  ),
  "llama_yarn": ("llama", {"head_dim": 8, "rope_parameters": YARN}),
  "qwen2": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": PLAIN}),
  "qwen2_windows": (
    "qwen2",
    {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
  ),
  "qwen3": ("qwen3", {"head_dim": 10, "rope_parameters": PLAIN}),
  "gemma2": (
    "gemma2",
    {
      **GEMMA,
      "attn_logit_softcapping": 2.0,
      "final_logit_softcapping": 5.0,
    },
  ),
  "gemma3_text": (
    "gemma3_text",
    {
      **GEMMA,
      "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
      "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
        "full_attention": LINEAR,
      },
    },
  ),
  "mistral": (
    "mistral",
    {"head_dim": 10, "sliding_window": 6, "rope_parameters": PLAIN},
  ),
  "olmo2": ("olmo2", {"rope_parameters": PLAIN}),
  "smollm3": (
    "smollm3",
    {"no_rope_layer_interval": 2, "rope_parameters": PLAIN},
  ),
  "granite": (
    "granite",
    {
      "embedding_multiplier": 3.0,
      "attention_multiplier": 0.3,
      "residual_multiplier": 0.6,
      "logits_scaling": 2.0,
      "rope_parameters": PLAIN,
    },
  ),
}


def weights(name: str, shape) -> np.ndarray:
  """Returns a tensor that its name alone decides."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  scale = 0.3 if len(shape) == 1 else 1.5 * shape[-1] ** -0.5
  shift = 1.0 if name.endswith("norm.weight") else 0.0
  return (shift + scale * rng.normal(size=shape)).astype(np.float32)


def ids() -> np.ndarray:
  return np.random.default_rng(3).integers(0, VOCABULARY, (1, LENGTH))


def made(model_type: str, own: dict):
  """Returns transformers' model with the weights of `weights`."""
  import torch
  import transformers

  config = transformers.AutoConfig.for_model(model_type, **{**BASE, **own})
  model = transformers.AutoModelForCausalLM.from_config(
    config, attn_implementation="eager"
  )
  tied = model.config.tie_word_embeddings
  for name, x in model.named_parameters():
    assert not (tied and name == "lm_head.weight")
    x.data = torch.from_numpy(weights(name, tuple(x.shape)))
  return model.eval()


def logits(model, ids) -> np.ndarray:
  import torch

  with torch.no_grad():
    return model(torch.from_numpy(ids)).logits[0].numpy()


def load(folder):
  import torch
  import transformers

  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, attn_implementation="eager", dtype=torch.float32
  ).eval()


def same_weights(a, b) -> bool:
  a, b = a.state_dict(), b.state_dict()
  return a.keys() == b.keys() and all(bool((a[k] == b[k]).all()) for k in a)


def main(ours: str, *folders: str) -> None:
  import torch
  import transformers

  recorded = {"torch": torch.__version__}
  recorded["transformers"] = transformers.__version__
  recorded["models"] = {}
  with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    theirs = {}
    for name, (model_type, own) in MODELS.items():
      model = made(model_type, own)
      model.save_pretrained(scratch / name, max_shard_size="20KB")
      theirs[scratch / name] = model, ids()
      tensors = {k: list(x.shape) for k, x in model.named_parameters()}
      recorded["models"][name] = {
        "config": json.loads((scratch / name / "config.json").read_text()),
        "tensors": tensors,
        "logits": [
          [float(f"{x:.7g}") for x in r] for r in logits(model, ids())
        ],
      }
    for folder in map(pathlib.Path, folders):
      rng = np.random.default_rng(3)
      theirs[folder] = load(folder), rng.integers(0, 1000, (1, 64))
    for i, (folder, (_, tokens)) in enumerate(theirs.items()):
      out = scratch / f"out{i}"
      out.mkdir()
      np.save(out / "ids.npy", tokens)
      command = [ours, "-m", "tests.families.round_trip", folder, out]
      subprocess.run(command, check=True, cwd=HERE.parents[1])
      model = theirs[folder][0]
      expected, again = logits(model, tokens), load(out)
      gap = np.abs(np.load(out / "logits.npy") - expected).max()
      print(
        f"{folder.name:15} {gap / np.abs(expected).max():.1e}",
        f"weights {'same' if same_weights(model, again) else 'DIFFER'}, logits",
        "same" if np.array_equal(logits(again, tokens), expected) else "DIFFER",
      )
  RECORDED.write_text(json.dumps(recorded, separators=(",", ":")) + "\n")


if __name__ == "__main__":
  main(*sys.argv[1:])
