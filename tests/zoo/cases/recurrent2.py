"""RWKV-4."""

_RWKV = {
    "model_type": "rwkv",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "layer_norm_epsilon": 1e-3,
    "context_length": 512,
    "rescale_every": 0,
}
CASES = {
    "rwkv": _RWKV | {"tie_word_embeddings": True},
    "rwkv_widths": _RWKV | {"attention_hidden_size": 24, "intermediate_size": 40},
}
