"""Decoding cache of a stack of layers: what it holds besides theirs, and how a call adds to it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from t5x_llm.nn.block import GroupConfig
from t5x_llm.nn.cache import CacheRows, TokenCache, valid_lengths
from t5x_llm.nn.layer import Context, starts_of

_TOKEN, PREFIX = TokenCache(dtype=jnp.int32), TokenCache(dtype=jnp.bool_)


def empty_stack(
    module: nnx.Module, groups: tuple[GroupConfig, ...], batch: int, length: int, dtype: jnp.dtype
) -> dict[str, Any]:
    """Returns the empty cache of the layers that ``make_groups`` made, and of their tokens.

    ``index`` [B] int32 counts the tokens that each row holds; ``positions`` and ``segment_ids``
    [B, S] are theirs.
    """
    names = [f"group_{i}" for i in range(len(groups))]
    return {
        "layers": {n: getattr(module, n).init_cache(batch, length, dtype) for n in names},
        "index": jnp.zeros((batch,), jnp.int32),
        "positions": _TOKEN.empty(batch, length, dtype),
        "segment_ids": _TOKEN.empty(batch, length, dtype),
    }


def extend(context: Context, cache: dict[str, Any]) -> tuple[Context, dict[str, Any]]:
    """Returns the context with this call's tokens after the cached ones, and the new cache.

    Each row's tokens follow its own ``index``. Those after the last that has a segment are padding:
    they take no place and start nothing.
    """
    index, segments = cache["index"], context.segment_ids
    rows = CacheRows(index, valid_lengths(segments))
    last = jnp.maximum(index - 1, 0)[:, None]
    before = jnp.take_along_axis(cache["segment_ids"], last, axis=1)[:, 0]
    new = {
        "layers": {},
        "index": index + rows.lengths,
        "positions": _TOKEN.write(cache["positions"], context.positions, rows),
        "segment_ids": _TOKEN.write(cache["segment_ids"], segments, rows),
    }
    if "prefix" in cache:
        given = context.prefix if context.prefix is not None else jnp.zeros(segments.shape, bool)
        new["prefix"] = PREFIX.write(cache["prefix"], given, rows)
    starts = starts_of(segments, jnp.where(index > 0, before, -1))
    context = dataclasses.replace(
        context,
        starts=starts & rows.valid(segments.shape[1]),
        rows=rows._replace(
            positions=new["positions"],
            segment_ids=new["segment_ids"],
            prefix=new.get("prefix"),
        ),
    )
    return context, new
