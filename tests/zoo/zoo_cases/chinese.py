"""Chinese families and PaLM; all but GLM-4 are compared with NumPy."""

from zoo_cases.llama_like import _BASE

_GLM = {
    "vocab_size": 64,
    "hidden_size": 32,
    "inner_hidden_size": 48,
    "num_layers": 2,
    "num_attention_heads": 4,
    "layernorm_epsilon": 1e-3,
    "max_sequence_length": 512,
}
_CHATGLM2 = {
    "model_type": "chatglm",
    "padded_vocab_size": 64,
    "hidden_size": 32,
    "ffn_hidden_size": 40,
    "num_layers": 2,
    "num_attention_heads": 4,
    "kv_channels": 12,
    "multi_query_attention": True,
    "layernorm_epsilon": 1e-3,
    "seq_length": 512,
}
_MHA = {k: v for k, v in _BASE.items() if k != "num_key_value_heads"}
_ALIBI = {k: v for k, v in _MHA.items() if not k.startswith(("max_pos", "rope"))}
CASES = {
    "internlm": _MHA | {"model_type": "internlm", "bias": True},
    # A base that grows with the sequence, from token 129 on.
    "internlm_dynamic": _MHA
    | {"model_type": "internlm", "bias": True, "max_position_embeddings": 128}
    | {"rotary": {"base": 500.0, "type": "dynamic"}, "rope_parameters": None},
    "internlm2_dynamic": _BASE
    | {"model_type": "internlm2", "bias": False, "max_position_embeddings": 128}
    | {"rope_parameters": None, "rope_theta": 500.0}
    | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "internlm2": _BASE | {"model_type": "internlm2", "bias": False},
    "internlm2_biased": _BASE | {"model_type": "internlm2", "bias": True},
    "baichuan_7b": _MHA | {"model_type": "baichuan"},
    "baichuan2_13b": _ALIBI
    | {
        "model_type": "baichuan",
        "num_attention_heads": 12,
        "hidden_size": 48,
        "model_max_length": 512,
        "normalized_head": True,
    },
    "glm": _BASE
    | {"model_type": "glm", "head_dim": 8, "attention_bias": True, "pad_token_id": None},
    "chatglm2": _CHATGLM2 | {"multi_query_group_num": 2, "add_qkv_bias": True},
    "chatglm3_mqa": _CHATGLM2 | {"multi_query_group_num": 1, "rope_ratio": 0.05},
    "chatglm_6b": _GLM | {"model_type": "chatglm", "position_encoding_2d": True},
    "glm130b": _GLM | {"model_type": "glm130b", "embedding_gradient": 1.0},
    "palm": _BASE
    | {
        "model_type": "palm",
        "num_key_value_heads": 1,
        "head_dim": 12,
        "tie_word_embeddings": True,
    },
}
