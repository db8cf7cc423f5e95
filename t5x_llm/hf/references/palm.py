"""PaLM (arXiv 2204.02311, section 2) in NumPy."""

import math

import numpy as np

from t5x_llm.hf.references import numpy_layers as nl


def palm(config: nl.Config, read: nl.Read, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of tokens [T]: y = x + MLP(LN(x)) + Attention(LN(x)), shared embeddings."""
    n, eps = config["num_attention_heads"], config["rms_norm_eps"]
    theta = (config.get("rope_parameters") or {}).get("rope_theta", 10000.0)
    at = np.arange(len(tokens))
    table = read("model.embed_tokens.weight")
    x = table[tokens]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        y = nl.layer_norm(x, read(layer + "input_layernorm.weight"), 0.0, eps)
        count = {"q": n, "k": config["num_key_value_heads"], "v": config["num_key_value_heads"]}
        q, k, v = (
            nl.heads(nl.linear(read, y, f"{layer}self_attn.{p}_proj"), count[p]) for p in "qkv"
        )
        q, k = (nl.rotate(a, at, theta, q.shape[-1]) for a in (q, k))
        names = (f"{layer}mlp.{part}_proj" for part in ("gate", "up", "down"))
        attended = nl.linear(read, nl.attention(q, k, v), layer + "self_attn.o_proj")
        x = x + nl.swiglu(read, y, *names) + attended
    x = nl.layer_norm(x, read("model.norm.weight"), 0.0, eps)
    head = table if config.get("tie_word_embeddings", True) else read("lm_head.weight")
    return x @ head.T / math.sqrt(x.shape[-1])
