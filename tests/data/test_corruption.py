"""Corrupting text: nothing is lost, densities hold, and the reference forms are met."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_llm.data.corruption import (
    Draw,
    blanks,
    mask_tokens,
    noise_counts,
    poisson_spans_mask,
    random_spans_mask,
    shifted,
    span_bounds,
    spans_to_sentinels,
)

SENTINELS = np.arange(9_999, 8_000, -1)
lengths = st.integers(1, 300)
densities = st.sampled_from([0.05, 0.15, 0.3, 0.5, 0.8])
means = st.sampled_from([1.0, 2.5, 3.0, 8.0, 64.0])
seeds = st.integers(0, 2**64 - 1)


def text(length):
    return np.arange(10, 10 + length, dtype=np.int32)


def restored(inputs, targets):
    """The text of span corruption's inputs and targets: spans go where their sentinels are."""
    spans, last = {}, None
    for token in targets.tolist():
        if token in SENTINELS:
            last = token
            assert last not in spans
            spans[last] = []
        else:
            spans[last].append(token)
    out = []
    for token in inputs.tolist():
        out += spans.pop(token) if token in SENTINELS else [token]
    assert not spans
    return out


@settings(max_examples=200, deadline=None)
@given(lengths, densities, means, seeds, st.sampled_from([random_spans_mask, poisson_spans_mask]))
def test_spans_have_their_counts_and_nothing_is_lost(length, density, mean, seed, draw_mask):
    mask = draw_mask(length, density, mean, Draw(seed, 5))
    noise, spans = noise_counts(length, density, mean)
    first, stop = span_bounds(mask)
    assert (mask.sum(), len(first), len(mask)) == (noise, spans, length)
    assert abs(noise - length * density) <= max(1, 0.51) or length < 3
    assert abs(spans - noise / mean) <= 1 or spans == length - noise or length < 3
    tokens = text(length)
    if spans:
        inputs = spans_to_sentinels(tokens, mask, SENTINELS)
        targets = spans_to_sentinels(tokens, ~mask, SENTINELS)
        assert len(inputs) == length - noise + spans
        if draw_mask is random_spans_mask:  # which begins with kept tokens and ends with noise
            assert not mask[0] and mask[-1] and len(targets) == noise + spans
            assert restored(inputs, targets) == tokens.tolist()


@settings(max_examples=100, deadline=None)
@given(lengths, densities, means, seeds, st.integers(0, 2**63), st.integers(0, 50))
def test_the_same_place_is_corrupted_the_same_way(length, density, mean, seed, ordinal, segment):
    masks = [random_spans_mask(length, density, mean, Draw(seed, ordinal, segment))
             for _ in range(2)]  # fmt: skip
    assert (masks[0] == masks[1]).all()


def test_other_places_are_corrupted_otherwise():
    def mask(*where):
        return tuple(random_spans_mask(300, 0.3, 3.0, Draw(*where)).tolist())

    assert len({mask(1, 2, 3), mask(2, 2, 3), mask(1, 3, 3), mask(1, 2, 4)}) == 4


def test_random_numbers_stay_as_they_are():
    """A run resumed with another NumPy goes on as it was: values of Philox 4x64 itself."""
    assert Draw(1, 2, 3).below(1000, 5).tolist() == Draw(1, 2, 3).below(1000, 5).tolist()
    seed = 2**64 - 1
    raw = np.random.Philox(key=seed + (2 << 64), counter=3 << 192).random_raw(5)
    assert Draw(seed, 2, 3).uniform(5).tolist() == [int(r >> 11) / 2**53 for r in raw.tolist()]


def test_all_masks_are_alike():
    """3 noise tokens of 8 in 2 spans: 2 ways to cut the noise, 4 the rest."""
    count = {}
    for ordinal in range(4000):
        mask = tuple(random_spans_mask(8, 0.375, 1.5, Draw(0, ordinal)).tolist())
        count[mask] = count.get(mask, 0) + 1
    assert len(count) == 8
    assert all(abs(n - 500) < 100 for n in count.values())


