"""Averages of adapters against NumPy: of low-rank changes the products are averaged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_llm.tune.federated.averaging import Averager, shares, truncate_factors, truncate_matrix

AXES = {
    "block": {
        "query": {"adapter": {"a": ("embed", "rank"), "b": ("rank", "heads", "head")}},
        "out": {"adapter": {"a": ("heads", "head", "rank"), "b": ("rank", "embed")}},
        "experts": {
            "up_adapter": {"a": ("expert", "embed", "rank"), "b": ("expert", "rank", "mlp")}
        },
    },
    "prefix": ("length", "embed"),
}
SHAPES = {
    "block": {
        "query": {"adapter": {"a": (3, 8, 2), "b": (3, 2, 2, 5)}},
        "out": {"adapter": {"a": (3, 2, 5, 2), "b": (3, 2, 8)}},
        "experts": {"up_adapter": {"a": (3, 4, 8, 2), "b": (3, 4, 2, 6)}},
    },
    "prefix": (7, 8),
}
WEIGHTS = (5.0, 1.0, 2.0, 2.0)


def tree(shapes, draw):
    if isinstance(shapes, dict):
        return {name: tree(part, draw) for name, part in shapes.items()}
    return draw.normal(size=shapes).astype(np.float32)


def adapters(count=4, seed=0):
    draw = np.random.default_rng(seed)
    return [tree(SHAPES, draw) for _ in range(count)]


def product(factors, lead, inputs):
    """[*lead, I, O] in float64, by einsum over flattened axes."""
    a, b = (np.asarray(factors[name], np.float64) for name in "ab")
    a = a.reshape(*a.shape[:lead], inputs, -1)
    return a @ b.reshape(*a.shape[:lead], a.shape[-1], -1)


def nearest(matrix, rank):
    """NumPy's own truncation, one matrix at a time."""
    found = np.empty_like(matrix)
    for index in np.ndindex(matrix.shape[:-2]):
        u, s, v = np.linalg.svd(matrix[index])
        found[index] = u[:, :rank] @ np.diag(s[:rank]) @ v[:rank]
    return found


def places(one):
    block = one["block"]
    return [
        (block["query"]["adapter"], 1, 8),
        (block["out"]["adapter"], 1, 10),
        (block["experts"]["up_adapter"], 2, 8),
    ]


@pytest.mark.parametrize("masked", [False, True])
def test_products_are_averaged_and_cut_as_numpy_cuts_them(masked):
    """APPFL#398 cut the transpose; FATE-LLM#144 and FederatedLLM#10 averaged A and B apart."""
    parties = adapters()
    averager, share = Averager(parties[0], AXES), shares(WEIGHTS)
    if masked:
        total = sum(averager.contribution(p, w) for p, w in zip(parties, share, strict=True))
        assert total.shape == (averager.size,)
        made, dropped = averager.of_sum(total)
    else:
        made, dropped = averager.average(parties, WEIGHTS)
    lost = whole = 0.0
    for each, *others in zip(places(made), *map(places, parties), strict=True):
        factors, lead, inputs = each
        exact = sum(
            w * product(f, lead, inputs) for w, (f, _, _) in zip(share, others, strict=True)
        )
        cut = nearest(exact, 2)
        np.testing.assert_allclose(product(factors, lead, inputs), cut, atol=2e-6)
        lost, whole = lost + np.sum((exact - cut) ** 2), whole + np.sum(exact**2)
        # The product of averages is another matrix.
        apart = {n: sum(w * f[n] for w, (f, _, _) in zip(share, others, strict=True)) for n in "ab"}
        assert np.abs(product(apart, lead, inputs) - exact).max() > 0.1
    assert dropped == pytest.approx(lost / whole, rel=1e-9)
    prefix = sum(w * p["prefix"].astype(np.float64) for w, p in zip(share, parties, strict=True))
    np.testing.assert_array_equal(made["prefix"], prefix.astype(np.float32))
    assert made["prefix"].dtype == np.float32


def test_equal_adapters_average_to_themselves():
    one = adapters(1)[0]
    made, dropped = Averager(one, AXES).average([one] * 3, (1.0, 2.0, 3.0))
    assert dropped < 1e-15
    for (now, lead, inputs), (before, _, _) in zip(places(made), places(one), strict=True):
        np.testing.assert_allclose(
            product(now, lead, inputs), product(before, lead, inputs), atol=2e-6
        )


def test_a_party_without_weight_says_nothing():
    parties = adapters()
    parties[2]["block"]["query"]["adapter"]["a"][:] = 1e6
    made, _ = Averager(parties[0], AXES).average(parties[:3], (1.0, 1.0, 0.0))
    without, _ = Averager(parties[0], AXES).average(parties[:2], (1.0, 1.0))
    for (now, lead, inputs), (before, _, _) in zip(places(made), places(without), strict=True):
        np.testing.assert_allclose(
            product(now, lead, inputs), product(before, lead, inputs), atol=1e-4
        )


@settings(max_examples=40, deadline=None)
@given(
    inputs=st.integers(1, 9), outputs=st.integers(1, 9), stacked=st.integers(1, 12),
    rank=st.integers(1, 9), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_factors_are_cut_as_their_matrix_is(inputs, outputs, stacked, rank, seed):
    rank = min(rank, inputs, outputs)
    draw = np.random.default_rng(seed)
    a, b = draw.normal(size=(2, inputs, stacked)), draw.normal(size=(2, stacked, outputs))
    factors, matrix = truncate_factors(a, b, rank), truncate_matrix(a @ b, rank)
    assert factors.a.shape == (2, inputs, rank) and factors.b.shape == (2, rank, outputs)
    wanted = nearest(a @ b, rank)
    np.testing.assert_allclose(factors.a @ factors.b, wanted, atol=1e-9)
    np.testing.assert_allclose(matrix.a @ matrix.b, wanted, atol=1e-9)
    assert factors.kept == pytest.approx(matrix.kept) == pytest.approx(np.sum(wanted**2))
    assert factors.dropped == pytest.approx(np.sum((a @ b - wanted) ** 2), abs=1e-9)


def test_a_direction_without_a_change_can_still_learn():
    """The gradient of b is A^T dW: A may not be zero where the change is."""
    draw = np.random.default_rng(0)
    a = np.zeros((8, 4))
    a[:, :1] = draw.normal(size=(8, 1))
    made = truncate_factors(a, draw.normal(size=(4, 6)), 3)
    np.testing.assert_allclose(np.linalg.norm(made.a, axis=0), 3**-0.5)
    zero = truncate_factors(np.zeros((8, 4)), np.zeros((4, 6)), 3)
    np.testing.assert_allclose(np.linalg.norm(zero.a, axis=0), 3**-0.5)
    assert not zero.b.any()


@pytest.mark.parametrize("weights", [(1.0, -1.0), (0.0, 0.0), (np.nan, 1.0), (np.inf, 1.0)])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="weights of parties"):
        shares(weights)
