"""Layers in NumPy, in the dtype of their inputs, for one row of tokens [T]."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Read = Callable[[str], np.ndarray]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMSNorm over the last axis (arXiv 1910.07467)."""
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps).astype(x.dtype) * weight


def layer_norm(
    x: np.ndarray, weight: np.ndarray | float, bias: np.ndarray | float, eps: float
) -> np.ndarray:
    """LayerNorm over the last axis (arXiv 1607.06450)."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps).astype(x.dtype) * weight + bias


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x)."""
    return x / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution function."""
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return (x * 0.5 * (1 + erf(np.asarray(x, np.float64) / math.sqrt(2)))).astype(x.dtype)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """The tanh form of GELU (arXiv 1606.08415)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rotate(
    x: np.ndarray, positions: np.ndarray, theta: float, dim: int, interleaved: bool = False
) -> np.ndarray:
    """RoPE on the first ``dim`` channels of x [T, N, H] (arXiv 2104.09864), as complex numbers."""
    angle = positions[:, None] * theta ** (-np.arange(0, dim, 2) / dim)
    turn = np.exp(1j * angle)[:, None]
    out = np.array(x)
    if interleaved:
        turned = (x[..., 0:dim:2] + 1j * x[..., 1:dim:2]) * turn
        out[..., 0:dim:2], out[..., 1:dim:2] = turned.real, turned.imag
    else:
        half = dim // 2
        turned = (x[..., :half] + 1j * x[..., half:dim]) * turn
        out[..., :half], out[..., half:dim] = turned.real, turned.imag
    return out


def dynamic_theta(config: Config, theta: float, length: int, dim: int) -> float:
    """InternLM's rotary base for a sequence of ``length`` tokens: dynamic NTK, where it is set.

    After the classes ...DynamicNTKScalingRotaryEmbedding of its released code.

    Args:
      config: config.json, of InternLM 1 (``rotary``) or 2 (``rope_scaling``), or as exported.
      theta: the base before any scaling.
      length: tokens of the sequence.
      dim: head size.
    """
    old = config.get("rotary") or {}
    settings = config.get("rope_scaling") or config.get("rope_parameters") or old
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind in ("default", "origin"):
        return theta
    if kind != "dynamic":
        raise ValueError(f"this reference knows no rotary scaling of kind {kind!r}")
    pretrained = config.get("max_position_embeddings") or 2048
    factor = settings.get("factor") or settings.get("scaling_factor") or 1.0
    if length <= pretrained:
        return theta
    grown = factor * length / pretrained - (factor - 1)
    return float(theta * grown ** (dim / (dim - 2)))


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    bias: np.ndarray | float = 0.0,
    seen: np.ndarray | None = None,
) -> np.ndarray:
    """Softmax attention of q [T, N, H] on k, v [T, K, H]: [T, N * H].

    Args:
      q: queries.
      k: keys; N / K query heads in a row share one.
      v: values.
      bias: put on the scaled scores [N, T, T].
      seen: [T, T] bool; causal by default.
    """
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = np.einsum("tnh,snh->nts", q, k) / math.sqrt(q.shape[-1]) + bias
    if seen is None:
        seen = np.tri(len(q), dtype=bool)
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    return np.einsum("nts,snh->tnh", weights, v).reshape(len(q), -1).astype(q.dtype)


def alibi(n_heads: int, length: int) -> np.ndarray:
    """ALiBi's biases [N, T, T] (arXiv 2108.12409), for any number of heads as its code does."""

    def slopes(n: int) -> list[float]:
        if math.log2(n).is_integer():
            start = 2 ** (-(2 ** -(math.log2(n) - 3)))
            return [start * start**i for i in range(n)]
        closest = 2 ** math.floor(math.log2(n))
        return slopes(closest) + slopes(2 * closest)[0::2][: n - closest]

    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    return np.asarray(slopes(n_heads))[:, None, None] * distance


def linear(read: Read, x: np.ndarray, name: str) -> np.ndarray:
    """x @ weight.T."""
    return x @ read(f"{name}.weight").T


def biased(read: Read, x: np.ndarray, name: str) -> np.ndarray:
    """x @ weight.T + bias."""
    return linear(read, x, name) + read(f"{name}.bias")


def swiglu(read: Read, x: np.ndarray, gate: str, up: str, down: str) -> np.ndarray:
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""
    return linear(read, silu(linear(read, x, gate)) * linear(read, x, up), down)


def heads(x: np.ndarray, count: int) -> np.ndarray:
    """[T, N * H] to [T, N, H]."""
    return x.reshape(len(x), count, -1)


Config = dict[str, Any]
