"""Estimates the bytes that a device holds during a train step, from abstract values alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from t5x_llm.models.base_storage import quantiser, storage_dtype, stored_kernels
from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.encoder_decoder import EncoderDecoderConfig
from t5x_llm.models.head import BLOCK, WHOLE
from t5x_llm.models.model import Model, cached_model
from t5x_llm.models.pipelined import plan as plan_pipeline
from t5x_llm.nn.block import GroupConfig
from t5x_llm.parallel import Rules, ways
from t5x_llm.parallel.pipeline import PipelineSchedule, StageLayout
from t5x_llm.plan.analytic import StepWork, gathered, kept_ways
from t5x_llm.run.assembled import Assembled
from t5x_llm.run.config import Run
from t5x_llm.train.scoring import ScoringTask
from t5x_llm.train.task import TrainTask

# A batch without its rows: structure, and (shape, dtype) of every array.
_RowShapes = tuple[Any, tuple[tuple[tuple[int, ...], Any], ...]]
# Rows of logits that the loss holds at once, see objectives/lm.py.
_LOGIT_ROWS = 512


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes on one device.

    Attributes:
      params: parameters, exact, from shapes and shardings.
      gradients: gradients of what is trained, exact, ``buffers`` copies.
      buffers: 1, or 2 where microbatches add up: the sum and the part being added.
      optimizer: optimizer state, exact.
      activations: values that differentiation keeps for the backward pass under the run's remat
        choice, before the compiler fuses anything; attention scores left out.
      casts: parameters in the compute dtype that it keeps, lying as the parameters lie.
      logits: float32 logits of one chunk and their gradient.
      working: what the fullest of three moments has besides: the loss (the head as it is used, its
        gradient), a layer of the backward pass (three layers' kernels in the compute dtype: this
        one's, the next, and gradients), the embedding's gradient (that of a whole table, twice);
        ``logits`` is part of the first.
      scores: [T, T] attention scores that it would keep where attention is not a fused kernel.
    """

    params: int
    gradients: int
    buffers: int
    optimizer: int
    activations: int
    casts: int
    logits: int
    working: int
    scores: int

    @property
    def total(self) -> int:
        """Sums all but the scores; of logits and working memory what the fullest moment has."""
        return (
            self.params
            + self.gradients
            + self.optimizer
            + self.activations
            + self.casts
            + self.working
        )


