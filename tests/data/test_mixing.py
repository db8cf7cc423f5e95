"""Proportions: exact in every window, whatever the weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_llm.core.errors import ConfigError
from t5x_llm.data.mixing import Proportions

weights = st.lists(
    st.one_of(st.floats(1e-3, 1.0), st.integers(1, 1000).map(float)), min_size=1, max_size=12
)


def named(values):
    return {f"s{i:02d}": value for i, value in enumerate(values)}


@settings(max_examples=60, deadline=None)
@given(weights, st.integers(0, 2**40))
def test_every_window_of_100_is_exact_to_one_example(values, start):
    mix = Proportions(named(values))
    # A period is 1,638,400 positions; every window crosses a seam of blocks.
    source, _ = mix.locate(np.arange(start, start + 1000))
    seen = np.cumsum(np.eye(len(values), dtype=int)[source], axis=0)
    windows = seen[100:] - seen[:-100]
    share = 100 * np.array(values) / sum(values)
    assert np.abs(windows - share).max() <= 1 + 1e-9


@settings(max_examples=20, deadline=None)
@given(weights, st.sampled_from([0, 8191, 8192, 16383, 16384, 10**7]))
def test_windows_across_the_seams_of_the_table(values, block):
    start = max(block * 100 - 300, 0)
    mix = Proportions(named(values))
    source, ordinal = mix.locate(np.arange(start, start + 700))
    seen = np.cumsum(np.eye(len(values), dtype=int)[source], axis=0)
    share = 100 * np.array(values) / sum(values)
    assert np.abs(seen[100:] - seen[:-100] - share).max() <= 1 + 1e-9
    # Ordinals go up by one a source, and counts agree with them.
    before = np.array(list(mix.counts(start).values()))
    assert (ordinal == (before + seen)[np.arange(700), source] - 1).all()
    assert (before + seen[-1] == list(mix.counts(start + 700).values())).all()


@pytest.mark.parametrize("values", [(0.5, 0.3, 0.2), (1, 1, 1), (0.9, 0.05, 0.03, 0.02), (3, 7)])
def test_long_run_shares(values):
    mix = Proportions(named(values))
    for n in (10**3, 10**6, 10**9):
        counts = np.array(list(mix.counts(n).values()))
        assert counts.sum() == n
        assert np.abs(counts - n * np.array(values) / sum(values)).max() < 6 + n * 1.3e-6


def test_positions_do_not_depend_on_order_scale_or_sources_left_out():
    at = np.arange(5000)
    one = Proportions({"a": 2.0, "b": 1.0, "c": 5.0})
    two = Proportions({"c": 50.0, "x": 0.0, "b": 10.0, "a": 20.0})
    assert one.names == two.names == ("a", "b", "c")
    for left, right in zip(one.locate(at), two.locate(at), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_rare_source_is_rare_but_comes():
    mix = Proportions({"all": 1.0, "rare": 1e-7})
    assert 0 < mix.counts(2 * 8192 * 100)["rare"] <= 2


@pytest.mark.parametrize("bad", [{"a": -1.0, "b": 1.0}, {"a": 0.0}, {"a": float("nan")}, {}])
def test_weights_that_cannot_be(bad):
    with pytest.raises(ConfigError, match=r"Mixture\.rates"):
        Proportions(bad)
