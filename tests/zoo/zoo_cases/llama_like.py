"""Families that differ from LLaMA in a few places."""

from zoo_cases.llama import _LLAMA

_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
_BASE = _LLAMA | _ROPE
_NO_EPS = {k: v for k, v in _BASE.items() if k != "rms_norm_eps"}
CASES = {
    "mistral": _BASE | {"model_type": "mistral", "head_dim": 12, "sliding_window": 32},
    "qwen2": _BASE
    | {
        "model_type": "qwen2",
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 32,
        "max_window_layers": 1,
    },
    "qwen2_tied": _BASE | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": _BASE | {"model_type": "qwen3", "head_dim": 12},
    "gemma": _BASE | {"model_type": "gemma", "head_dim": 12, "tie_word_embeddings": True},
    "gemma2": _BASE
    | {
        "model_type": "gemma2",
        "num_hidden_layers": 4,
        "head_dim": 12,
        "tie_word_embeddings": True,
        "sliding_window": 32,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 4.0,
    },
    "olmo": _NO_EPS | {"model_type": "olmo", "clip_qkv": 1.5},
    "olmo2": _BASE | {"model_type": "olmo2"},
}
