"""Planned changes against true spikes: series of real runs, and the names of phases.

``recorded.json`` holds losses and gradient norms of real runs, made by tests/bench/recovery.py.
"""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest

from t5x_llm.data.positions import DataState
from t5x_llm.optim import BatchRamp, Piecewise, Schedule
from t5x_llm.train.config import Loop
from t5x_llm.train.hooks.guard import Guard
from t5x_llm.train.planned import Doublings, RunPhases
from t5x_llm.train.spike import SETTLE, Phase, SpikeConfig, SpikeMonitor

RECORDED = json.loads((pathlib.Path(__file__).parent / "recorded.json").read_text())
HARMS = [name for name in RECORDED if name not in ("stage", "no harm", "plan")]


def recorded(name):
    return [tuple(row) for row in RECORDED[name]["steps"]]


def watch(steps, phase=lambda step: Phase()):
    """The first spike, or None, and the bad steps before it."""
    monitor, bad = SpikeMonitor(SpikeConfig()), []
    for step, loss, norm in steps:
        found = monitor.observe(step, loss, norm, phase=phase(step))
        if found.bad:
            bad.append(step)
        if found.spike:
            return found.spike, bad
    return None, bad


def test_a_recorded_stage_is_a_spike_only_if_nobody_planned_it():
    steps, change = recorded("stage"), RECORDED["stage"]["change"]
    spike, _ = watch(steps)
    assert spike.onset == change
    assert watch(steps, lambda step: Phase(str(step >= change))) == (None, [])


def test_a_run_through_all_that_is_planned_gives_no_alarm():
    """Stages of three languages, a ramp; resumed with other rates, peak, parts, and more steps."""
    stages, lives = (200, 400, 600, 700), (300, 700, 800, 900, 1000, 1200)

    def phase(step):
        return Phase(*(str(sum(step > at for at in each)) for each in (stages, lives)))

    assert watch(recorded("plan"), phase) == (None, [])


def test_an_ordinary_recorded_run_gives_no_alarm():
    assert watch(recorded("no harm")) == (None, [])


@pytest.mark.parametrize("near", [None, 1, 10, 40, 80])
@pytest.mark.parametrize("harm", HARMS)
def test_recorded_spikes_are_found_far_from_and_soon_after_a_change_of_the_course(harm, near):
    """The smallest of them is not told from what a planned rate may do."""
    onset = RECORDED[harm]["onset"]
    steps = recorded(harm)
    spike, _ = watch(steps, lambda step: Phase("", str(near and step >= onset - near)))
    if harm == "rate x10" and near is not None:
        return
    assert onset <= spike.onset <= onset + 3 and spike.detected <= onset + 16


@pytest.mark.parametrize("near", [20, 40, 80])
def test_a_recorded_spike_is_found_soon_after_a_stage(near):
    """The harm of one run, as rises of loss and norm, on the run with the stage."""
    change, clean = RECORDED["stage"]["change"], {s: (x, g) for s, x, g in recorded("no harm")}
    harm = {s: (x - clean[s][0], g / clean[s][1]) for s, x, g in recorded("rate x30") if s > 300}
    shift = change + near - 301
    steps = [
        (s, x + harm.get(s - shift, (0, 1))[0], g * harm.get(s - shift, (0, 1))[1])
        for s, x, g in recorded("stage")
        if s - shift < 341
    ]
    spike, _ = watch(steps, lambda step: Phase(str(step >= change)))
    assert change + near - 1 <= spike.onset <= change + near + 2


@pytest.mark.parametrize("data", [False, True])
def test_in_a_window_what_no_plan_explains_is_bad_at_once(data):
    """A loss of many times a uniform guess's, and a gradient far above any so far."""
    for loss, norm in ((40.0, 1.0), (3.0, 1e4), (math.inf, 1.0), (3.0, math.nan)):
        monitor = SpikeMonitor(SpikeConfig())
        for step in range(1, 200):
            monitor.observe(step, 3.0 + 0.1 * (step % 3), 1.0 + 0.1 * (step % 2), phase=Phase())
        phase = Phase("1") if data else Phase("", "1")
        found = [monitor.observe(200 + i, loss, norm, phase=phase) for i in range(3)]
        assert all(each.bad for each in found) and found[-1].spike.onset == 200
    # What a stage did to a real run is not.
    monitor = SpikeMonitor(SpikeConfig())
    for step in range(1, 200):
        monitor.observe(step, 3.0 + 0.1 * (step % 3), 1.0, phase=Phase())
    assert not monitor.observe(200, 13.3, 20.0, phase=Phase("1")).bad


