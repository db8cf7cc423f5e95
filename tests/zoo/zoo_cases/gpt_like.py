"""GPT-2 and those after it."""

_ROPE = {"rope_type": "default", "rope_theta": 500.0}
_GPT2 = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 40,
    "n_positions": 512,
    "layer_norm_epsilon": 1e-3,
}
_NEO = {
    "model_type": "gpt_neo",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_layers": 4,
    "num_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 512,
    "window_size": 32,
    "attention_types": [[["global", "local"], 2]],
    "layer_norm_epsilon": 1e-3,
}
_NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-3,
}
_OPT = {
    "model_type": "opt",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 40,
    "max_position_embeddings": 512,
}
_BLOOM = {  # of 12 or 16 heads, some slopes are no powers of two and show that they are not rounded
    "model_type": "bloom",
    "vocab_size": 64,
    "hidden_size": 36,
    "n_layer": 2,
    "n_head": 12,
    "layer_norm_epsilon": 1e-3,
}
_FALCON = {
    "model_type": "falcon",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_hidden_size": 40,
    "layer_norm_epsilon": 1e-3,
}
CASES = {
    "gpt2": _GPT2 | {"model_type": "gpt2", "tie_word_embeddings": True},
    "gpt_neo": _NEO,
    "gpt_neo_untied": _NEO
    | {
        "num_layers": 3,
        "attention_types": [[["global", "local", "local"], 1]],
        "activation_function": "gelu",
        "tie_word_embeddings": False,
    },
    "gptj": _GPT2 | {"model_type": "gptj", "rotary_dim": 4},
    "gpt_neox": _NEOX | {"rope_parameters": _ROPE | {"partial_rotary_factor": 0.25}},
    "gpt_neox_sequential": _NEOX
    | {
        "hidden_act": "gelu_new",
        "use_parallel_residual": False,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "rope_parameters": _ROPE
        | {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
    },
    "opt": _OPT,
    "opt_350m": _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 20},
    "opt_plain": _OPT
    | {
        "enable_bias": False,
        "layer_norm_elementwise_affine": False,
        "activation_function": "gelu",
        "tie_word_embeddings": False,
    },
    "opt_no_final_norm": _OPT | {"_remove_final_layer_norm": True},
    "bloom": _BLOOM,
    "bloom_post": _BLOOM
    | {
        "hidden_size": 32,
        "n_head": 16,
        "apply_residual_connection_post_layernorm": True,
        "tie_word_embeddings": False,
    },
    "falcon_7b": _FALCON | {"rope_parameters": _ROPE},
    "falcon_40b": _FALCON
    | {"new_decoder_architecture": True, "num_kv_heads": 2, "rope_parameters": _ROPE},
    "falcon_11b": _FALCON
    | {
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1,
        "tie_word_embeddings": False,
        "rope_parameters": _ROPE | {"rope_type": "linear", "factor": 2.0},
    },
    # Of 12 heads, some slopes are no powers of two: rounding shows at every position.
    "falcon_rw": _FALCON
    | {
        "hidden_size": 36,
        "num_attention_heads": 12,
        "alibi": True,
        "bias": True,
        "multi_query": False,
        "parallel_attn": False,
        "activation": "relu",
    },
}
