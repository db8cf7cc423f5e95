"""MPT, Phi, StarCoder and StableLM."""

from zoo_cases.llama_like import _NO_EPS

_MPT = {
    "model_type": "mpt",
    "vocab_size": 64,
    "d_model": 48,
    "n_heads": 12,  # of which some have a slope that is no power of two
    "n_layers": 2,
    "max_seq_len": 512,
    "layer_norm_epsilon": 1e-3,
}
_PHI = _NO_EPS | {
    "model_type": "phi",
    "layer_norm_eps": 1e-3,
    "rope_parameters": _NO_EPS["rope_parameters"] | {"partial_rotary_factor": 0.5},
}
_PHI3 = _NO_EPS | {"model_type": "phi3", "rms_norm_eps": 1e-3, "pad_token_id": None}
_STABLELM = _NO_EPS | {
    "model_type": "stablelm",
    "layer_norm_eps": 1e-3,
    "rope_parameters": _NO_EPS["rope_parameters"] | {"partial_rotary_factor": 0.5},
}
_BIGCODE = {
    "model_type": "gpt_bigcode",
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 40,
    "n_positions": 512,
    "layer_norm_epsilon": 1e-3,
}
_STARCODER2 = _NO_EPS | {"model_type": "starcoder2", "norm_epsilon": 1e-3}
CASES = {
    "mpt": _MPT
    | {
        "tie_word_embeddings": False,
        "embedding_fraction": 1.0,
        "attn_config": {"alibi": True, "clip_qkv": 1.5, "softmax_scale": 0.7},
    },
    "phi": _PHI | {"tie_word_embeddings": False},
    "phi_normed": _PHI | {"qk_layernorm": True, "tie_word_embeddings": True},
    "phi3": _PHI3 | {"sliding_window": 32},
    "phi3_partial": _PHI3
    | {
        "num_key_value_heads": 4,
        "rope_parameters": _NO_EPS["rope_parameters"] | {"partial_rotary_factor": 0.75},
    },
    "starcoder": _BIGCODE,
    "starcoder_mha": _BIGCODE | {"multi_query": False, "tie_word_embeddings": False},
    "starcoder2": _STARCODER2
    | {"sliding_window": 32, "use_bias": True, "tie_word_embeddings": True},
    "starcoder2_plain": _STARCODER2 | {"use_bias": False, "head_dim": 12},
    "stablelm": _STABLELM | {"use_qkv_bias": True},
    "stablelm_parallel": _STABLELM | {"use_parallel_residual": True, "qk_layernorm": True},
}
