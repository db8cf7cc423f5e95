"""InternLM 2 (arXiv 2403.17297) in NumPy, after the released modeling_internlm2.py."""

import numpy as np

from t5x_llm.hf.references import numpy_layers as nl


def internlm2(config: nl.Config, read: nl.Read, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of tokens [T]."""
    project = nl.biased if config.get("bias") else nl.linear
    n, eps = config["num_attention_heads"], config["rms_norm_eps"]
    k_heads = config["num_key_value_heads"]
    base = float(config.get("rope_theta") or 10000.0)
    base = (config.get("rope_parameters") or {}).get("rope_theta", base)
    at, length = np.arange(len(tokens)), len(tokens)
    x = read("model.tok_embeddings.weight")[tokens]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        y = nl.rms_norm(x, read(layer + "attention_norm.weight"), eps)
        # Each key/value head has its queries, then its key, then its value.
        qkv = project(read, y, layer + "attention.wqkv").reshape(
            length, k_heads, 2 + n // k_heads, -1
        )
        dim = qkv.shape[-1]
        theta = nl.dynamic_theta(config, base, length, dim)
        q = qkv[:, :, :-2].reshape(length, n, dim)
        k, v = qkv[:, :, -2], qkv[:, :, -1]
        y = nl.attention(nl.rotate(q, at, theta, dim), nl.rotate(k, at, theta, dim), v)
        x = x + project(read, y, layer + "attention.wo")
        y = nl.rms_norm(x, read(layer + "ffn_norm.weight"), eps)
        x = x + nl.swiglu(read, y, *(f"{layer}feed_forward.w{j}" for j in (1, 3, 2)))
    return nl.linear(read, nl.rms_norm(x, read("model.norm.weight"), eps), "output")
