"""Self-attention for one CPU device: blocks of query rows that stop at the diagonal.

XLA's CPU backend has fast kernels for batched row-major products with a float32 result that
contract the last axis of the left operand, and is slow at everything else. So the backward pass
works on transposed scores [S, T]: every product but one then has that form as it stands, and that
one gets its small operand transposed. Scores are computed again in the backward pass from the
saved log-sum-exp, as in FlashAttention-2 (arXiv 2307.08691).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from t5x_llm.nn.kernels.saving import keep

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

_BLOCK = 128
_MAX_BLOCKS = 16
_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)

Saved = tuple[jax.Array, ...]


class _Static(NamedTuple):
    """Settings that are known when tracing."""

    scale: float
    window: int | None
    block: int

    def keys(self, i: int) -> slice:
        """The keys that block ``i`` of query rows can see."""
        low = 0 if self.window is None else max(0, i * self.block - self.window + 1)
        return slice(low // self.block * self.block, (i + 1) * self.block)

    def rows(self, i: int) -> slice:
        """Block ``i`` of query rows."""
        return slice(i * self.block, (i + 1) * self.block)


def fits(q: Float[Array, "B T N H"], k: Float[Array, "B S K H"]) -> bool:
    """Returns whether T and S allow it: self-attention, few enough blocks to write out."""
    t = q.shape[1]
    return t == k.shape[1] and (t <= _BLOCK or t % _BLOCK == 0) and t <= _BLOCK * _MAX_BLOCKS


def causal_attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    *,
    scale: float,
    window: int | None,
) -> Float[Array, "B T N H"]:
    """``attend`` with T == S and causal: q [B, T, N, H], k, v [B, T, K, H] -> [B, T, N, H]."""
    b, t, n, h = q.shape
    kv = k.shape[2]
    static = _Static(scale, window, min(t, _BLOCK))
    grouped = q.reshape(b, t, kv, n // kv, h).transpose(0, 2, 3, 1, 4)
    out = _attend(static, grouped, k.swapaxes(1, 2), v.swapaxes(1, 2), segment_ids)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


def _dot(a: jax.Array, b: jax.Array, b_axis: int) -> jax.Array:
    """a [Z, M, K] times b, contracted along ``b_axis``, batched over Z: float32."""
    dims = (((2,), (b_axis,)), ((0,), (0,)))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _bias(static: _Static, segments: jax.Array, i: int, transposed: bool) -> jax.Array:
    """0 where block ``i`` of queries sees a key and very negative elsewhere: [B, 1, 1, ...]."""
    t = segments.shape[1]
    row = jnp.arange(t)[static.rows(i), None] - jnp.arange(t)[static.keys(i)]
    seen = (row >= 0) if static.window is None else (row >= 0) & (row < static.window)
    # Padding sees padding, so that no row of the softmax is empty.
    seen = seen & (segments[:, static.rows(i), None] == segments[:, None, static.keys(i)])
    bias = jnp.where(seen, 0.0, _MASKED)[:, None, None]
    return bias.swapaxes(-1, -2) if transposed else bias


def _flat(x: jax.Array) -> jax.Array:
    """[B, K, ..., H] to [B * K, rows, H]."""
    return x.reshape(x.shape[0] * x.shape[1], -1, x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    static: _Static, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array
) -> jax.Array:
    """q [B, K, G, T, H], k, v [B, K, T, H] -> [B, K, G, T, H]."""
    return _forward(static, q, k, v, segments)[0]


def _forward(
    static: _Static, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array
) -> tuple[jax.Array, Saved]:
    b, kv, g, t, h = q.shape
    outs, sums = [], []
    for i in range(t // static.block):
        rows, keys = static.rows(i), static.keys(i)
        shape = (b, kv, g, static.block, -1)
        scores = _dot(_flat(q[:, :, :, rows]), _flat(k[:, :, keys]), 2).reshape(shape)
        scores = scores * static.scale + _bias(static, segments, i, transposed=False)
        top = jnp.max(scores, axis=-1, keepdims=True)
        # The barrier keeps XLA from computing the exponentials once for each of their two uses.
        weights = jax.lax.optimization_barrier(jnp.exp(scores - top).astype(v.dtype))
        total = jnp.sum(weights, axis=-1, keepdims=True, dtype=jnp.float32)
        out = _dot(_flat(weights.reshape(b, kv, -1, weights.shape[-1])), _flat(v[:, :, keys]), 1)
        outs.append((out.reshape(shape) / total).astype(q.dtype))
        sums.append(top + jnp.log(total))
    # Named, so that a remat policy that saves them spares the backward pass a second forward.
    out = keep(jnp.concatenate(outs, axis=3), "context")
    log_sum = keep(jnp.concatenate(sums, axis=3), "log_sum")
    return out, (q, k, v, segments, out, log_sum)


def _backward(static: _Static, saved: Saved, d_out: jax.Array) -> tuple[jax.Array | None, ...]:
    q, k, v, segments, out, log_sum = saved
    b, kv, g, t, h = q.shape
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    log_sum = log_sum[..., 0]
    # Made row-major by the detour over a flat array; see products.py.
    k_t = jnp.swapaxes(_flat(k), 1, 2)
    k_t = jax.lax.optimization_barrier(k_t.reshape(-1)).reshape(k_t.shape)
    dq = []
    dk, dv = (jnp.zeros((b * kv, t, h), jnp.float32) for _ in range(2))
    for i in range(t // static.block):
        rows, keys = static.rows(i), static.keys(i)
        q_i, d_i = _flat(q[:, :, :, rows]), _flat(d_out[:, :, :, rows])
        # [B * K, S, G * T]: as [B, K, S, G, T] against [B, 1, S, 1, T] and [B, K, 1, G, T].
        shape = (b, kv, -1, g, static.block)
        bias = _bias(static, segments, i, transposed=True).swapaxes(2, 3)
        scores = _dot(_flat(k[:, :, keys]), q_i, 2).reshape(shape) * static.scale + bias
        weights = jnp.exp(scores - log_sum[:, :, None, :, rows])
        d_weights = _dot(_flat(v[:, :, keys]), d_i, 2).reshape(shape)
        d_scores = weights * (d_weights - delta[:, :, None, :, rows]) * static.scale
        size = (b * kv, -1, g * static.block)
        weights = weights.astype(q.dtype).reshape(size)
        d_scores = d_scores.astype(q.dtype).reshape(size)
        dv = dv.at[:, keys].add(_dot(weights, d_i, 1))
        dk = dk.at[:, keys].add(_dot(d_scores, q_i, 1))
        dq_t = _dot(k_t[:, :, keys], d_scores, 1).astype(q.dtype)
        dq.append(jnp.swapaxes(jax.lax.optimization_barrier(dq_t), 1, 2))
    d_q = jnp.concatenate([a.reshape(b, kv, g, static.block, h) for a in dq], axis=3)
    return d_q, dk.reshape(k.shape).astype(k.dtype), dv.reshape(v.shape).astype(v.dtype), None


_attend.defvjp(_forward, _backward)
