"""The real model, step and mesh under the loop: resumed runs, other meshes, the whole record."""

import dataclasses

import jax
import numpy as np
import pytest
from steps import prepare

from t5x_llm.checkpoint import CheckpointConfig, Checkpointer
from t5x_llm.data.batch import Batch
from t5x_llm.data.positions import DataState
from t5x_llm.evaluate.hooks import EvaluationHook
from t5x_llm.evaluate.perplexity import Evaluator, HeldOut
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.model import Model
from t5x_llm.optim import Optimizer, Schedule
from t5x_llm.parallel import MeshConfig, make_mesh
from t5x_llm.train.config import Loop
from t5x_llm.train.feed import StreamFeed
from t5x_llm.train.hooks import Checkpoint, JsonLines, Metrics, read_lines, resume
from t5x_llm.train.loop import RunRecord, Start, Trainer, train
from t5x_llm.train.report import write_report

FAMILY = Llama(vocab_size=64, d_model=32, n_layers=2, n_heads=4, d_ff=64)
T = 16


class Rows:
    """Counting upwards from random starts, in two sources."""

    def at(self, data):
        return self

    def batch(self, position, size, rows=None):
        index = np.arange(position, position + size)[rows or slice(None)]
        starts = np.array([np.random.default_rng(int(i)).integers(64) for i in index])
        text = ((starts[:, None] + np.arange(T + 1)) % 64).astype(np.int32)
        ones = np.ones((len(index), T), np.int32)
        places = np.broadcast_to(np.arange(T, dtype=np.int32), ones.shape)
        mask = ones.astype(np.float32)
        return Batch(text[:, :-1], text[:, 1:], places, ones, mask, (index % 2).astype(np.int32))


class Texts:
    tokens = 60

    def __len__(self):
        return 3

    def document(self, i):
        return np.arange(20 * i, 20 * i + 20) % 64

    def document_bytes(self, i):
        return 20


def go(directory, steps, **axes):
    """One training program from start to end."""
    config = Loop(steps=steps, batch_size=8, sequence_length=T, log_every=2, microbatches=2)
    mesh_config = MeshConfig(**({"fsdp": 1} | axes))
    mesh, rules = make_mesh(mesh_config, jax.devices()[: np.prod([*axes.values(), 1])]), None
    rules = mesh_config.rules()
    model = Model(FAMILY.decoder())
    schedule = Schedule(peak=1e-2, warmup_steps=2, total_steps=12)
    parts = prepare(
        *(model, Optimizer(schedule=schedule), mesh, rules),
        steps=12,
        sources=("odd", "even"),
        microbatches=2,
    )
    keeper = Checkpointer(directory / "checkpoints", CheckpointConfig(every_steps=4))
    evaluator = Evaluator(model, mesh, rules, T, 8)
    hooks = [
        Metrics([JsonLines(directory / "metrics.jsonl")]),
        EvaluationHook(evaluator, [HeldOut("count", Texts(), "en")]),
        Checkpoint(keeper, {"model": FAMILY}),
    ]
    data = DataState()
    if keeper.latest_step() is None:
        state = parts.init()
    else:
        state, meta = resume(keeper, parts.abstract(), {"model": FAMILY}, hooks)
        data = DataState.from_json(meta["data"])
    start, record = Start(state, data), RunRecord(directory)
    run = Trainer(config, start, parts.task.measures, hooks, record)
    try:
        train(run, parts.step, StreamFeed(Rows(), config.size_at, parts.placement))
    finally:
        keeper.close()
    return run


def record(directory, kind):
    speed = ("tokens_per_second", "data_wait")
    lines = [line for line in read_lines(directory / "metrics.jsonl") if line["kind"] == kind]
    return [{k: v for k, v in line.items() if k not in speed} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return directory, go(directory, 12, fsdp=2, tensor=2)


def test_it_learns_and_reports(whole):
    directory, _ = whole
    lines = record(directory, "train")
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.2
    assert lines[-1]["tokens_by_source"] == {"odd": 12 * 4 * T, "even": 12 * 4 * T}
    (held,) = record(directory, "eval")
    assert held["step"] == 12 and held["results"]["count"]["tokens"] == 57
    write_report(directory)
    assert (directory / "report.html").exists() and (directory / "loss.png").exists()


def test_resumed_run_is_the_same_to_the_bit(whole, tmp_path):
    directory, run = whole
    go(tmp_path, 6, fsdp=2, tensor=2)
    again = go(tmp_path, 12, fsdp=2, tensor=2)
    for a, b in zip(jax.tree.leaves(run.state), jax.tree.leaves(again.state), strict=True):
        assert np.array_equal(a, b)
    assert record(directory, "train") == record(tmp_path, "train")


def test_resumed_on_another_mesh(whole, tmp_path):
    directory, run = whole
    go(tmp_path, 6, fsdp=2, tensor=2)
    again = go(tmp_path, 12, data=2, fsdp=4)
    wanted, got = record(directory, "train"), record(tmp_path, "train")
    assert [line["step"] for line in got] == [line["step"] for line in wanted]
    for a, b in zip(wanted, got, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-2)
        assert b["tokens_by_source"] == a["tokens_by_source"]
    assert again.data.position == run.data.position


def test_restored_from_a_chosen_step(whole, tmp_path):
    directory, _ = whole
    reader = Checkpointer(directory / "checkpoints", read_only=True)
    assert reader.steps() == [4, 8, 12]
    model = Model(FAMILY.decoder())
    mesh_config = MeshConfig()
    mesh = make_mesh(mesh_config, jax.devices()[:1])
    optimizer = Optimizer(schedule=Schedule(warmup_steps=2))
    parts = prepare(model, optimizer, mesh, mesh_config.rules(), steps=12)
    state, meta = reader.restore(parts.abstract(), 8)
    assert int(state.step) == meta["step"] == 8 and meta["data"]["position"] == 64
    assert dataclasses.asdict(DataState.from_json(meta["data"]))["position"] == 64
