"""Bytes that a backward pass keeps of a model, and holds at one layer, by tracing alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax

from t5x_llm.models.encoder_decoder import EncoderDecoderConfig
from t5x_llm.models.model import Model, cached_model
from t5x_llm.nn.block import GroupConfig
from t5x_llm.nn.kernels import score_rows

# A batch without its rows: structure, and (shape, dtype) of every array.
RowShapes = tuple[Any, tuple[tuple[tuple[int, ...], Any], ...]]
_SIDES = ("groups", "encoder")


def size_of(x: jax.ShapeDtypeStruct) -> int:
    """Counts the bytes of an array."""
    return math.prod(x.shape) * x.dtype.itemsize


def layer_memory(
    model: Model, shapes: RowShapes, traced: int, lanes: int, tokens: dict[str, int]
) -> dict[str, int]:
    """Counts the bytes of a row in the backward pass of one repeat of each group, but kernels.

    Two moments are looked at. In the first the values of the repeat are held: results of its
    projections, attention and experts that the backward pass needs. What remat did not save is
    computed again; every value has a gradient. The input as the projections read it and the
    gradient of the output are whole, where the stream between layers lies in pieces. Values go as
    gradients come, so that this is an upper bound but for what is no projection's. In the second
    the scores of attention that no fused kernel computes are held, see ``_scores``.

    Args:
      model: what one device computes.
      shapes: of a row.
      traced: its tokens there.
      lanes: see ``kept``.
      tokens: that a row really has, by side of the model.

    Returns:
      {path of the group: bytes}.
    """
    values = _of_repeats(model, shapes, traced, lanes, "save_projections")
    saved = values if model.remat == "none" else _of_repeats(model, shapes, traced, lanes)
    itemsize = jax.numpy.dtype(model.policy.compute_dtype).itemsize
    stream = traced * model.config.d_model * itemsize
    found = {}
    for (side, i), value in values.items():
        held = max(value - saved[side, i], 0) + max(value - stream, 0) + 2 * stream
        held = held * tokens[_SIDES[len(tokens) - 1]] // traced
        group = getattr(model.config, side)[i]
        name = f"group_{i}" if side == _SIDES[0] else f"{side}.group_{i}"
        found[name] = max(held, _scores(group, tokens[side], itemsize))
    return found


def _scores(group: GroupConfig, tokens: int, itemsize: int) -> int:
    """Counts the bytes of scores [N, block, T] of a row in the backward pass of its attention.

    Where a bias is added no fused kernel of the TPU is taken. Probabilities and their gradient are
    float32, and products take them in the compute dtype; the gradient of a learnt bias is that of
    the scores once more, laid out for the sum over its buckets.
    """
    found = [0]
    for block in group.blocks:
        learnt = getattr(block.mixer, "relative", None) is not None
        if learnt or getattr(block.mixer, "alibi", None) is not None:
            held = (3 if learnt else 2) * 4 + itemsize
            rows = score_rows(tokens, tokens)
            found.append(getattr(block.mixer, "n_heads", 1) * rows * tokens * held)
    return max(found)


@functools.lru_cache(256)
def _of_repeats(
    model: Model, shapes: RowShapes, length: int, lanes: int, remat: str | None = None
) -> dict[tuple[str, int], int]:
    """Counts the bytes of a row that one repeat of each group keeps, by one more of each."""
    config = model.config
    sides = _SIDES[: 1 + isinstance(config, EncoderDecoderConfig)]

    def bytes_with(side: str | None = None, place: int = 0) -> int:
        stacks = {
            name: tuple(
                dataclasses.replace(group, repeat=2 + (name == side and i == place))
                for i, group in enumerate(getattr(config, name))
            )
            for name in sides
        }
        changed = dataclasses.replace(config, **stacks)
        some = cached_model(changed, model.policy, model.remat if remat is None else remat)
        return kept(some, shapes, 1, length, lanes)[0]

    base = bytes_with()
    return {
        (name, i): bytes_with(name, i) - base
        for name in sides
        for i, _ in enumerate(getattr(config, name))
    }


@functools.lru_cache(256)
def kept(
    model: Model, shapes: RowShapes, rows: int, length: int, lanes: int = 1
) -> tuple[int, ...]:
    """Counts the bytes that the backward pass of ``rows`` rows keeps besides parameters.

    Heads [rows, length, N, H] are counted as they lie, H padded to ``lanes``.

    Returns:
      (bytes without scores, bytes of scores, bytes of the first that lie between layers:
      [rows, length, D]).
    """
    treedef, arrays = shapes
    batch = treedef.unflatten(jax.ShapeDtypeStruct((rows, *size), dtype) for size, dtype in arrays)
    params = model.abstract_params()

    def pullback(params: Any, batch: Any) -> Any:
        return jax.vjp(lambda p: model.loss(p, batch)[0], params)[1]

    found = jax.tree.leaves(jax.eval_shape(pullback, params, batch))
    scores = [x for x in found if x.shape[-2:] == (length, length)]
    known = sum(size_of(x) for x in jax.tree.leaves(params))
    held = sum(size_of(x) for x in found) - sum(map(size_of, scores))
    for x in found:
        if x.shape[-4:-2] == (rows, length) and (beyond := -x.shape[-1] % lanes):
            held += size_of(x) // x.shape[-1] * beyond
    # Where a parameter itself is kept (under remat), it is no copy.
    shapes_of_params = {(x.shape, x.dtype) for x in jax.tree.leaves(params)}
    same = sum(size_of(x) for x in found if (x.shape, x.dtype) in shapes_of_params)
    between = sum(size_of(x) for x in found if x.shape[-3:] == (rows, length, model.config.d_model))
    return held - min(same, known), sum(map(size_of, scores)), between
