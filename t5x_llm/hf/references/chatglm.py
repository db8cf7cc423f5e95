"""ChatGLM 1 to 3 in NumPy, after modeling_chatglm.py of their released repositories."""

import math
from collections.abc import Callable

import numpy as np

from t5x_llm.hf.references import numpy_layers as nl


def chatglm(
    config: nl.Config,
    read: nl.Read,
    tokens: np.ndarray,
    block_positions: np.ndarray | None = None,
    positions: np.ndarray | None = None,
    context: int = 0,
) -> np.ndarray:
    """Logits [T, V] of tokens [T].

    Args:
      config: config.json.
      read: HF name to tensor.
      tokens: [T].
      block_positions: [T], of ChatGLM 1 alone; zeros by default.
      positions: [T]; 0, 1, ... by default.
      context: so many first tokens are seen by all (ChatGLM 1).
    """
    at = np.arange(len(tokens)) if positions is None else positions
    if "position_encoding_2d" in config:
        second = np.zeros(len(tokens), int) if block_positions is None else block_positions
        return _first(config, read, tokens, at, second, context)
    return _second(config, read, tokens, at)


def _second(config: nl.Config, read: nl.Read, tokens: np.ndarray, at: np.ndarray) -> np.ndarray:
    n, size, eps = config["num_attention_heads"], config["kv_channels"], config["layernorm_epsilon"]
    k_heads = config["multi_query_group_num"] if config["multi_query_attention"] else n
    theta = 10000.0 * config.get("rope_ratio", 1)
    project = nl.biased if config.get("add_qkv_bias") else nl.linear
    x = read("transformer.embedding.word_embeddings.weight")[tokens]
    for i in range(config["num_layers"]):
        layer = f"transformer.encoder.layers.{i}."
        y = nl.rms_norm(x, read(layer + "input_layernorm.weight"), eps)
        qkv = project(read, y, layer + "self_attention.query_key_value")
        q, k, v = np.split(qkv, (n * size, (n + k_heads) * size), -1)
        q, k, v = nl.heads(q, n), nl.heads(k, k_heads), nl.heads(v, k_heads)
        q, k = (nl.rotate(a, at, theta, size // 2, interleaved=True) for a in (q, k))
        x = x + nl.linear(read, nl.attention(q, k, v), layer + "self_attention.dense")
        y = nl.rms_norm(x, read(layer + "post_attention_layernorm.weight"), eps)
        gate, up = np.split(nl.linear(read, y, layer + "mlp.dense_h_to_4h"), 2, -1)
        x = x + nl.linear(read, nl.silu(gate) * up, layer + "mlp.dense_4h_to_h")
    x = nl.rms_norm(x, read("transformer.encoder.final_layernorm.weight"), eps)
    return nl.linear(read, x, "transformer.output_layer")


def glm_layers(
    config: nl.Config,
    read: nl.Read,
    x: np.ndarray,
    rotate: Callable[[np.ndarray], np.ndarray],
    activate: Callable[[np.ndarray], np.ndarray],
    seen: np.ndarray,
) -> np.ndarray:
    """The DeepNorm layers that ChatGLM 1 and GLM-130B share: alpha LN(x) + f(LN(x))."""
    n, eps = config["num_attention_heads"], config["layernorm_epsilon"]
    alpha = math.sqrt(2 * config["num_layers"])

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return nl.layer_norm(x, read(f"{name}.weight"), read(f"{name}.bias"), eps)

    for i in range(config["num_layers"]):
        layer = f"transformer.layers.{i}."
        y = norm(x, layer + "input_layernorm")
        fused = nl.heads(nl.biased(read, y, layer + "attention.query_key_value"), n)
        q, k, v = np.split(fused, 3, -1)
        attended = nl.attention(rotate(q), rotate(k), v, seen=seen)
        x = alpha * y + nl.biased(read, attended, layer + "attention.dense")
        y = norm(x, layer + "post_attention_layernorm")
        inner = activate(nl.biased(read, y, layer + "mlp.dense_h_to_4h"))
        x = alpha * y + nl.biased(read, inner, layer + "mlp.dense_4h_to_h")
    return norm(x, "transformer.final_layernorm")


def two_d(x: np.ndarray, at: np.ndarray, second: np.ndarray, theta: float) -> np.ndarray:
    """Half of each head turned by position, half by block position."""
    a, b = np.split(x, 2, -1)
    size = a.shape[-1]
    return np.concatenate([nl.rotate(a, at, theta, size), nl.rotate(b, second, theta, size)], -1)


def _first(
    config: nl.Config,
    read: nl.Read,
    tokens: np.ndarray,
    at: np.ndarray,
    second: np.ndarray,
    context: int,
) -> np.ndarray:
    seen = np.tri(len(tokens), dtype=bool)
    seen[:, :context] = True
    x = read("transformer.word_embeddings.weight")[tokens]
    x = glm_layers(config, read, x, lambda a: two_d(a, at, second, 10000.0), nl.gelu_tanh, seen)
    return nl.linear(read, x, "lm_head")
