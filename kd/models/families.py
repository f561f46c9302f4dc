"""What Hugging Face's config.json says of each family of decoders.

Every key of a config.json is one that is read here, one that changes nothing
here (HARMLESS), or an error. Keys that are missing have the family's defaults,
those of transformers' classes, which are part of the format. Read from
transformers 5.23.0.
"""

import re
from typing import Any

HARMLESS = re.compile(
  r"""_?name_or_path|architectures|model_type|is_llama_config|dtype|torch_dtype
  |torchscript|use_bfloat16|.*_token_(id|index)|.*_version|.*\.js_config
  |max_position_embeddings|initializer_range|pretraining_tp|use_cache
  |sliding_window_size|cache_implementation|_attn_implementation\w*
  |return_dict|output_\w+|is_encoder_decoder|tokenizer_class|id2label|label2id
  |unsloth_\w+""",
  re.VERBOSE,
)
NOT_KEPT = re.compile(r"architectures|.*_version|.*dtype|model_type|_.*")
ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
}
SCALINGS: dict[str, dict[str, bool]] = {  # type: {key: whether it is needed}
  "default": {},
  "linear": {"factor": True},
  "llama3": {
    "factor": True,
    "low_freq_factor": True,
    "high_freq_factor": True,
    "original_max_position_embeddings": True,
  },
  "yarn": {
    "factor": True,
    "original_max_position_embeddings": True,
    "attention_factor": False,
    "beta_fast": False,
    "beta_slow": False,
    "mscale": False,
    "mscale_all_dim": False,
    "truncate": False,
  },
}
# Keys that a value changes in ways that are not built: what they must say.
ONLY = {
  "rope_interleaved": (False,),
  "use_bidirectional_attention": (False, None),
  "attention_dropout": (0,),
  "partial_rotary_factor": (1, None),
}
NEEDED = object()  # what every config.json has
SHAPES = {
  "vocab_size": NEEDED,
  "hidden_size": NEEDED,
  "intermediate_size": NEEDED,
  "num_hidden_layers": NEEDED,
  "num_attention_heads": NEEDED,
  "num_key_value_heads": None,
  "head_dim": None,
}
PLAIN = {
  **SHAPES,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": False,
  "rope_theta": None,
  "rope_scaling": None,
  "rope_parameters": None,
}
BIASES = {"attention_bias": False, "mlp_bias": False}
WINDOWS = {
  "use_sliding_window": False,
  "sliding_window": 4096,
  "max_window_layers": 28,
  "layer_types": None,
}
GEMMA = {
  **PLAIN,
  "num_key_value_heads": 4,
  "head_dim": 256,
  "hidden_act": None,  # old files have both; this one is not read
  "hidden_activation": "gelu_pytorch_tanh",
  "tie_word_embeddings": True,
  "attention_bias": False,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
  "layer_types": None,
  "final_logit_softcapping": None,
  "attn_logit_softcapping": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
  "llama": {"architectures": ["LlamaForCausalLM"], **PLAIN, **BIASES},
  "qwen2": {
    "architectures": ["Qwen2ForCausalLM"],
    **PLAIN,
    **WINDOWS,
    "num_key_value_heads": 32,
  },
  "qwen3": {
    "architectures": ["Qwen3ForCausalLM"],
    **PLAIN,
    **WINDOWS,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "attention_bias": False,
  },
  "gemma2": {
    "architectures": ["Gemma2ForCausalLM"],
    **GEMMA,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
  },
  "gemma3_text": {
    "architectures": ["Gemma3ForCausalLM"],
    **GEMMA,
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "rope_local_base_freq": None,
    "sliding_window_pattern": 6,
    "_sliding_window_pattern": None,
  },
  "mistral": {
    "architectures": ["MistralForCausalLM"],
    **PLAIN,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
  },
  "olmo2": {
    "architectures": ["Olmo2ForCausalLM"],
    **PLAIN,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
  },
  "smollm3": {
    "architectures": ["SmolLM3ForCausalLM"],
    **PLAIN,
    **BIASES,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "use_sliding_window": False,
    "sliding_window": None,
    "layer_types": None,
  },
  "granite": {
    "architectures": ["GraniteForCausalLM"],
    **PLAIN,
    **BIASES,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
  },
}
# What a family is and no key says.
TRAITS: dict[str, dict[str, Any]] = {
  "qwen2": {"qkv_bias": True},
  "qwen3": {"qk_norm": "head"},
  "gemma2": {"norm": "one_plus", "post_norm": True},
  # transformers has a key for a cap on its scores, and does not read it.
  "gemma3_text": {
    "norm": "one_plus",
    "post_norm": True,
    "qk_norm": "head",
    "attention_cap": None,
  },
  "olmo2": {
    "norm": "float32",
    "pre_norm": False,
    "post_norm": True,
    "qk_norm": "width",
  },
}
THETAS = {"smollm3": 2e6, "gemma3_text": 1e6}
