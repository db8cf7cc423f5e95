"""Baichuan 1 and 2 in NumPy, after modeling_baichuan.py of their four released repositories."""

import numpy as np

from t5x_llm.hf.references import numpy_layers as nl


def baichuan(config: nl.Config, read: nl.Read, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of tokens [T]."""
    n, eps = config["num_attention_heads"], config["rms_norm_eps"]
    rotary = "max_position_embeddings" in config
    theta = (config.get("rope_parameters") or {}).get("rope_theta", 10000.0)
    at = np.arange(len(tokens))
    bias = 0.0 if rotary else nl.alibi(n, len(tokens))
    x = read("model.embed_tokens.weight")[tokens]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        y = nl.rms_norm(x, read(layer + "input_layernorm.weight"), eps)
        packed = np.split(nl.linear(read, y, layer + "self_attn.W_pack"), 3, -1)
        q, k, v = (nl.heads(part, n) for part in packed)
        if rotary:
            q, k = (nl.rotate(a, at, theta, q.shape[-1]) for a in (q, k))
        x = x + nl.linear(read, nl.attention(q, k, v, bias), layer + "self_attn.o_proj")
        y = nl.rms_norm(x, read(layer + "post_attention_layernorm.weight"), eps)
        names = (f"{layer}mlp.{part}_proj" for part in ("gate", "up", "down"))
        x = x + nl.swiglu(read, y, *names)
    head = read("lm_head.weight")
    if config.get("normalized_head", config["vocab_size"] == 125696):
        head = head / np.linalg.norm(head, axis=1, keepdims=True)
    return nl.rms_norm(x, read("model.norm.weight"), eps) @ head.T
