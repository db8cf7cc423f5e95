"""RWKV-4, compared with transformers; TTT-Linear and bGPT, with NumPy."""

_RWKV = {
    "model_type": "rwkv",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "layer_norm_epsilon": 1e-3,
    "context_length": 512,
    "rescale_every": 0,
}
_TTT = {
    "model_type": "ttt",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "rope_theta": 500.0,
    "rms_norm_eps": 1e-3,
    "ttt_base_lr": 1.5,
}
CASES = {
    "rwkv": _RWKV | {"tie_word_embeddings": True},
    "rwkv_widths": _RWKV | {"attention_hidden_size": 24, "intermediate_size": 40},
    "ttt": _TTT | {"mini_batch_size": 16, "tie_word_embeddings": False},
    "ttt_mamba": _TTT
    | {
        "mini_batch_size": 12,
        "tie_word_embeddings": True,
        "use_gate": True,
        "share_qk": True,
        "pre_conv": True,
        "conv_kernel": 3,
    },
    "bgpt": {
        "model_type": "bgpt",
        "hidden_size": 32,
        "patch_num_layers": 2,
        "byte_num_layers": 1,
        "num_attention_heads": 4,
        "patch_size": 12,
        "patch_length": 64,
        "vocab_size": 64,
        "layer_norm_epsilon": 1e-3,
    },
}