def test_glm_spans_are_poisson_given_their_sum():
    sizes = []
    for ordinal in range(300):
        first, stop = span_bounds(poisson_spans_mask(400, 0.15, 3.0, Draw(0, ordinal)))
        sizes += (stop - first).tolist()
    sizes = np.array(sizes)
    # 1 + binomial(40, 1/20): mean 3, variance 1.9.
    assert sizes.mean() == 3.0 and sizes.min() == 1 and abs(sizes.var() - 1.9) < 0.15


@settings(max_examples=100, deadline=None)
@given(lengths, densities, seeds)
def test_masked_tokens(length, density, seed):
    tokens = text(length)
    maskable = tokens % 7 != 0
    out, chosen = mask_tokens(tokens, maskable, density, 3, (0.8, 0.1), np.array([7, 8]),
                              Draw(seed, 0))  # fmt: skip
    assert not (chosen & ~maskable).any()
    assert abs(chosen.sum() - density * maskable.sum()) <= 1
    assert (out[~chosen] == tokens[~chosen]).all()
    changed = out[chosen]
    assert (np.isin(changed, [3, 7, 8]) | (changed == tokens[chosen])).all()


def test_masked_tokens_in_the_paper_s_shares():
    tokens = text(1000)
    fates = np.zeros(3)
    for ordinal in range(60):
        out, chosen = mask_tokens(tokens, np.ones(1000, bool), 0.15, 3, (0.8, 0.1),
                                  np.array([7]), Draw(1, ordinal))  # fmt: skip
        assert chosen.sum() in (150, 151)
        got = out[chosen]
        fates += [(got == 3).sum(), (got == 7).sum(), (got == tokens[chosen]).sum()]
    np.testing.assert_allclose(fates / fates.sum(), [0.8, 0.1, 0.1], atol=0.015)


@settings(max_examples=100, deadline=None)
@given(lengths, densities, means, seeds)
def test_blanks(length, density, mean, seed):
    tokens, draw = text(length), Draw(seed, 1)
    mask = poisson_spans_mask(length, density, mean, draw)
    made = blanks(tokens, mask, 1, 2, 3, draw)
    first, stop = span_bounds(mask)
    assert {len(v) for v in made.values()} == {length + 2 * len(first)}
    a = int(made["prefix"].sum())
    assert made["prefix"][:a].all() and not made["loss_mask"][:a].any()
    assert made["loss_mask"][a:].all() and not made["block_positions"][:a].any()
    assert made["positions"][:a].tolist() == list(range(a))
    # Part B, span by span: begins with 2, predicts its tokens and 3, stands where its mask is.
    part = made["tokens"][:a].tolist()
    begins = np.flatnonzero(made["block_positions"] == 1)
    assert sorted(made["positions"][begins].tolist()) == [i for i, t in enumerate(part) if t == 1]
    ends = [*begins[1:], len(made["tokens"])][: len(begins)]
    for begin, end in zip(begins, ends, strict=True):
        here = slice(begin, end)
        assert made["tokens"][begin] == 2 and made["targets"][end - 1] == 3
        assert (made["tokens"][begin + 1 : end] == made["targets"][begin : end - 1]).all()
        assert made["block_positions"][here].tolist() == list(range(1, end - begin + 1))
        place = set(made["positions"][here].tolist())
        assert len(place) == 1
        part[place.pop()] = made["targets"][begin : end - 1].tolist()
    assert [t for p in part for t in (p if isinstance(p, list) else [p])] == tokens.tolist()


@pytest.mark.parametrize("split", [0, 1, 3, 5])
def test_shifted(split):
    made = shifted(text(5)[:split], text(5)[split:])
    assert made["tokens"].tolist() == [10, 11, 12, 13]
    assert made["targets"].tolist() == [11, 12, 13, 14]
    # Every output is predicted, from all inputs and the outputs before it; no input is.
    assert made["prefix"].tolist() == [i < split for i in range(4)]
    assert made["loss_mask"].tolist() == [float(i + 1 >= split) for i in range(4)]