def estimate(assembled: Assembled) -> Estimate:
    """Estimates the memory of a device.

    Activations are those of the model that one device computes (its rows, its share of heads,
    feed-forward and vocabulary), found by differentiating the task's loss with it abstractly for
    one row and for two: activations grow with the rows, casts of parameters do not.

    Args:
      assembled: the run; the devices of its mesh need not exist.
    """
    run, model, task = assembled.run, assembled.model, assembled.task
    mesh, rules = assembled.mesh, assembled.rules
    state, shardings = assembled.state, assembled.placement.state
    params = _held(state.params, shardings.params)
    trained = _held(task.trained_part(state.params), task.trained_part(shardings.params))
    whole = sum(_bytes(x) for x in jax.tree.leaves(state.params))

    rows = -(-run.loop.batch_size // run.loop.microbatches // ways(mesh, rules, "batch"))
    length = run.loop.sequence_length // ways(mesh, rules, "length")
    staged = plan_pipeline(model.config, mesh, rules)
    local = cached_model(_local(model.config, mesh, rules, staged), model.policy, model.remat)
    traced = _unmistakable(length, local)
    shapes = _row_shapes(task, run.loop.sequence_length, traced)
    one, two = (_kept(local, shapes, n, traced) for n in (1, 2))
    per_row, scores, stream = (b - a for a, b in zip(one, two, strict=True))
    casts = max(one[0] - per_row, 0) * ways(mesh, rules, "heads") * _cast(run)
    per_row -= stream - stream // _stream_pieces(model.config, mesh, rules, length)
    if staged is not None:  # idle ticks are kept as well
        busy = staged[0].repeats * staged[0].microbatches
        per_row = per_row * staged[0].ticks // busy
    buffers = 1 + (run.loop.microbatches > 1)
    logits = 2 * 4 * rows * min(length, _LOGIT_ROWS) * local.vocab_size
    loop = run.loop
    sizes = loop.batch_size, loop.sequence_length, loop.microbatches
    work = StepWork(model, mesh, rules, *sizes, assembled.flops_per_token)
    return Estimate(
        params=params,
        gradients=trained * buffers,
        buffers=buffers,
        optimizer=_held(state.opt_state, shardings.opt_state),
        activations=per_row * rows * length // traced,
        casts=round(casts * params / whole),
        logits=logits,
        working=_working(work, logits) + _dequantised(work, run),
        scores=scores * rows * length**2 // traced**2,
    )


def _working(work: StepWork, logits: int) -> int:
    """Counts what the fullest moment has besides state, gradients, activations and casts.

    Parameters that lie as they are used add nothing: their gradients are counted whole already.
    """
    tables = [used for used, whole in work.tables() if not whole]
    head = max(tables, default=0)
    gradient = 4 * head if 4 * head <= WHOLE else BLOCK
    loss = logits + work.itemsize * head + gradient * bool(head)
    return max(loss, 3 * gathered(work) // 2, 2 * work.itemsize * head)


def _cast(run: Run) -> bool:
    """Returns False if the weights that layers use are stored in the compute dtype, or few bits."""
    if run.adapter is None:
        return True
    same = storage_dtype(run.storage) == run.precision.compute_dtype
    return quantiser(run.storage) is None and not same


def _dequantised(work: StepWork, run: Run) -> int:
    """Counts the kernels of a frozen base in few bits as they are used: this one and the next."""
    if run.adapter is None:
        return 0
    kernels = stored_kernels(run.build_model(), run.storage)
    used = [
        math.prod(x.shape[1:]) / math.prod(kept_ways(work, names, x.shape)[1:])
        for path, x, names in work.leaves()
        if path in kernels
    ]
    return int(2 * work.itemsize * max(used, default=0))


def _stream_pieces(
    config: DecoderConfig, mesh: Mesh | AbstractMesh, rules: Rules, length: int
) -> int:
    """Counts the pieces of what is kept between layers, besides those of the sequence in them."""
    pieces = ways(mesh, rules, "stream") // ways(mesh, rules, "length")
    return pieces if length % pieces == 0 or config.d_model % pieces == 0 else 1


def _bytes(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.shape) * x.dtype.itemsize


def _held(tree: Any, shardings: Any) -> int:
    """Counts the bytes of a tree in one device's own memory; the host's are left out."""
    sizes = jax.tree.map(
        lambda x, s: (
            math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize * (s.memory_kind != "pinned_host")
        ),
        tree,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def _local(
    config: DecoderConfig,
    mesh: Mesh | AbstractMesh,
    rules: Rules,
    staged: tuple[PipelineSchedule, StageLayout] | None = None,
) -> DecoderConfig:
    """Returns the decoder that one device computes: its share of what the mesh cuts."""

    def share(axis: str, count: int) -> int:
        pieces = ways(mesh, rules, axis)
        return count // pieces if count % pieces == 0 else count

    def layer(part: Any) -> Any:
        fields = {f.name for f in dataclasses.fields(part)}
        sizes = {}
        for axis, name in (("heads", "n_heads"), ("mlp", "d_ff"), ("inner", "d_inner")):
            if name in fields:
                sizes[name] = share(axis, getattr(part, name))
        if "n_kv_heads" in fields:
            kv_heads = share("kv_heads", part.n_kv_heads)
            sizes["n_kv_heads"] = math.gcd(sizes["n_heads"], kv_heads)
        if "n_groups" in fields:
            sizes["n_groups"] = math.gcd(sizes["n_heads"], share("kv_heads", part.n_groups))
        if "relative" in fields:
            sizes["relative"] = dataclasses.replace(part.relative, n_heads=sizes["n_heads"])
        return dataclasses.replace(part, **sizes)

    def block(b: Any) -> Any:
        parts = {
            "mixer": b.mixer,
            "feed_forward": b.feed_forward,
            "cross": getattr(b, "cross", None),
        }
        return dataclasses.replace(b, **{k: layer(x) for k, x in parts.items() if x is not None})

    def stack(groups: tuple[GroupConfig, ...]) -> tuple[GroupConfig, ...]:
        return tuple(
            dataclasses.replace(
                group,
                blocks=tuple(block(b) for b in group.blocks),
                repeat=group.repeat if staged is None else staged[1].repeats * staged[1].slots,
            )
            for group in groups
        )

    sides: dict[str, Any] = {"groups": stack(config.groups)}
    if isinstance(config, EncoderDecoderConfig):
        sides["encoder"] = stack(config.encoder)
    vocab = share("vocab", config.vocab_size)
    if config.tied and config.logit_softcap is None:  # the table is padded, see nn/dense.py
        vocab = -(-config.vocab_size // ways(mesh, rules, "vocab"))
    return dataclasses.replace(config, **sides, vocab_size=vocab)


def _unmistakable(length: int, model: Model) -> int:
    """Returns a length that no parameter has as a dimension, by which scores are recognised.

    Activations grow with the length and scores with its square, so that another will do.
    """
    sizes = {n for x in jax.tree.leaves(model.abstract_params()) for n in x.shape}
    while length in sizes:
        length *= 2
    return length


def _row_shapes(task: TrainTask, length: int, traced: int) -> _RowShapes:
    """Returns the batch of a task with ``traced`` tokens for ``length``, the rest in proportion.

    A head of scores is counted as one over the vocabulary, which keeps no less.
    """
    batch = task.abstract_batch(1)
    if isinstance(task, ScoringTask):
        batch = dataclasses.replace(batch, extra={})
    leaves, treedef = jax.tree.flatten(batch)
    sizes = [tuple(n * traced // length for n in x.shape[1:2]) + x.shape[2:] for x in leaves]
    return treedef, tuple(zip(sizes, (x.dtype for x in leaves), strict=True))


@functools.lru_cache(256)
def _kept(model: Model, shapes: _RowShapes, rows: int, length: int) -> tuple[int, ...]:
    """Counts the bytes that the backward pass of ``rows`` rows keeps besides parameters.

    Returns:
      (bytes without scores, bytes of scores, bytes of the first that lie between layers:
      [rows, length, D]).
    """
    treedef, arrays = shapes
    batch = treedef.unflatten(jax.ShapeDtypeStruct((rows, *size), dtype) for size, dtype in arrays)
    params = model.abstract_params()

    def pullback(params: Any, batch: Any) -> Any:
        return jax.vjp(lambda p: model.loss(p, batch)[0], params)[1]

    kept = jax.tree.leaves(jax.eval_shape(pullback, params, batch))
    scores = [x for x in kept if x.shape[-2:] == (length, length)]
    known = sum(_bytes(x) for x in jax.tree.leaves(params))
    held = sum(_bytes(x) for x in kept) - sum(map(_bytes, scores))
    # Where a parameter itself is kept (under remat), it is no copy.
    shapes_of_params = {(x.shape, x.dtype) for x in jax.tree.leaves(params)}
    same = sum(_bytes(x) for x in kept if (x.shape, x.dtype) in shapes_of_params)
    between = sum(_bytes(x) for x in kept if x.shape[-3:] == (rows, length, model.config.d_model))
    return held - min(same, known), sum(map(_bytes, scores)), between
