"""Schedules as properties; the batch ramp against counting one step at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_llm.core.errors import ConfigError
from t5x_llm.optim import SCHEDULES, BatchRamp, Piecewise, Schedule

LONGEST = 5000


@st.composite
def schedules(draw):
    total = draw(st.integers(2, LONGEST))
    name = draw(st.sampled_from(SCHEDULES))
    schedule = Schedule(
        name=name,
        peak=draw(st.floats(1e-6, 1.0)),
        warmup_steps=draw(st.integers(0, total - 1)),
        final_fraction=draw(st.just(0.0) | st.floats(1e-30, 1.0)),
        decay_fraction=draw(st.floats(0.01, 1.0)),
        hold_steps=draw(st.integers(0, 100)) if name == "rsqrt" else 0,
    )
    return schedule, total


@settings(max_examples=60, deadline=None)
@given(schedules())
def test_every_schedule(drawn):
    """Never negative, never above the peak, peak at the end of warmup, no jump, final value."""
    schedule, total = drawn
    peak, warmup = schedule.peak, schedule.warmup_steps
    # One length for all, so that it is compiled once.
    rates = np.asarray(jax.vmap(schedule.build(total))(jnp.arange(LONGEST + 50)))[: total + 50]
    assert rates.dtype == np.float32
    assert (rates >= 0).all() and rates[0] > 0
    assert rates.max() <= peak * (1 + 1e-5)
    np.testing.assert_allclose(rates[warmup], peak, rtol=1e-5)
    # optax interpolates downward from the peak in float32: the first rates carry its rounding.
    np.testing.assert_allclose(
        rates[: warmup + 1],
        peak * np.arange(1, warmup + 2) / (warmup + 1),
        rtol=1e-4,
        atol=peak * 1e-6,
    )
    falls = rates[warmup:]
    assert (np.diff(falls) <= peak * 1e-6).all()
    # The largest fall between two steps: the steepest course over the shortest descent.
    descent = {
        "linear": total - warmup,
        "cosine": (total - warmup) * 2 / np.pi,
        "wsd": min(max(round(total * schedule.decay_fraction), 1), total - warmup),
        "rsqrt": 2 * max(warmup + schedule.hold_steps, 1),
        "constant": np.inf,
    }[schedule.name]
    assert (-np.diff(falls)).max() <= peak / descent * 1.01 + peak * 1e-5
    if schedule.name in ("linear", "cosine", "wsd"):
        np.testing.assert_allclose(
            rates[total:], peak * schedule.final_fraction, rtol=1e-4, atol=peak * 1e-6
        )
    elif schedule.name == "constant":
        np.testing.assert_allclose(rates[warmup:], peak, rtol=1e-6)


def test_palm_is_one_percent_then_one_over_root_k():
    rate = Schedule("rsqrt", peak=1e-2, warmup_steps=0, hold_steps=10_000).build(10**6)
    for k in (0, 1, 5000, 10_000):
        np.testing.assert_allclose(rate(k), 1e-2, rtol=1e-6)
    for k in (10_001, 40_000, 999_999):
        np.testing.assert_allclose(rate(k), k**-0.5, rtol=1e-5)


def test_cosine_is_optax_from_the_end_of_warmup():
    ours = Schedule("cosine", peak=3e-4, warmup_steps=10, final_fraction=0.1).build(110)
    theirs = optax.warmup_cosine_decay_schedule(0.0, 3e-4, 10, 110, 3e-5)
    for k in (10, 11, 60, 109, 110, 500):
        np.testing.assert_allclose(ours(k), theirs(k), rtol=1e-5)


def test_wsd_stays_then_falls():
    rate = Schedule("wsd", 1.0, warmup_steps=10, final_fraction=0.0, decay_fraction=0.2).build(100)
    np.testing.assert_allclose([rate(k) for k in (10, 50, 80, 90, 100)], [1, 1, 1, 0.5, 0])


def test_total_steps_of_the_schedule_come_first():
    fixed = Schedule("linear", 1.0, 0, 0.0, total_steps=100)
    np.testing.assert_allclose(fixed.build(10)(50), 0.5)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"name": "cosin"}, "Did you mean 'cosine'"),
        ({"peak": 0}, "Schedule.peak"),
        ({"peak": "1"}, "Schedule.peak"),
        ({"warmup_steps": -1}, "Schedule.warmup_steps"),
        ({"warmup_steps": 1.5}, "Schedule.warmup_steps"),
        ({"final_fraction": 1.1}, "Schedule.final_fraction"),
        ({"decay_fraction": 0}, "Schedule.decay_fraction"),
        ({"hold_steps": 5}, "Schedule.hold_steps"),
        ({"total_steps": 0}, "Schedule.total_steps"),
    ],
)
def test_bad_schedules(bad, field):
    with pytest.raises(ConfigError, match=field):
        Schedule(**bad)


def test_warmup_must_leave_room():
    with pytest.raises(ConfigError, match="Set it to 10"):
        Schedule("cosine", warmup_steps=100).build(100)
    Schedule("constant", warmup_steps=100).build(100)


@st.composite
def ramps(draw):
    start, stages = 0, []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.integers(1, 20))
        stages.append((start, size))
        start += size * draw(st.integers(1, 10))
    return BatchRamp(tuple(stages))


@given(ramps(), st.integers(0, 60))
def test_ramp_equals_counting(ramp, steps):
    position = 0
    for _ in range(steps):
        position += ramp.size_at(position)
    assert ramp.total(steps) == position
    assert ramp.steps_to(position) == steps
    assert ramp.size_at(0) == ramp.stages[0][1]
    assert set(ramp.sizes) == {size for _, size in ramp.stages}


def test_palm_ramp():
    ramp = BatchRamp(((0, 512), (50_000 * 512, 1024), (50_000 * 512 + 65_000 * 1024, 2048)))
    assert ramp.size_at(ramp.total(50_000) - 1) == 512
    assert ramp.size_at(ramp.total(50_000)) == 1024
    assert ramp.size_at(ramp.total(115_000)) == 2048
    assert ramp.sizes == (512, 1024, 2048)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ((), "pairs"),
        (32, "pairs"),
        (((0, 32, 1),), "pairs"),
        (((8, 32),), "expected 0"),
        (((0, 0),), "batch_size"),
        (((0, 32), (0, 64)), "more than 0"),
        (((0, 32), (100, 64)), "Nearest: 96 or 128"),
        (((0, 2.5),), "an integer"),
    ],
)
def test_bad_ramps(stages, words):
    with pytest.raises(ConfigError, match=words):
        BatchRamp(stages)


def test_piecewise_is_numpys_interpolation_and_can_jump():
    points = ((6000, 0.1), (6500, 1.0), (22799, 1.0), (22800, 0.2), (28800, 1.0))
    share = Piecewise(points).build()
    steps = [0, 5999, 6000, 6250, 6500, 20000, 22799, 22800, 25800, 28800, 10**6]
    expected = np.interp(steps, *zip(*points, strict=True))
    np.testing.assert_allclose([share(s) for s in steps], expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(share)(np.int32(22800)), 0.2, rtol=1e-6)
    assert share(3).dtype == np.float32


@pytest.mark.parametrize("points", [(), ((0,),), ((5, 1.0), (5, 0.0)), ((-1, 0.0),), ((0, "a"),)])
def test_piecewise_names_its_mistakes(points):
    with pytest.raises(ConfigError, match=r"Piecewise\.points"):
        Piecewise(points)
