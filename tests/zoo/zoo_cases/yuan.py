"""Yuan 2.0, against NumPy."""

CASES = {
    "yuan": {
        "model_type": "yuan",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-3,
        "tie_word_embeddings": True,
    },
    "yuan_untied": {
        "model_type": "yuan",
        "vocab_size": 64,
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    },
}
