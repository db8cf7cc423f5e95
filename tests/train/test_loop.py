"""The loop: it learns, never waits, stops, and continues after a kill as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
import toy
from clocks import Clock, until

from t5x_llm.checkpoint import CheckpointConfig, Checkpointer
from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.data.positions import DataState
from t5x_llm.optim import BatchRamp
from t5x_llm.train.config import Loop
from t5x_llm.train.hooks import Checkpoint, Hook, JsonLines, Metrics, read_lines, resume
from t5x_llm.train.loop import LAG, RunRecord, Start, Trainer, train

COURSE = Loop(steps=23, batch_size=8, sequence_length=16, log_every=5)
TIMES = ("tokens_per_second", "data_wait")


class Watch(Hook):
    """Notes all that happens."""

    name = "watch"

    def __init__(self, crash_at=None):
        self.seen, self.records, self.crash_at = [], [], crash_at

    def on_start(self, run):
        self.seen.append(("start", run.step))

    def on_dispatch(self, run):
        self.seen.append(("dispatch", run.step))
        if run.step == self.crash_at:
            raise KeyboardInterrupt

    def on_step(self, run, record):
        self.seen.append(("step", record.step))
        self.records.append(record)

    def on_end(self, run, error):
        self.seen.append(("end", type(error).__name__))


def go(directory, config=COURSE, hooks=(), stream=None, every=5, identity="a"):
    """What a training program does, on the toy."""
    keeper = Checkpointer(directory / "checkpoints", CheckpointConfig(every_steps=every))
    facts = {"model": {"class": "Toy", "name": identity}}
    metrics = Metrics([JsonLines(directory / "metrics.jsonl")])
    hooks = [metrics, *hooks, Checkpoint(keeper, facts)]
    state, data = toy.init(), DataState()
    if keeper.latest_step() is not None:
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        state, meta = resume(keeper, abstract, facts, hooks)
        data = DataState.from_json(meta["data"])
    stream = stream or toy.ToyStream()
    run = Trainer(config, Start(state, data), toy.MEASURES, hooks, RunRecord(directory))
    try:
        train(run, toy.step, toy.feed(stream, config.size_at, config.prefetch))
    finally:
        keeper.close()
    return run


def without_times(directory):
    lines = [line for line in read_lines(directory / "metrics.jsonl") if line["kind"] != "start"]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def compare(directory):
    """The two records agree in every figure but those of time."""
    whole, cut = without_times(directory / "whole"), without_times(directory / "cut")
    assert [line["step"] for line in whole] == [line["step"] for line in cut]
    for a, b in zip(whole, cut, strict=True):
        assert {k: (a[k], b[k]) for k in a if a[k] != b.get(k)} == {}


def test_it_learns_and_stops(tmp_path):
    run = go(tmp_path, Loop(steps=300, batch_size=8, sequence_length=16, log_every=50), every=0)
    assert run.step == 300 and int(run.state.step) == 300 and run.data.position == 2400
    lines = without_times(tmp_path)
    assert [line["step"] for line in lines] == [50, 100, 150, 200, 250, 300]
    # Half of the tokens can be predicted, half are one of 32.
    assert lines[0]["loss"] > 3.0 and lines[-1]["loss"] < 2.6
    assert lines[-1]["tokens_by_source"] == {"en": 300 * 64, "zh": 300 * 64}
    assert lines[-1]["tokens"] == 300 * 128 and lines[-1]["examples"] == 2400
    assert sorted(lines[-1]["loss_by_source"]) == ["en", "zh"]


def test_metrics_lag_behind_the_device(tmp_path):
    watch = Watch()
    go(tmp_path, hooks=[watch], every=0)
    order = watch.seen
    assert order[0] == ("start", 0) and order[-1] == ("end", "NoneType")
    for step in range(LAG + 2, COURSE.steps - 1):
        # The first step settles nothing but itself; later ones are read LAG dispatches on.
        assert order.index(("step", step)) > order.index(("dispatch", step))
        assert order.index(("step", step)) < order.index(("dispatch", step + LAG))
    assert [r.step for r in watch.records] == list(range(1, COURSE.steps + 1))
    assert watch.records[0].compiled and not any(r.compiled for r in watch.records[1:])
    assert [r.position for r in watch.records] == [8 * s for s in range(1, COURSE.steps + 1)]


@pytest.mark.parametrize("crash", [7, 10, 11])
def test_interrupted_and_resumed_is_the_same_run(tmp_path, crash):
    whole = go(tmp_path / "whole")
    watch = Watch(crash)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", hooks=[watch])
    assert watch.seen[-1] == ("end", "KeyboardInterrupt")
    stream = toy.ToyStream()
    watch = Watch()
    again = go(tmp_path / "cut", hooks=[watch], stream=stream)
    # Hooks before the last saw the crash before the save of step 10.
    start = 5 if crash <= 10 else 10
    assert watch.seen[0] == ("start", start) and stream.asked[0] == (8 * start, 8)
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(again.state), strict=True):
        assert np.array_equal(a, b)
    compare(tmp_path)


def test_finished_run_is_left_alone(tmp_path):
    first = go(tmp_path)
    again = go(tmp_path, stream=toy.ToyStream(fail_at=10**9))
    assert again.step == first.step
    assert [line["step"] for line in without_times(tmp_path)] == [5, 10, 15, 20, 23]


def test_resume_with_another_config_names_the_field(tmp_path):
    go(tmp_path)
    with pytest.raises(CheckpointError, match="Toy.name: 'a' -> 'b'"):
        go(tmp_path, identity="b")


KILLED = """
import pathlib, sys, threading
sys.path[:0] = sys.argv[2:]
import test_loop
from t5x_llm.train.hooks import Hook
class Stay(Hook):
    name = "stay"
    def on_dispatch(self, run):
        print(run.step, flush=True)
        if run.step == 16:
            threading.Event().wait()
