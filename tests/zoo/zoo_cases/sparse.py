"""Mixtures of experts."""

from zoo_cases.llama_like import _BASE

_DEEPSEEK = {k: v for k, v in _BASE.items() if k != "num_key_value_heads"} | {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-3,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "routed_scaling_factor": 1.7,
    "n_group": 4,
    "topk_group": 2,
}
_QWEN = _BASE | {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}
CASES = {
    "mixtral": _BASE | {"model_type": "mixtral", "num_local_experts": 4},
    "qwen2_moe": _QWEN | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 40},
    "qwen3_moe": _QWEN | {"model_type": "qwen3_moe", "head_dim": 12, "norm_topk_prob": True},
    "grok1": _BASE
    | {
        "model_type": "grok-1",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "embedding_multiplier_scale": 2.5,
        "output_multiplier_scale": 0.6,
        "attn_output_multiplier": 0.4,
        "max_attn_value": 3.0,
    },
    "dbrx": {
        "model_type": "dbrx",
        "vocab_size": 64,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.25, "rope_theta": 500.0},
        "ffn_config": {
            "hidden_size": 32,
            "ffn_hidden_size": 24,
            "moe_num_experts": 4,
            "moe_top_k": 2,
            "moe_normalize_expert_weights": 2.0,
            "moe_loss_weight": 0.02,
            "ffn_act_fn": {"name": "silu"},
        },
    },
    "deepseek_v2": _DEEPSEEK
    | {"model_type": "deepseek_v2", "q_lora_rank": None, "topk_method": "group_limited_greedy"},
    "deepseek_v3": _DEEPSEEK
    | {
        "model_type": "deepseek_v3",
        "q_lora_rank": 12,
        "qk_rope_head_dim": 16,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 500.0,
            "factor": 4.0,
            "beta_fast": 5.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
            "original_max_position_embeddings": 160,
        },
    },
}