@pytest.mark.parametrize("at", [310, 402, 411])
def test_a_monitor_resumed_anywhere_around_a_change_decides_alike(at):
    change = RECORDED["stage"]["change"]
    whole, first = SpikeMonitor(SpikeConfig()), SpikeMonitor(SpikeConfig())
    for step, *values in recorded("stage")[80:230]:
        phase = Phase(str(step >= change), str(step >= 300))
        expected = whole.observe(step, *values, phase=phase)
        assert first.observe(step, *values, phase=phase) == expected
        assert (first.limit(), first.limit_of_change()) == (whole.limit(), whole.limit_of_change())
        if step == at:
            state = json.loads(json.dumps(first.state()))
            first = SpikeMonitor(SpikeConfig())
            first.restore(state)


def test_a_state_of_an_earlier_version_is_taken_up():
    monitor = SpikeMonitor(SpikeConfig())
    for step in range(1, 100):
        monitor.observe(step, 3.0 + 0.01 * (step % 5), 2.0)
    state = monitor.state()
    for name in ("phase", "since", "same_level", "last", "largest"):
        del state[name]
    again = SpikeMonitor(SpikeConfig())
    again.restore({**state, "mixture": 3})
    assert again.limit() == monitor.limit()
    assert again.limit_of_change() == pytest.approx(64 * 2.0)
    assert not again.observe(100, 3.0, 2.0, phase=Phase("x")).bad


def doublings(values, steps):
    found = Doublings(values)
    return [step for step in range(1, steps) if found.before(step) != found.before(step - 1)]


def test_a_value_that_grows_begins_a_phase_each_time_it_has_doubled():
    assert doublings(lambda index: np.minimum(index + 1, 64) / 64, 1000) == [3, 7, 15, 31, 63]
    falls = Schedule(name="linear", peak=1.0, warmup_steps=0, final_fraction=0.0).build(100)
    assert doublings(falls, 200) == []
    share = Piecewise(((10, 0.0), (11, 0.1), (20, 0.1), (21, 1.0), (30, 0.2), (40, 0.41)))
    assert doublings(share.build(), 100) == [12, 22, 41]  # a step later than the schedule's index


def test_a_phase_names_stage_bin_ramp_and_settings():
    loop = Loop(
        steps=100, batch_size=8, sequence_length=8, ramp=BatchRamp(((0, 4), (40, 8))),
    )  # fmt: skip
    history = ((0, {"en": 1.0}), (80, {"zh": 1.0}), (160, {"zh": 0.99, "en": 0.01}))
    data = DataState(0, history)
    phases = RunPhases(loop, section=lambda data, position: str(position // 200))
    named = [phases.phase(1 + p // 8, data, p) for p in range(0, 400, 8)]
    changes = [8 * i for i in range(1, 50) if named[i] != named[i - 1]]
    # The hundredth of English is no other data.
    assert changes == [40, 80, 200]
    assert named[4].data == named[5].data and named[4].course != named[5].course
    other = RunPhases(loop, section=lambda data, position: "0", course={"optimizer": "lion"})
    assert other.phase(1, data, 0) != named[0]


@dataclasses.dataclass
class Run:
    """The part of a trainer that a guard looks at."""

    data: DataState
    signals: tuple = ()

    def report(self, *words, **more):
        pass


@pytest.mark.parametrize("resumed", [False, True])
def test_the_limit_given_to_the_device_knows_the_change_before_its_first_step(resumed):
    """Metrics come two steps late; also a guard made from a checkpoint of the step before it."""
    from t5x_llm.train.hooks.base import StepRecord

    data = DataState(0, ((0, {"en": 1.0}), (8 * 150, {"zh": 1.0})))
    run, guard = Run(data), Guard(SpikeConfig(), [], lambda signals: np.zeros((1, 3)))
    limits = {}
    for step in range(1, 200):
        run.data = dataclasses.replace(data, position=8 * (step - 1))
        if resumed and step == 151:
            state = json.loads(json.dumps(guard.state()))
            guard = Guard(SpikeConfig(), [], lambda signals: np.zeros((1, 3)))
            guard.restore(state)
        limits[step] = float(guard.control(run, step).norm_limit)
        values = {"loss": 3.0 + step % 3 / 10, "grad_norm": 1.0}
        guard.on_step(run, StepRecord(step, 8 * step, 8, values, {}, 0.1, 0.0, False))
    assert limits[150] == pytest.approx(SpikeConfig().norm_factor)
    settled = 150 + SETTLE + 3
    assert {limits[s] for s in range(151, settled)} == {SpikeConfig().norm_factor ** 2}
    assert limits[settled] == pytest.approx(2 * SpikeConfig().norm_factor)
