"""T5 (arXiv 1910.10683) in NumPy, with the variants that config.json tells apart.

One prompt serves both sides: the encoder reads it, the decoder reads it backwards.
"""

from __future__ import annotations

import math

import numpy as np

from t5x_llm.core.errors import CheckpointError
from t5x_llm.hf.references import numpy_layers as nl

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": nl.gelu,
    "gated-gelu": nl.gelu_tanh,  # by an old custom its tanh form
    "silu": nl.silu,
}


def bucket(distance: int, config: nl.Config, both_ways: bool) -> int:
    """The bucket of key position less query position (section 2.1, and the released code)."""
    count = config.get("relative_attention_num_buckets", 32)
    first = 0
    if both_ways:
        count //= 2
        first = count if distance > 0 else 0
    elif distance > 0:
        return 0
    distance, exact = abs(distance), count // 2
    if distance < exact:
        return first + distance
    far = config.get("relative_attention_max_distance", 128) / exact
    # In float32, as released code has it: borders of buckets depend on it.
    log = np.log(np.float32(distance) / np.float32(exact)) / np.float32(math.log(far))
    return first + min(exact + int(log * np.float32(count - exact)), count - 1)


def t5(config: nl.Config, read: nl.Read, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of the decoder."""
    tied = config.get("tie_word_embeddings") is not False
    x = _decode(config, read, tokens)
    if config.get("scale_decoder_outputs", tied):
        x = x / math.sqrt(config["d_model"])
        return x @ read("shared.weight").T
    try:  # config.json does not tell whether there is one
        return x @ read("lm_head.weight").T
    except (KeyError, CheckpointError):
        return x @ read("shared.weight").T


def _decode(config: nl.Config, read: nl.Read, tokens: np.ndarray) -> np.ndarray:
    """The decoder's normed states [T, D]."""
    encoded = _stack(config, read, "encoder", tokens, None)
    return _stack(config, read, "decoder", tokens[::-1], encoded)


def _stack(
    config: nl.Config, read: nl.Read, side: str, tokens: np.ndarray, encoded: np.ndarray | None
) -> np.ndarray:
    n, eps, encoder = config["num_heads"], config["layer_norm_epsilon"], encoded is None
    table = read(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    places = range(-len(tokens) + 1, len(tokens))
    row = {d: table[bucket(d, config, encoder)] for d in places}
    count = np.arange(len(tokens))
    offset = count[None, :] - count[:, None] + len(tokens) - 1
    bias = np.stack(list(row.values()))[offset].transpose(2, 0, 1)  # [N, T, S]
    layers = config["num_layers"]
    if not encoder:
        layers = config.get("num_decoder_layers") or layers
    x = read("shared.weight")[tokens]
    for i in range(layers):
        hf = f"{side}.block.{i}.layer."
        y = nl.rms_norm(x, read(f"{hf}0.layer_norm.weight"), eps)
        seen = None if not encoder else np.ones((len(tokens), len(tokens)), bool)
        x = x + _attend(read, f"{hf}0.SelfAttention", n, y, y, bias, seen)
        if encoded is not None:
            y = nl.rms_norm(x, read(f"{hf}1.layer_norm.weight"), eps)
            every = np.ones((len(tokens), len(encoded)), bool)
            x = x + _attend(read, f"{hf}1.EncDecAttention", n, y, encoded, 0.0, every)
        last = f"{hf}{1 if encoder else 2}."
        y = nl.rms_norm(x, read(f"{last}layer_norm.weight"), eps)
        x = x + _feed_forward(config, read, y, f"{last}DenseReluDense.")
    return nl.rms_norm(x, read(f"{side}.final_layer_norm.weight"), eps)


def _attend(
    read: nl.Read,
    name: str,
    n: int,
    x: np.ndarray,
    source: np.ndarray,
    bias: np.ndarray | float,
    seen: np.ndarray | None,
) -> np.ndarray:
    q, k, v = (
        nl.heads(nl.linear(read, given, f"{name}.{part}"), n)
        for part, given in (("q", x), ("k", source), ("v", source))
    )
    # The paper's logits are not scaled, those of ``attention`` are.
    return nl.linear(read, nl.attention(q * math.sqrt(q.shape[-1]), k, v, bias, seen), f"{name}.o")


def _feed_forward(config: nl.Config, read: nl.Read, x: np.ndarray, name: str) -> np.ndarray:
    kind = config.get("feed_forward_proj", "relu")
    activation = ACTIVATIONS.get(kind) or ACTIVATIONS[kind.removeprefix("gated-")]
    if kind.startswith("gated-"):
        inner = activation(nl.linear(read, x, name + "wi_0")) * nl.linear(read, x, name + "wi_1")
    else:
        inner = activation(nl.linear(read, x, name + "wi"))
    return nl.linear(read, inner, name + "wo")
