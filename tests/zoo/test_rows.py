"""Rows of different lengths in one cache, for every family, against a pass over each row alone."""

from __future__ import annotations

import close
import encoders
import jax
import numpy as np
import pytest
import zoo
from encoders import CASES as TWO_SIDED
from zoo import CASES

from t5x_llm.infer import decode
from t5x_llm.infer import score as scoring
from t5x_llm.infer.decode import generate_ids
from t5x_llm.infer.sampling import Sampling
from t5x_llm.infer.score import Request, score

# One family for each kind of cache is in the default suite.
QUICK = ("qwen2", "deepseek_v3", "mamba", "mamba2", "rwkv", "ttt", "yuan", "bgpt", "jamba", "t5")
NAMES = [*CASES, *(name for name in TWO_SIDED if encoders.two_sided(name))]

# Tokens that each call of eight places adds to three rows: some add none, some begin late.
CALLS = np.asarray([(8, 1, 0), (0, 8, 0), (3, 0, 8), (1, 7, 8), (8, 2, 8), (5, 7, 1)])
WIDTH, LENGTH = 8, int(CALLS[:, 0].sum())
PROMPTS = ([5, 9, 11], list(range(3, 30)), [2], [40, 41, 42, 43, 44, 45, 46, 47, 48])


def cases(quick):
    return [n if n in quick else pytest.param(n, marks=pytest.mark.zoo) for n in NAMES]


def made(name):
    return (zoo if name in CASES else encoders).model(name)[1:]


@pytest.fixture(autouse=True)
def _forgotten():
    """The programs of a model are let go: those of all families are more than a process may map."""
    yield
    for function in (decode._prefill, decode._decode, scoring._log_probs):
        function.clear_cache()


# On the way to a logit of four layers: projections of 32 channels, 48 of feed-forward, keys, and
# as many steps of a recurrence.
TERMS = 4 * (4 * 32 + 48 + 2 * LENGTH)


def assert_near(found, expected, scale):
    """Raises AssertionError unless arrays agree up to rounding, at the logits' scale."""
    close.assert_close(found, expected, TERMS, scale=scale)


def compiled(model):
    """(params, ids [B, T], **arrays) -> logits [B, T, V] and the cache."""

    @jax.jit
    def run(params, ids, **given):
        with jax.default_matmul_precision("highest"):
            hidden, cache = model.apply(params, ids, **given)
            return model.logits(params, hidden), cache

    return run


@pytest.mark.parametrize("name", cases(QUICK))
def test_rows_advance_by_themselves(name):
    """Calls that add to each row as many tokens as it likes give what a whole pass gives."""
    model, params = made(name)
    rows = np.stack([zoo.tokens(seed, LENGTH) for seed in (1, 2, 3)])
    run, encoder = compiled(model), {}
    if name in TWO_SIDED:
        read = np.stack([zoo.tokens(seed, 16) for seed in (4, 5, 6)])
        encoder["encoder_tokens"] = read
        encoder["encoder_segment_ids"] = (np.arange(16) < [[16], [3], [9]]).astype(np.int32)
    expected = np.asarray(run(params, rows, **encoder)[0])
    scale = np.abs(expected).max()
    cache, done = model.init_cache(3, LENGTH), np.zeros(3, int)
    for counts in CALLS:
        valid = np.arange(WIDTH) < counts[:, None]
        ids = np.full((3, WIDTH), 63, np.int32)
        for row, count in enumerate(counts):
            ids[row, :count] = rows[row, done[row] : done[row] + count]
        found, cache = run(params, ids, segment_ids=valid.astype(np.int32), cache=cache, **encoder)
        encoder = {}
        for row, count in enumerate(counts):
            want = expected[row, done[row] : done[row] + count]
            assert_near(found[row, :count], want, scale)
        done += counts
        np.testing.assert_array_equal(cache["index"], done)


@pytest.mark.parametrize("name", cases(("qwen2", "t5")))
def test_unequal_prompts_are_answered_as_each_alone(name):
    """The same greedy tokens; log-probabilities are those of a pass without cache, alone."""
    model, params = made(name)
    greedy = Sampling(max_tokens=12, temperature=0)
    with jax.default_matmul_precision("highest"):
        together = [one for (one,) in generate_ids(model, params, PROMPTS, greedy)]
        alone = [generate_ids(model, params, [ids], greedy)[0][0] for ids in PROMPTS]
        scores = score(
            model,
            params,
            [Request(ids, one.tokens) for ids, one in zip(PROMPTS, together, strict=True)],
            batch_size=1,
        )
    for found, one, scored in zip(together, alone, scores, strict=True):
        assert found.tokens == one.tokens and len(found.tokens) == 12
        assert scored.greedy.all()
        for other in (one.log_probs, scored.log_probs):
            assert_near(found.log_probs, other, max(1.0, np.abs(other).max()))
