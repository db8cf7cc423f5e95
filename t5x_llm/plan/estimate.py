"""Estimates the bytes that a device holds during a train step, from abstract values alone."""

from __future__ import annotations

import dataclasses
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
from t5x_llm.plan.layer_memory import RowShapes, kept, layer_memory, size_of
from t5x_llm.run.assembled import Assembled
from t5x_llm.run.config import Run
from t5x_llm.train.scoring import ScoringTask
from t5x_llm.train.task import TrainTask

# Rows of logits that the loss holds at once, see objectives/lm.py.
_LOGIT_ROWS = 512
_TPU_LANES = 128


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
        one's, the next, and gradients; and ``layer``), the embedding's gradient (that of a whole
        table, twice); ``logits`` is part of the first.
      layer: values of the layer that the backward pass is at: those that it computes again, the
        gradients of all, and the layer's input and output's gradient, whole.
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
    layer: int
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


def estimate(assembled: Assembled, lanes: int | None = None) -> Estimate:
    """Estimates the memory of a device.

    Activations are those of the model that one device computes (its rows, its share of heads,
    feed-forward and vocabulary), found by differentiating the task's loss with it abstractly for
    one row and for two: activations grow with the rows, casts of parameters do not.

    Args:
      assembled: the run; the devices of its mesh need not exist.
      lanes: numbers that a row of an array in memory is a multiple of, on which narrow heads lie
        padded: 128 on TPU, 1 elsewhere; None for what the mesh's devices have, TPUs' where they
        do not exist.
    """
    run, model, task = assembled.run, assembled.model, assembled.task
    mesh, rules = assembled.mesh, assembled.rules
    state, shardings = assembled.state, assembled.placement.state
    params = _held(state.params, shardings.params)
    trained = _held(task.trained_part(state.params), task.trained_part(shardings.params))
    whole = sum(size_of(x) for x in jax.tree.leaves(state.params))

    rows = -(-run.loop.batch_size // run.loop.microbatches // ways(mesh, rules, "batch"))
    length = run.loop.sequence_length // ways(mesh, rules, "length")
    staged = plan_pipeline(model.config, mesh, rules)
    local = cached_model(_local(model.config, mesh, rules, staged), model.policy, model.remat)
    traced = _unmistakable(length, local)
    shapes = _row_shapes(task, run.loop.sequence_length, traced)
    lanes = _lanes(mesh) if lanes is None else lanes
    one, two = (kept(local, shapes, n, traced, lanes) for n in (1, 2))
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
    at_once = rows if staged is None else -(-rows // staged[0].microbatches)
    tokens = _lengths(model.config, task, run.loop.sequence_length, length)
    layers = layer_memory(local, shapes, traced, lanes, tokens)
    layers = {name: size * at_once for name, size in layers.items()}
    return Estimate(
        params=params,
        gradients=trained * buffers,
        buffers=buffers,
        optimizer=_held(state.opt_state, shardings.opt_state),
        activations=per_row * rows * length // traced,
        casts=round(casts * params / whole),
        logits=logits,
        working=_working(work, logits, layers) + _dequantised(work, run),
        layer=max(layers.values()),
        scores=scores * rows * length**2 // traced**2,
    )


def _working(work: StepWork, logits: int, layers: dict[str, int]) -> int:
    """Counts what the fullest moment has besides state, gradients, activations and casts.

    Parameters that lie as they are used add nothing: their gradients are counted whole already.
    """
    tables = [used for used, whole in work.tables() if not whole]
    head = max(tables, default=0)
    gradient = 4 * head if 4 * head <= WHOLE else BLOCK
    loss = logits + work.itemsize * head + gradient * bool(head)
    kernels = gathered(work)
    layer = max(3 * kernels.get(name, 0) // 2 + size for name, size in layers.items())
    return max(loss, layer, 2 * work.itemsize * head)


def _lengths(config: DecoderConfig, task: TrainTask, whole: int, length: int) -> dict[str, int]:
    """Returns the positions that a device has of a row, by side: a decoder's may be other ones."""
    if not isinstance(config, EncoderDecoderConfig):
        return {"groups": length}
    return {"groups": task.abstract_batch(1).targets.shape[1] * length // whole, "encoder": length}


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


def _row_shapes(task: TrainTask, length: int, traced: int) -> RowShapes:
    """Returns the batch of a task with ``traced`` tokens for ``length``, the rest in proportion.

    A head of scores is counted as one over the vocabulary, which keeps no less.
    """
    batch = task.abstract_batch(1)
    if isinstance(task, ScoringTask):
        batch = dataclasses.replace(batch, extra={})
    leaves, treedef = jax.tree.flatten(batch)
    sizes = [tuple(n * traced // length for n in x.shape[1:2]) + x.shape[2:] for x in leaves]
    return treedef, tuple(zip(sizes, (x.dtype for x in leaves), strict=True))


def _lanes(mesh: Mesh | AbstractMesh) -> int:
    """Returns the numbers in a row of memory: of the devices, or a TPU's where none exist."""
    if isinstance(mesh, AbstractMesh):
        return _TPU_LANES
    return _TPU_LANES if mesh.devices.flat[0].platform == "tpu" else 1
