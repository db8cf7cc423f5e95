"""A whole guarded run in this process: real model, step, checkpoints, journal; made-up rows."""

import dataclasses

import jax
import numpy as np
from steps import prepare

from t5x_llm.checkpoint import CheckpointConfig, Checkpointer
from t5x_llm.core.rng import named_key
from t5x_llm.data.batch import Batch
from t5x_llm.data.blending import Blend
from t5x_llm.data.positions import DataState, Skips
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.model import Model
from t5x_llm.optim import Optimizer, Schedule
from t5x_llm.parallel import MeshConfig, make_mesh
from t5x_llm.train.config import Loop
from t5x_llm.train.feed import StreamFeed
from t5x_llm.train.hooks import Checkpoint, Hook, JsonLines, Metrics, resume
from t5x_llm.train.hooks.guard import Guard
from t5x_llm.train.hooks.journal import Journaling
from t5x_llm.train.journal import Journal, read_journal
from t5x_llm.train.loop import RunRecord, Trainer, train
from t5x_llm.train.recovery import Origin, Recovery
from t5x_llm.train.spike import SpikeConfig
from t5x_llm.train.state import init_state
from t5x_llm.train.step import signal_rows

FAMILY = Llama(vocab_size=64, d_model=32, n_layers=2, n_heads=4, d_ff=64)
T, B = 16, 8
SPIKE = SpikeConfig(window=32, warmup=16, rewind_steps=8, skip_batches=30, rewind_window=400)


class Rows:
    """Counting in steps of 1 to 8 from random starts, a pure function of the stream position.

    Args:
      poison: [first, stop) of the stream positions whose rows are noise.
      skips: of stream positions.
    """

    def __init__(self, poison=(0, 0), skips=()):
        self.poison, self.skips, self.asked = poison, Skips(skips), []

    def at(self, data):
        rows = Rows(self.poison, data.skips)
        rows.asked = self.asked
        return rows

    def batch(self, position, size, rows=None):
        index = np.arange(position, position + size)[rows or slice(None)]
        text = np.stack([self.row(int(i)) for i in self.skips.stream_positions(index)])
        ones = np.ones((len(index), T), np.int32)
        places = np.broadcast_to(np.arange(T, dtype=np.int32), ones.shape)
        self.asked.append((position, size))
        return Batch(text[:, :-1], text[:, 1:], places, ones, ones.astype(np.float32), index % 2)

    def row(self, at):
        rng = np.random.default_rng(at)
        if self.poison[0] <= at < self.poison[1]:
            # The same wrong lesson in every row, which is what moves a model.
            return (np.arange(T + 1) * 37 + 5 * (at % 3)).astype(np.int32) % 64
        start, stride = rng.integers(64), rng.integers(1, 9)
        return ((start + stride * np.arange(T + 1)) % 64).astype(np.int32)


@dataclasses.dataclass
class Outcome:
    """Outcome of a run: its trainer, losses by step, journal, and loss on rows it never read."""

    run: Trainer
    losses: dict
    journal: list
    held_out: float


class Losses(Hook):
    """Keeps the loss of every step that was delivered."""

    name = "losses"

    def __init__(self):
        self.by_step = {}

    def on_step(self, trainer, record):
        self.by_step[record.step] = record.values["loss"]


def live(
    directory,
    config,
    parts,
    stream,
    *,
    spike=SPIKE,
    skips=(),
    every=10,
    keep=100,
    wrap=lambda step: step,
    extra=(),
):
    """Runs one process, from wherever ``directory`` stands to the last step or an error.

    Args:
      config: the ``Loop``.
      parts: of ``steps.prepare``, guarded.
      wrap: the guarded step -> the step to use.
      extra: further hooks, before the checkpoint.
    """
    journal = Journal(directory / "journal.jsonl")
    checkpointer = Checkpointer(
        directory / "checkpoints", CheckpointConfig(every_steps=every, keep=keep)
    )
    guard = Guard(spike, journal.decisions, lambda signals: signal_rows(parts.mesh, signals))
    metrics = Metrics([JsonLines(directory / "metrics.jsonl")])
    hooks = [Journaling(journal), metrics, *extra, guard]
    hooks.append(Checkpoint(checkpointer, {"model": FAMILY}))

    def load(at):
        if at is None:
            key = named_key(0, "params")
            fresh = init_state(parts.task, parts.tx, key, parts.placement)
            return fresh, DataState(skips=tuple(skips)), {}
        state, meta = resume(checkpointer, parts.abstract(), {"model": FAMILY}, step=at)
        return state, DataState.from_json(meta["data"]), meta

    def describe(data, first, count):
        return {"documents": [first, count]}

    blend = Blend(("en", "zh"), ((0, {"en": 1, "zh": 1}),))
    recovery = Recovery(spike, checkpointer, hooks, journal, Origin(load, describe, blend))
    try:
        record = RunRecord(directory, journal=journal)
        trainer = Trainer(config, recovery.begin(), parts.task.measures, hooks, record)
        feed = StreamFeed(stream, config.size_at, parts.placement)
        train(trainer, wrap(parts.step), feed, recovery.rewind)
    finally:
        checkpointer.close()
        journal.close()
    return trainer


def go(directory, steps, *, stream=None, spike=SPIKE, skips=(), every=10, keep=100,
       wrap=lambda step: step, extra=(), **loop):  # fmt: skip
    """Runs one process of language modelling; see ``live``."""
    config = Loop(**{"steps": steps, "batch_size": B, "sequence_length": T, "log_every": 1} | loop)
    mesh_config = MeshConfig(fsdp=1)
    mesh, rules = make_mesh(mesh_config, jax.devices()[:1]), mesh_config.rules()
    model, losses = Model(FAMILY.decoder()), Losses()
    optimizer = Optimizer(schedule=Schedule(name="constant", peak=3e-3, warmup_steps=10))
    parts = prepare(model, optimizer, mesh, rules, steps=steps, sources=("en", "zh"), guarded=True)
    run = live(
        directory, config, parts, stream or Rows(), spike=spike, skips=skips, every=every,
        keep=keep, wrap=wrap, extra=(losses, *extra),
    )  # fmt: skip
    journal = read_journal(directory / "journal.jsonl")
    return Outcome(run, losses.by_step, journal, held_out(model, run.state.params))


def held_out(model, params):
    """Returns the mean loss on 64 rows that no run reads, nats per token."""
    batch = Rows().batch(10**9, 64)
    return float(jax.jit(lambda p: model.loss(p, batch)[0])(params)) / (64 * T)


def equal(a, b):
    """Returns True if two pytrees of arrays are the same to the bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)
