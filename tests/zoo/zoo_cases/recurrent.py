"""State-space models and hybrids of them with attention."""

_MAMBA = {
    "model_type": "mamba",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 6,
    "conv_kernel": 3,
    "expand": 2,
    "time_step_rank": 5,
    "layer_norm_epsilon": 1e-3,
}
_MAMBA2 = {k: v for k, v in _MAMBA.items() if k != "time_step_rank"} | {
    "model_type": "mamba2",
    "num_heads": 4,
    "head_dim": 16,
    "n_groups": 2,
    "chunk_size": 32,
}
CASES = {
    "mamba": _MAMBA,
    "mamba_biased": {k: v for k, v in _MAMBA.items() if k != "time_step_rank"}
    | {
        "use_bias": True,
        "use_conv_bias": False,
        "expand": 3,
        "tie_word_embeddings": False,
    },
    "mamba2": _MAMBA2,
    "mamba2_limited": _MAMBA2
    | {
        "n_groups": 1,
        "use_bias": True,
        "use_conv_bias": False,
        "time_step_limit": [0.02, 0.3],
        "tie_word_embeddings": True,
    },
    "falcon_mamba": {k: v for k, v in _MAMBA.items() if k != "expand"}
    | {"model_type": "falcon_mamba", "intermediate_size": 96, "mixer_rms_eps": 1e-2},
    "jamba": {
        "model_type": "jamba",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 6,
        "mamba_d_conv": 3,
        "mamba_dt_rank": 5,
        "rms_norm_eps": 1e-3,
        "max_position_embeddings": 512,
    },
}
