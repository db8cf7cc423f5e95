"""One attention call for every layer; it picks the kernel of the platform."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from t5x_llm.nn.kernels import attention_cpu
from t5x_llm.nn.kernels.attention_context import context_attend, context_layout
from t5x_llm.nn.kernels.attention_mask import MASKED, Bias, score_rows, visible
from t5x_llm.nn.kernels.attention_tpu import splash_attend, splash_fits
from t5x_llm.nn.kernels.products import one_cpu
from t5x_llm.nn.kernels.saving import keep
from t5x_llm.parallel import platform

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K values"],
    *,
    q_segment_ids: Int[Array, "B T"],
    kv_segment_ids: Int[Array, "B S"],
    q_positions: Int[Array, "B T"],
    kv_positions: Int[Array, "B S"],
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    sinks: Float[Array, " N"] | None = None,
    bias: Bias | None = None,
    kv_prefix: Bool[Array, "B S"] | None = None,
    cached: bool = False,
    common: int = 0,
) -> Float[Array, "B T N values"]:
    """Softmax attention within segments.

    A query sees the keys of its own nonzero segment; under ``causal`` those whose position is not
    greater than its own, and with ``window`` only the last ``window`` of them, itself included.

    Where T == S and the keys are not ``cached``, they are taken to be those of the queries' own
    tokens, in ascending order of position within every segment, so that kernels may go by row index
    and skip what lies ahead.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H], K dividing N (arXiv 2305.13245).
      v: [B, S, K, H], or of another head size.
      q_segment_ids: [B, T] int32; 0 is padding.
      kv_segment_ids: [B, S] int32; 0 is padding or not yet written.
      q_positions: [B, T] int32.
      kv_positions: [B, S] int32.
      causal: hide later positions.
      window: sliding window in tokens, or None. Needs ``causal``.
      softcap: logits become softcap * tanh(logits / softcap) (Gemma 2, arXiv 2408.00118).
      scale: factor on the logits; 1 / sqrt(H) by default.
      sinks: [N] logits that take part in every softmax and carry no value (gpt-oss), or None.
      bias: added to the scaled logits, float32: relative positions, ALiBi.
      kv_prefix: [B, S] bool, keys that ``causal`` does not hide (prefix LM, arXiv 1910.10683,
        section 3.2.1), or None.
      cached: the keys are a cache's, where every row has a place of its own.
      common: the first keys of every row, this many, are of all segments: virtual tokens, which
        ``causal`` and ``window`` hide by their positions as they do others.

    What a remat policy may keep of it is named ``context`` (and ``log_sum``).

    Returns:
      [B, T, N, head size of ``v``] in the dtype of ``q``. Rows of padding queries are finite and
      mean nothing.
    """
    if window is not None and not causal:
        raise ValueError("window needs causal=True")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    static: dict[str, Any] = dict(causal=causal, window=window, softcap=softcap, scale=scale)
    places = q_positions, kv_positions
    cached = cached or common > 0  # kernels that go by row index and segment know neither
    if not cached and (layout := context_layout(q, k, bias, places)) is not None:
        tokens: dict[str, Any] = dict(q_segment_ids=q_segment_ids, kv_segment_ids=kv_segment_ids)
        tokens |= dict(q_positions=q_positions, kv_positions=kv_positions, kv_prefix=kv_prefix)
        return context_attend(attend, layout, q, k, v, **tokens, sinks=sinks, bias=bias, **static)
    plain = not cached and bias is None and kv_prefix is None and q.shape[-1] == v.shape[-1]
    if plain and platform() == "tpu" and splash_fits(q, k):
        return splash_attend(q, k, v, q_segment_ids, kv_segment_ids, sinks=sinks, **static)
    if plain and platform() == "gpu" and _cudnn_fits(q, k, softcap, sinks):
        mask = visible(
            q_segment_ids, kv_segment_ids, q_positions, kv_positions, causal=causal, window=window
        )
        out = jax.nn.dot_product_attention(
            q, k, v, mask=mask[:, None], scale=scale, implementation="cudnn"
        )
        return keep(out, "context")
    plain = plain and causal and softcap is None and sinks is None
    if plain and one_cpu() and attention_cpu.fits(q, k):
        return attention_cpu.causal_attend(q, k, v, q_segment_ids, scale=scale, window=window)
    static |= dict(sinks=sinks, bias=bias, kv_prefix=kv_prefix, common=common)
    out = _blocked(q, k, v, q_segment_ids, kv_segment_ids, q_positions, kv_positions, **static)
    return keep(out, "context")


def _cudnn_fits(q: jax.Array, k: jax.Array, softcap: float | None, sinks: jax.Array | None) -> bool:
    return (
        jax.default_backend() == "gpu"
        and q.dtype in (jnp.bfloat16, jnp.float16)
        and q.shape[-1] <= 128
        and q.shape[-1] % 8 == 0
        and q.shape[1] > 1
        and q.shape[1] % 2 == k.shape[1] % 2 == 0
        and softcap is None
        and sinks is None
    )


def _attend_rows(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: jax.Array,
    sinks: jax.Array | None,
    scale: float,
    softcap: float | None,
    added: jax.Array | None,
) -> jax.Array:
    """Plain attention of q [B, T, N, H] under the mask ``seen`` [B, T, S].

    ``added``: [B or 1, N, T, S] float32, put on the logits.
    """
    b, t, n, h = q.shape
    kv = k.shape[2]
    logits = jnp.einsum(
        "btkgh,bskh->bkgts",
        q.reshape(b, t, kv, n // kv, h),
        k,
        preferred_element_type=jnp.float32,
    )
    logits *= scale
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    if added is not None:
        logits += added.reshape(added.shape[0], kv, n // kv, *added.shape[2:])
    logits = jnp.where(seen[:, None, None], logits, MASKED)
    top = jnp.max(logits, axis=-1, keepdims=True)
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(1, kv, n // kv, 1, 1)
        top = jnp.maximum(top, sink)
    top = jax.lax.stop_gradient(top)
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if sinks is not None:
        total += jnp.exp(sink - top)
    weights = (weights / total).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(b, t, n, v.shape[-1])


def _blocked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segment_ids: jax.Array,
    kv_segment_ids: jax.Array,
    q_positions: jax.Array,
    kv_positions: jax.Array,
    *,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float,
    sinks: jax.Array | None,
    bias: Bias | None,
    kv_prefix: jax.Array | None,
    common: int = 0,
) -> jax.Array:
    """Attention in blocks of query rows, each computed again in the backward pass."""
    t, s = q.shape[1], k.shape[1]

    def rows(q: jax.Array, segments: jax.Array, positions: jax.Array) -> jax.Array:
        seen = visible(
            segments,
            kv_segment_ids,
            positions,
            kv_positions,
            causal=causal,
            window=window,
            kv_prefix=kv_prefix,
            common=common,
        )
        added = None if bias is None else bias(positions, kv_positions)
        return _attend_rows(q, k, v, seen, sinks, scale, softcap, added)

    if (block := score_rows(t, s)) == t:
        return rows(q, q_segment_ids, q_positions)

    def body(_: None, i: jax.Array) -> tuple[None, jax.Array]:
        cut = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=i * block, slice_size=block, axis=1
        )
        return None, jax.checkpoint(rows)(cut(q), cut(q_segment_ids), cut(q_positions))

    _, out = jax.lax.scan(body, None, jnp.arange(t // block))
    return jnp.moveaxis(out, 0, 1).reshape(*q.shape[:3], v.shape[-1])
