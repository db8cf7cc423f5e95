"""Fifty steps of supervised fine-tuning from the same weights on the same batches as TRL's."""

from __future__ import annotations

import jax
import numpy as np
import pytest

pytest.importorskip("trl")

import trl_peer
from cases import GOLDEN

from t5x_llm.core.dtypes import Policy
from t5x_llm.data.batch import Batch
from t5x_llm.hf.import_ import import_model
from t5x_llm.models.model import Model
from t5x_llm.optim import Optimizer, Schedule
from t5x_llm.parallel import MeshConfig, make_mesh
from t5x_llm.train.state import place, state_from_params
from t5x_llm.train.step import StepOptions, make_train_step
from t5x_llm.train.task import LmTask

MODEL = GOLDEN / "llama_untied"
OPTIMIZER = Optimizer(
    name="adamw",
    schedule=Schedule(name="constant", peak=trl_peer.LEARNING_RATE, warmup_steps=0),
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    weight_decay=0.0,
    clip_norm=1.0,
)


def batch(rows: list[list[trl_peer.Example]], length: int) -> Batch:
    """Rows of one or more examples each, one a segment."""
    shape = (len(rows), length)
    names = ("tokens", "targets", "positions", "segment_ids")
    arrays = {name: np.zeros(shape, np.int32) for name in names}
    mask = np.zeros(shape, np.float32)
    for i, row in enumerate(rows):
        at = 0
        for number, example in enumerate(row, start=1):
            size = len(example.ids) - 1
            here = slice(at, at + size)
            arrays["tokens"][i, here] = example.ids[:-1]
            arrays["targets"][i, here] = example.ids[1:]
            arrays["positions"][i, here] = np.arange(size)
            arrays["segment_ids"][i, here] = number
            mask[i, here] = np.arange(1, size + 1) >= example.begin
            at += size
    return Batch(**arrays, loss_mask=mask, source=np.zeros(len(rows), np.int32))


def our_losses(steps: list[list[trl_peer.Example]], packed: bool, microbatches: int) -> list[float]:
    """Our loss before each step; with ``packed`` all examples of a step share one row."""
    family, params, *_ = import_model(MODEL, check=False)
    model = Model(family.decoder(), Policy(compute="float32"))
    length = trl_peer.LENGTH * (trl_peer.ROWS if packed else 1)
    task = LmTask(model, length, ("chat",))
    tx = OPTIMIZER.build(len(steps), task.logical_axes())
    config = MeshConfig()
    placement = place(task, tx, make_mesh(config, jax.devices()[:1]), config.rules())
    step = make_train_step(
        task, tx, placement, StepOptions(OPTIMIZER.schedule.build(len(steps)), microbatches)
    )
    state, losses = state_from_params(params, task, tx, placement), []
    for examples in steps:
        rows = [examples] if packed else [[example] for example in examples]
        state, metrics = step(state, batch(rows, length))
        losses.append(float(metrics["loss"]))
    return losses


@pytest.fixture(scope="module")
def steps():
    return trl_peer.examples(64)


@pytest.fixture(scope="module")
def theirs(steps):
    return trl_peer.losses(MODEL, steps)


@pytest.mark.parametrize(("packed", "microbatches"), [(False, 1), (False, 2), (True, 1)])
def test_losses_are_trls(steps, theirs, packed, microbatches):
    ours = np.array(our_losses(steps, packed, microbatches))
    gap = ours - np.array(theirs)
    print(f"largest {np.abs(gap).max():.2e}, mean {gap.mean():.2e}, last loss {ours[-1]:.4f}")
    assert ours[-1] < 0.8 * ours[0]
    assert np.abs(gap).max() <= 1e-4
    assert abs(gap.mean()) <= 1e-5
