"""Kinds of caches against a loop over rows and tokens; what must not change, to the bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.nn.cache import (
    CacheRows,
    RecentCache,
    StateCache,
    TokenCache,
    at_end,
    valid_lengths,
    write_rows,
)

SIZE = 7


def rows(index, lengths):
    return CacheRows(jnp.asarray(index, jnp.int32), jnp.asarray(lengths, jnp.int32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 3, SIZE])
def test_each_row_is_written_at_its_own_place_and_nowhere_else(count, dtype):
    """All places and numbers of valid tokens, those that reach beyond the end of the cache too."""
    cases = [(i, n) for i in range(SIZE + 2) for n in range(count + 1)]
    index, lengths = np.asarray(cases).T
    rng = np.random.default_rng(0)
    held = rng.normal(size=(len(cases), SIZE, 2)).astype(jnp.dtype(dtype))
    new = rng.normal(size=(len(cases), count, 2)).astype(jnp.dtype(dtype))
    expected = held.copy()
    for row, (first, length) in enumerate(cases):
        for token in range(min(length, SIZE - first)):
            expected[row, first + token] = new[row, token]
    found = jax.jit(write_rows)(held, new, index, lengths)
    np.testing.assert_array_equal(found, expected)
    kind = TokenCache((2,), (None,))
    assert kind.shape(len(cases), SIZE) == held.shape
    np.testing.assert_array_equal(kind.write(held, new, rows(index, lengths)), expected)


def test_padding_may_hold_anything():
    held, new = jnp.zeros((1, 4)), jnp.full((1, 2), jnp.nan)
    np.testing.assert_array_equal(write_rows(held, new, jnp.zeros(1, int), jnp.zeros(1, int)), held)


def test_a_call_is_no_longer_than_its_cache():
    with pytest.raises(ValueError, match="a call of 3 tokens is longer than its cache of 2"):
        write_rows(jnp.zeros((1, 2)), jnp.zeros((1, 3)), jnp.zeros(1, int), jnp.zeros(1, int))


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_recent_entries_are_those_before_the_end_of_each_row(kept):
    kind, lengths = RecentCache(kept, (2,)), np.arange(5)
    rng = np.random.default_rng(1)
    held, new = rng.normal(size=(5, kept, 2)), rng.normal(size=(5, 4, 2))
    found = kind.write(jnp.asarray(held), jnp.asarray(new), rows(np.zeros(5), lengths))
    for row, length in enumerate(lengths):
        seen = np.concatenate([held[row], new[row, :length]])
        np.testing.assert_array_equal(found[row], np.float32(seen[len(seen) - kept :]))
    whole = kind.write(jnp.asarray(held), jnp.asarray(new), None)
    np.testing.assert_array_equal(whole[4], found[4])  # all four of that row are valid


def test_a_state_stays_where_no_token_came():
    kind = StateCache((3,), fill=-2.0)
    old, new = kind.empty(2, 9, jnp.bfloat16), jnp.asarray([[jnp.nan] * 3, [1.0] * 3])
    assert old.shape == kind.shape(2, 9) == (2, 3) and old.dtype == jnp.float32
    found = kind.write(old, new, rows([0, 0], [0, 1]))
    np.testing.assert_array_equal(found, [[-2.0] * 3, [1.0] * 3])


def test_padding_is_what_follows_the_last_token_of_a_segment():
    segments = jnp.asarray([[0, 0, 1, 1], [1, 2, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]])
    lengths = valid_lengths(segments)
    assert lengths.tolist() == [4, 2, 0, 3]
    values = jnp.arange(16).reshape(4, 4)
    found = at_end(values, rows(np.zeros(4), lengths), jnp.full(4, -1))
    assert found.tolist() == [3, 5, -1, 14]
