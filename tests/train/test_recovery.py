"""A run that spikes, goes back, jumps over the data, and is to the bit what it would have been."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from guarded_run import SPIKE, B, Rows, equal, go
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_llm.core.errors import SpikeError
from t5x_llm.data.positions import DataState
from t5x_llm.train.hooks.guard import easing
from t5x_llm.train.journal import Decision, decisions
from t5x_llm.train.recovery import added_entries, mixture_history, not_rewound_past
from t5x_llm.train.state import TrainState

STEPS, ONSET, LENGTH = 120, 71, 20
POISON = (B * (ONSET - 1), B * (ONSET - 1 + LENGTH))


def poisoned():
    return Rows(POISON)


@pytest.fixture(scope="module")
def healed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("healed")
    return directory, go(directory, STEPS, stream=poisoned())


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory):
    off = dataclasses.replace(SPIKE, enabled=False)
    return go(tmp_path_factory.mktemp("unwatched"), STEPS, stream=poisoned(), spike=off)


def rewinds_of_checkpoint(directory, step):
    meta = directory / "checkpoints" / str(step) / "meta" / "metadata"
    return json.loads(meta.read_text())["rewinds"]


def events(outcome, name):
    return [line for line in outcome.journal if line["event"] == name]


def test_poison_is_found_left_out_and_written_down(healed, unwatched):
    directory, outcome = healed
    (rewind,), (spike,) = events(outcome, "rewind"), events(outcome, "spike")
    assert rewind["onset"] == ONSET and rewind["detected"] < ONSET + 5
    # The newest checkpoint at least 8 steps before; the data from 8 steps before on.
    assert rewind["to_step"] == 60
    first = B * (ONSET - SPIKE.rewind_steps)
    assert rewind["skip"] == [first, first + B * SPIKE.skip_batches]
    assert spike["documents"] == [B * (ONSET - 1), B * (rewind["detected"] - ONSET + 1)]
    assert outcome.run.step == STEPS and outcome.run.data.position == STEPS * B
    # Step 70 was saved on the steps given up, and again afterwards.
    assert rewinds_of_checkpoint(directory, 70) == 1
    assert outcome.held_out < unwatched.held_out - 0.1


def test_a_rewound_run_is_to_the_bit_the_run_given_the_skips_from_the_start(healed, tmp_path):
    _, outcome = healed
    given = go(tmp_path, STEPS, stream=poisoned(), skips=outcome.run.data.skips)
    assert not events(given, "spike")
    assert equal(outcome.run.state, given.run.state)


def test_killed_between_decision_and_restore_it_obeys_the_decision(healed, tmp_path):
    directory, outcome = healed
    for name in ("checkpoints", "journal.jsonl"):
        copy = shutil.copytree if (directory / name).is_dir() else shutil.copy
        copy(directory / name, tmp_path / name)
    # As if killed then: the journal ends with the rewind, checkpoints given up stay.
    lines = (tmp_path / "journal.jsonl").read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if '"rewind"' in line and '"onset"' in line)
    (tmp_path / "journal.jsonl").write_text("".join(lines[: cut + 1]))
    for path in (tmp_path / "checkpoints").iterdir():
        if int(path.name) > 70:
            shutil.rmtree(path)
    abandoned = go(tmp_path / "before", 70, stream=poisoned())
    shutil.rmtree(tmp_path / "checkpoints" / "70", ignore_errors=True)
    shutil.copytree(tmp_path / "before" / "checkpoints" / "70", tmp_path / "checkpoints" / "70")
    assert abandoned.run.rewinds == 0
    again = go(tmp_path, STEPS, stream=poisoned())
    assert events(again, "start")[-1]["step"] == 60
    assert equal(again.run.state, outcome.run.state)


@pytest.mark.extended
def test_killed_before_it_began_anew_it_saves_over_the_checkpoints_given_up(tmp_path):
    """The only checkpoint is younger than the decision allows: none of it may stay."""
    outcome = go(tmp_path, 90, stream=poisoned(), every=70)
    assert events(outcome, "rewind")[0]["to_step"] == 0
    lines = (tmp_path / "journal.jsonl").read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if '"rewind"' in line and '"onset"' in line)
    again = tmp_path / "again"
    go(again, 70, stream=poisoned(), every=70)  # its checkpoint knows of no rewind
    (again / "journal.jsonl").write_text("".join(lines[: cut + 1]))
    finished = go(again, 90, stream=poisoned(), every=70)
    assert equal(finished.run.state, outcome.run.state)
    assert rewinds_of_checkpoint(again, 70) == 1


@pytest.mark.extended
def test_without_a_checkpoint_before_the_spike_it_begins_anew(tmp_path):
    outcome = go(tmp_path, 90, stream=poisoned(), every=0)
    assert events(outcome, "rewind")[0]["to_step"] == 0
    given = go(tmp_path / "given", 90, skips=outcome.run.data.skips, every=0)
    assert equal(outcome.run.state, given.run.state)


def test_a_run_that_spikes_without_end_stops_and_says_so(tmp_path):
    few = dataclasses.replace(SPIKE, skip_batches=4, max_rewinds_per_window=2)
    with pytest.raises(SpikeError, match="max_rewinds_per_window = 2(.|\n)*t5x-llm journal"):
        go(tmp_path, STEPS, stream=poisoned(), spike=few)


def marked(rows):
    """Sound rows; the batches that begin in the range ``rows`` are marked for ``heavy_step``."""

    class Marked(Rows):
        def at(self, data):
            other = Marked(self.poison, data.skips)
            other.asked = self.asked
            return other

        def row(self, at):
            return Rows((0, 0)).row(at)

        def batch(self, position, size, part=None):
            made = super().batch(position, size, part)
            at = self.skips.stream_position(position)
            heavy = self.poison[0] <= at < self.poison[1]
            return dataclasses.replace(made, positions=made.positions + (1 << 20) * heavy)

    return Marked(rows)


def heavy_step(factor):
    """A step that multiplies the gradients of the marked batches, by way of the optimizer."""

    def wrap(step):
        def run(state, batch, control):
            marked = bool(np.asarray(batch.positions).max() >= 1 << 20)
            plain = dataclasses.replace(batch, positions=batch.positions % (1 << 20))
            if not marked:
                return step(state, plain, control)
            before = jax.tree.map(np.asarray, state)
            new, metrics = step(state, plain, control)
            norm = float(metrics["grad_norm"]) * factor
            metrics["grad_norm"] = jax.numpy.float32(norm)
            if norm > float(control.norm_limit):
                kept = TrainState(new.step, before.params, before.opt_state)
                metrics["skipped"] = jax.numpy.float32(1)
                return jax.device_put(kept, jax.tree.map(lambda x: x.sharding, new)), metrics
            # Without clipping, what SGD would do with them: the update times the factor.
            moved = jax.tree.map(lambda a, b: b + factor * (a - b), new.params, before.params)
            moved = jax.device_put(moved, jax.tree.map(lambda x: x.sharding, new.params))
            return dataclasses.replace(new, params=moved), metrics

        return run

    return wrap


@pytest.mark.extended
def test_scaled_gradients_are_left_out_then_jumped_over(tmp_path):
    where, wrap = marked(POISON), heavy_step(60.0)
    off = dataclasses.replace(SPIKE, enabled=False)
    bad = go(tmp_path / "off", STEPS, stream=where, spike=off, wrap=wrap)
    outcome = go(tmp_path / "on", STEPS, stream=where, wrap=wrap)
    (rewind,) = events(outcome, "rewind")
    assert rewind["onset"] == ONSET and rewind["detected"] < ONSET + 5
    assert len(events(outcome, "skip")) >= 2
    assert outcome.held_out < bad.held_out - 0.1


def test_updates_of_gradients_that_are_not_finite_change_nothing(tmp_path):
    seen = {}

    def wrap(step):
        def run(state, batch, control):
            at = int(state.step)
            if at == 5:
                seen["before"] = jax.tree.map(np.asarray, (state.params, state.opt_state))
                mask = np.full_like(np.asarray(batch.loss_mask), np.nan)
                batch = dataclasses.replace(
                    batch, loss_mask=jax.device_put(mask, batch.loss_mask.sharding)
                )
            new, metrics = step(state, batch, control)
            if at == 5:
                seen["after"] = jax.tree.map(np.asarray, (new.params, new.opt_state))
            return new, metrics

        return run

    outcome = go(tmp_path, 8, wrap=wrap)
    assert equal(seen["before"], seen["after"])
    assert [line["step"] for line in events(outcome, "skip")] == [6]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(outcome.run.state.params))


def test_a_resumed_run_judges_alike(healed, tmp_path):
    """Killed on the way to the spike and after it: the same decisions, the same state."""
    _, outcome = healed
    for stop in (ONSET - 3, ONSET + 20, STEPS):
        again = go(tmp_path, stop, stream=poisoned())
    assert equal(again.run.state, outcome.run.state)
    assert decisions(again.journal) == decisions(outcome.journal)


def decision(to_step, **more):
    return Decision(100, 102, to_step, (0, 8), "loss", "", **more)


def test_a_checkpoint_lives_unless_a_later_rewind_went_back_further():
    made = [decision(60), decision(80)]
    assert not_rewound_past(made, {"step": 60, "rewinds": 0})
    assert not not_rewound_past(made, {"step": 70, "rewinds": 0})
    assert not_rewound_past(made, {"step": 70, "rewinds": 1})
    assert not not_rewound_past(made, {"step": 90, "rewinds": 1})
    assert not_rewound_past(made, {"step": 90, "rewinds": 2})


def test_easing_returns_to_the_schedule():
    config = dataclasses.replace(SPIKE, easing=0.5, easing_steps=10)
    at = [easing(config, [decision(60)], step) for step in (61, 66, 71, 99)]
    assert at == [0.5, 0.75, 1.0, 1.0]
    assert easing(config, [], 61) == 1.0 == easing(SPIKE, [decision(60)], 61)


def test_the_eased_step_is_the_update_scaled(tmp_path):
    config = dataclasses.replace(SPIKE, easing=0.25, easing_steps=1000)
    scales = []

    def wrap(step):
        def run(state, batch, control):
            scales.append(float(control.update_scale))
            return step(state, batch, control)

        return run

    outcome = go(tmp_path, 90, stream=Rows((B * 40, B * 60)), spike=config, wrap=wrap)
    assert events(outcome, "rewind")
    assert scales[0] == 1.0 and 0.25 <= min(scales) < 0.3
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [x["learning_rate"] for x in lines if x.get("rewinds") == 1 and x["kind"] == "train"]
    assert rates[-1] == pytest.approx(3e-3 * scales[-1], rel=1e-5)


def test_mixture_changes_are_read_back():
    lines = [
        {"event": "mixture", "stream_position": 0, "weights": {"en": 1.0}},
        {"event": "mixture", "stream_position": 80, "weights": {"en": 0.5, "zh": 0.5}},
        {"event": "mixture", "stream_position": 40, "weights": {"zh": 1.0}},
    ]
    assert mixture_history(lines) == ((0, {"en": 1.0}), (40, {"zh": 1.0}))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), unique=True, max_size=4), min_size=1, max_size=4))
def test_what_is_written_of_a_plan_is_read_back_as_the_plan(plans):
    """However often it changes on the way, also where a planned change is taken back."""
    lines, history = [], ()
    for weight, starts in enumerate(plans):
        planned = tuple((s, {"en": float(weight + s % 3)}) for s in sorted({0, *starts}))
        if planned == history:
            continue
        lines += [{"event": "mixture", "stream_position": s, "weights": w}
                  for s, w in added_entries(history, planned)]  # fmt: skip
        history = planned
        assert mixture_history(lines) == history


def test_skips_add_no_consumed_examples(healed):
    _, outcome = healed
    data = outcome.run.data
    assert data.position == STEPS * B and sum(b - a for a, b in data.skips) == B * 30
    assert DataState.from_json(json.loads(json.dumps(data.to_json()))).skips == data.skips


@pytest.mark.extended
def test_a_ramp_is_counted_in_examples(tmp_path):
    from t5x_llm.optim import BatchRamp

    ramp = BatchRamp(((0, 4), (160, 8)))
    steps = ramp.steps_to(8 * 90)
    onset = ramp.steps_to(8 * 60)
    poison = (ramp.total(onset), ramp.total(onset) + 160)
    outcome = go(tmp_path, steps, stream=Rows(poison), ramp=ramp, batch_size=8)
    (rewind,) = events(outcome, "rewind")
    assert rewind["onset"] == onset + 1
    assert rewind["skip"][0] == ramp.total(onset + 1 - SPIKE.rewind_steps)
    assert outcome.run.data.position == ramp.total(steps)
