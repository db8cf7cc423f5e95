"""Grok-1 in NumPy, after model.py of its release (xai-org/grok-1)."""

import numpy as np

from t5x_llm.hf.references import numpy_layers as nl


def grok_1(config: nl.Config, read: nl.Read, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of tokens [T]."""
    n, k_heads = config["num_attention_heads"], config["num_key_value_heads"]
    eps, at = config["rms_norm_eps"], np.arange(len(tokens))
    theta = (config.get("rope_parameters") or config).get("rope_theta", 10000.0)
    seen = np.tri(len(tokens), dtype=bool)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return nl.rms_norm(x, read(f"{name}.scale"), eps)

    def attend(y: np.ndarray, layer: str) -> np.ndarray:
        q, k, v = (nl.linear(read, y, f"{layer}attn.{p}_proj") for p in "qkv")
        q, k, v = nl.heads(q, n), nl.heads(k, k_heads), nl.heads(v, k_heads)
        q, k = (nl.rotate(a, at, theta, a.shape[-1]) for a in (q, k))
        k, v = (np.repeat(a, n // k_heads, 1) for a in (k, v))
        scores = np.einsum("tnh,snh->nts", q, k) * config["attn_output_multiplier"]
        cap = config["max_attn_value"]
        scores = np.where(seen, cap * np.tanh(scores / cap), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights = weights / weights.sum(-1, keepdims=True)
        y = np.einsum("nts,snh->tnh", weights, v).reshape(len(y), -1)
        return nl.linear(read, y, layer + "attn.o_proj")

    def experts(y: np.ndarray, layer: str) -> np.ndarray:
        scores = nl.linear(read, y, layer + "moe_block.gate")
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores = scores / scores.sum(-1, keepdims=True)
        out = np.zeros_like(y)
        for t, row in enumerate(scores):
            for e in np.argsort(-row)[: config["num_experts_per_tok"]]:
                name = f"{layer}moe_block.experts.{e}.linear"
                inner = nl.gelu_tanh(nl.linear(read, y[t], name)) * nl.linear(
                    read, y[t], name + "_v"
                )
                out[t] += row[e] * nl.linear(read, inner, name + "_1")
        return out

    x = read("model.embed_tokens.weight")[tokens] * config["embedding_multiplier_scale"]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        y = attend(norm(x, layer + "pre_attn_norm"), layer)
        x = x + norm(y, layer + "post_attn_norm")
        y = experts(norm(x, layer + "pre_moe_norm"), layer)
        x = x + norm(y, layer + "post_moe_norm")
    x = nl.linear(read, norm(x, "model.norm"), "lm_head")
    return x * config["output_multiplier_scale"]
