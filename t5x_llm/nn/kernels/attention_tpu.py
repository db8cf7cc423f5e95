"""Pallas splash attention, as it ships with JAX, laid out over the current mesh."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from t5x_llm.nn.kernels.attention_context import repeat_heads
from t5x_llm.parallel import compute_spec, current, pieces

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

_LANES = 128


def splash_fits(q: Float[Array, "B T N H"], k: Float[Array, "B S K H"]) -> bool:
    """Returns whether the kernel takes these shapes: self-attention, rows in tiles of 128."""
    return q.shape[1] == k.shape[1] and q.shape[1] % _LANES == 0


def _block(length: int, largest: int) -> int:
    """The largest tile up to ``largest`` that divides ``length``."""
    block = largest
    while length % block:
        block //= 2
    return block


def splash_attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    q_segment_ids: Int[Array, "B T"],
    kv_segment_ids: Int[Array, "B S"],
    *,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float,
    sinks: Float[Array, " N"] | None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """``attend`` by splash attention; see there. Heads are padded to whole tiles of 128."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    length, head = q.shape[1], q.shape[-1]
    fill = -head % _LANES
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    if fill:
        q, k, v = (jnp.pad(a, ((0, 0), (0, 0), (0, 0), (0, fill))) for a in (q, k, v))
    block = _block(length, 512)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    if window is not None:
        mask = splash.LocalMask((length, length), (window - 1, 0), 0)
    elif causal:
        mask = splash.CausalMask((length, length))
    else:
        mask = splash.FullMask((length, length))

    def local(q, k, v, q_segments, kv_segments, sinks):
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([mask] * q.shape[2]),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=softcap,
            residual_checkpoint_name="context",
            interpret=interpret,
        )
        q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
        ids = splash.SegmentIds(q_segments, kv_segments)
        out = jax.vmap(kernel, in_axes=(0, 0, 0, 0, None))(q, k, v, ids, sinks)
        return out.swapaxes(1, 2)

    context = current()
    if context is not None and context.mesh.size > 1 and not context.local:
        if k.shape[2] > 1:  # each piece of the query heads finds its own keys
            cut = pieces("heads", q.shape[2])
            k, v = (repeat_heads(a, q.shape[2], cut) for a in (k, v))
        queries = compute_spec(("batch", None, "heads", None), q.shape)
        keys = compute_spec(("batch", None, "kv_heads", None), k.shape)
        rows = compute_spec(("batch", None), q_segment_ids.shape)
        heads = compute_spec(("heads",), (q.shape[2],))
        local = jax.shard_map(
            local,
            mesh=context.mesh,
            in_specs=(queries, keys, keys, rows, rows, heads),
            out_specs=queries,
            check_vma=False,
        )
    out = functools.partial(local, q, k, v, q_segment_ids, kv_segment_ids)(sinks)
    return out[..., :head] if fill else out
