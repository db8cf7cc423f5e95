"""The monitor's verdicts on made-up losses; real ones are in tests/cli/test_spikes.py."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_llm.core.errors import ConfigError
from t5x_llm.train.spike import RECENT, Phase, SpikeConfig, SpikeMonitor


def made_up(steps, seed=0, noise=0.1, norm_noise=0.2):
    """(loss, gradient norm) of an ordinary run: a power law with heavy-tailed noise."""
    rng = np.random.default_rng(seed)
    steps = np.arange(1, steps + 1)
    loss = 2.0 + 7.0 * steps**-0.25 + noise * rng.standard_t(5, len(steps))
    norm = np.exp(norm_noise * rng.standard_t(5, len(steps))) * (0.5 + 5.0 / steps**0.5)
    return list(zip(loss, norm, strict=True))


def watch(values, monitor=None, **config):
    """The monitor's first spike over made-up values, or None."""
    monitor = monitor or SpikeMonitor(SpikeConfig(**config))
    for step, (loss, norm) in enumerate(values, start=1):
        if (found := monitor.observe(step, loss, norm)).spike:
            return found.spike
    return None


@pytest.mark.parametrize("seed", range(20))
def test_an_ordinary_run_gives_no_alarm(seed):
    assert watch(made_up(2000, seed)) is None


@pytest.mark.parametrize("rise", [0.8, 2.0, 5.0])
def test_a_jump_of_the_loss_is_found_at_its_onset(rise):
    values = made_up(400)
    values[300:] = [(loss + rise, norm) for loss, norm in values[300:]]
    spike = watch(values)
    # A small jump may hide in the noise of its first step.
    assert 301 <= spike.onset <= (302 if rise < 1 else 301) and spike.kind == "loss"
    assert spike.detected - 301 < 5


def test_a_single_peak_is_bad_but_no_spike():
    values = made_up(400)
    values[300] = (values[300][0] + 5.0, values[300][1])
    monitor = SpikeMonitor(SpikeConfig())
    findings = [monitor.observe(i + 1, *v) for i, v in enumerate(values)]
    assert findings[300].bad == "loss" and "deviations above" in findings[300].reason
    assert not any(f.spike for f in findings)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_finite_is_bad_from_the_first_step(value, which):
    bad = (value, 1.0) if which == 0 else (3.0, value)
    spike = watch([(9.0, 1.0), bad, bad, bad])
    assert (spike.onset, spike.detected, spike.kind) == (2, 4, "not finite")


def test_gradients_far_above_their_level_are_a_spike_too():
    values = made_up(400)
    values[300:310] = [(loss, norm * 100) for loss, norm in values[300:310]]
    spike = watch(values)
    assert (spike.onset, spike.kind) == (301, "gradient")


def test_skipped_updates_count():
    monitor = SpikeMonitor(SpikeConfig())
    found = [monitor.observe(i, 3.0, 1.0, skipped=i > 2) for i in range(1, 6)]
    assert found[-1].spike.onset == 3


def test_a_slow_divergence_is_found():
    values = made_up(1200, noise=0.05)
    values[600:] = [(loss + 0.004 * i, norm) for i, (loss, norm) in enumerate(values[600:])]
    spike = watch(values)
    assert spike.kind == "drift" and 600 < spike.onset < 850


def test_a_planned_change_of_the_mixture_is_no_spike():
    values = made_up(600)
    monitor = SpikeMonitor(SpikeConfig())
    for step, (loss, norm) in enumerate(values, start=1):
        changed = step > 300
        assert not monitor.observe(
            step, loss + 3.0 * changed, norm, phase=Phase(str(changed))
        ).spike
    assert watch([(a + 3.0 * (i > 300), b) for i, (a, b) in enumerate(values)])


def test_the_limit_follows_the_gradient_norm():
    monitor = SpikeMonitor(SpikeConfig(warmup=16))
    assert monitor.limit() == math.inf
    for step in range(1, 100):
        monitor.observe(step, 3.0, 2.0)
    assert monitor.limit() == pytest.approx(2.0 * SpikeConfig().norm_factor)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 399), st.integers(0, 5))
def test_a_resumed_monitor_decides_alike(at, seed):
    values = made_up(400, seed)
    values[350:] = [(loss + 2.0, norm) for loss, norm in values[350:]]
    whole, first = SpikeMonitor(SpikeConfig()), SpikeMonitor(SpikeConfig())
    second = SpikeMonitor(SpikeConfig())
    for step, value in enumerate(values, start=1):
        expected = whole.observe(step, *value)
        if step <= at:
            first.observe(step, *value)
            if step == at:
                second.restore(json.loads(json.dumps(first.state())))
        else:
            assert second.observe(step, *value) == expected
            assert second.limit() == whole.limit()


def test_mistakes_in_the_thresholds_are_named():
    for field, value in (("patience", RECENT + 1), ("deviations", 0), ("norm_factor", 1.0)):
        with pytest.raises(ConfigError, match=f"SpikeConfig.{field}"):
            SpikeConfig(**{field: value})
