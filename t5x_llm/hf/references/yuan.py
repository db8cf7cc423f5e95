"""Yuan 2.0 (arXiv 2311.15786) in NumPy, after the released yuan_hf_model.py."""

import numpy as np

from t5x_llm.hf.references import numpy_layers as nl


def yuan(config: nl.Config, read: nl.Read, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of tokens [T]."""
    n, eps = config["num_attention_heads"], config.get("rms_norm_eps", 1e-6)
    at, length = np.arange(len(tokens)), len(tokens)
    table = read("model.embed_tokens.weight")
    x = table[tokens]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        y = nl.rms_norm(x, read(layer + "input_layernorm.weight"), eps)
        attention = layer + "self_attn."
        v = nl.linear(read, y, attention + "v_proj").reshape(length, n, -1)
        filtered = local_filter(read, y, attention + "lf_gate.")
        # One tensor of Megatron's, a query and a key for each head, cut in the middle: the first
        # half of the heads has both from q_proj, the second half from k_proj.
        parts = [nl.linear(read, filtered, f"{attention}{name}_proj") for name in "qk"]
        q, k = np.split(np.concatenate(parts, -1).reshape(length, n, -1), 2, axis=-1)
        dim = q.shape[-1]
        y = nl.attention(nl.rotate(q, at, 10000.0, dim), nl.rotate(k, at, 10000.0, dim), v)
        x = x + nl.linear(read, y, attention + "o_proj")
        y = nl.rms_norm(x, read(layer + "post_attention_layernorm.weight"), eps)
        # The activation is on up_proj, whatever the names say.
        x = x + nl.swiglu(read, y, *(f"{layer}mlp.{j}_proj" for j in ("up", "gate", "down")))
    x = nl.rms_norm(x, read("model.norm.weight"), eps)
    return x @ (table if config.get("tie_word_embeddings", True) else read("lm_head.weight")).T


def local_filter(read: nl.Read, x: np.ndarray, name: str) -> np.ndarray:
    """Two convolutions over tokens (kernels [out, in, 2, 1]) padded with zeros, and a norm."""
    y = x
    for conv in ("conv1", "conv2"):
        kernel, bias = read(f"{name}{conv}.weight")[..., 0], read(f"{name}{conv}.bias")
        padded = np.concatenate([np.zeros_like(y[:1]), y])
        y = padded[:-1] @ kernel[..., 0].T + padded[1:] @ kernel[..., 1].T + bias
    return nl.rms_norm(x + y, read(f"{name}output_layernorm.weight"), 1e-6)