test_loop.go(pathlib.Path(sys.argv[1]), hooks=[Stay()], every=3)
"""


def test_sigkill(tmp_path):
    whole = go(tmp_path / "whole", every=3)
    here = os.path.dirname(os.path.abspath(__file__))
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(tmp_path / "cut"), here, os.path.dirname(here)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) == 16:
            child.send_signal(signal.SIGKILL)
            break
    assert child.wait() == -signal.SIGKILL
    reader = Checkpointer(tmp_path / "cut" / "checkpoints", read_only=True)
    assert 3 <= reader.latest_step() <= 15
    again = go(tmp_path / "cut", every=3)
    assert again.step == whole.step
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(again.state), strict=True):
        assert np.array_equal(a, b)
    compare(tmp_path)


def test_batch_ramp_counts_examples(tmp_path):
    ramp = BatchRamp(((0, 2), (8, 4), (24, 8)))
    config = Loop(steps=10, batch_size=8, sequence_length=16, ramp=ramp, log_every=1)
    watch = Watch()
    run = go(tmp_path, config, [watch])
    assert [r.size for r in watch.records] == [2, 2, 2, 2, 4, 4, 4, 4, 8, 8]
    assert run.data.position == config.examples == 40
    assert [r.step for r in watch.records if r.compiled] == [1, 5, 9]


def test_error_of_the_stream_reaches_the_caller(tmp_path):
    watch = Watch()
    with pytest.raises(OSError, match="the disk is gone"):
        go(tmp_path, hooks=[watch], stream=toy.ToyStream(fail_at=80))
    assert watch.seen[-1] == ("end", "OSError")
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


def test_nothing_waits_for_data_or_metrics(tmp_path):
    """The next batch is made while a step runs, and nobody asks for that step's metrics."""
    stream, watch, steps = toy.ToyStream(), Watch(), []

    def step(state, batch):
        steps.append(batch)
        until(lambda: len(stream.asked) > len(steps))
        delivered = [n for what, n in watch.seen if what == "step"]
        # The first step is compiled, and read at once.
        assert len(delivered) <= max(len(steps) - LAG, 1)
        return toy.step(state, batch)

    record = RunRecord(tmp_path)
    run = Trainer(COURSE, Start(toy.init(), DataState()), toy.MEASURES, [watch], record)
    train(run, step, toy.feed(stream, COURSE.size_at))
    assert len(watch.records) == len(steps) == COURSE.steps


def test_pauses_are_not_the_steps_time(tmp_path, monkeypatch):
    monkeypatch.setattr("t5x_llm.train.loop.time", clock := Clock())

    class Pause(Hook):
        name = "pause"

        def on_dispatch(self, run):
            if run.step == 10:
                with run.paused("nap"):
                    clock.now += 100
            clock.now += 1

    watch = Watch()
    run = go(tmp_path, hooks=[Pause(), watch], every=0)
    assert run.seconds["nap"] == 100
    assert sum(r.seconds for r in watch.records) == COURSE.steps


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"steps": 0}, "Loop.steps"),
        ({"batch_size": 0}, "Loop.batch_size"),
        ({"sequence_length": 1}, "Loop.sequence_length"),
        ({"microbatches": 3}, "Loop.microbatches"),
        ({"log_every": 0}, "Loop.log_every"),
        ({"profile_steps": (5, 3)}, "Loop.profile_steps"),
        ({"ramp": BatchRamp(((0, 2), (8, 4)))}, "Loop.batch_size"),
    ],
)
def test_loop_config_refuses(bad, field):
    with pytest.raises(ConfigError, match=field):
        Loop(**({"steps": 5, "batch_size": 8, "sequence_length": 16} | bad))


def test_meta_is_plain_json(tmp_path):
    go(tmp_path)
    path = tmp_path / "checkpoints" / "23" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    assert meta["step"] == 23 and meta["data"]["position"] == 23 * 8
    assert set(meta["hooks"]) == {"metrics", "checkpoint"}
