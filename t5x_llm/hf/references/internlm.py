"""InternLM 1 in NumPy, after modeling_internlm.py of its released repository."""

import numpy as np

from t5x_llm.hf.references import numpy_layers as nl


def internlm(config: nl.Config, read: nl.Read, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of tokens [T]."""
    project = nl.biased if config.get("bias", True) else nl.linear
    n, eps = config["num_attention_heads"], config["rms_norm_eps"]
    base = (config.get("rotary") or {}).get("base", 10000.0)
    base = (config.get("rope_parameters") or {}).get("rope_theta", base)
    at = np.arange(len(tokens))
    x = read("model.embed_tokens.weight")[tokens]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        y = nl.rms_norm(x, read(layer + "input_layernorm.weight"), eps)
        q, k, v = (nl.heads(project(read, y, f"{layer}self_attn.{p}_proj"), n) for p in "qkv")
        dim = q.shape[-1]
        theta = nl.dynamic_theta(config, base, len(tokens), dim)
        y = nl.attention(nl.rotate(q, at, theta, dim), nl.rotate(k, at, theta, dim), v)
        x = x + project(read, y, layer + "self_attn.o_proj")
        y = nl.rms_norm(x, read(layer + "post_attention_layernorm.weight"), eps)
        names = (f"{layer}mlp.{part}_proj" for part in ("gate", "up", "down"))
        x = x + nl.swiglu(read, y, *names)
    return nl.linear(read, nl.rms_norm(x, read("model.norm.weight"), eps), "lm_head")
