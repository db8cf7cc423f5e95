"""AdaLoRA's allocation of ranks against what peft's allocator keeps, and its exact counts."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_llm.optim.rank_allocation import (
    RankBudget,
    allocate_ranks,
    kept_ranks,
    masked_ranks,
    orthogonality,
    triplets,
)

# tests/parity/make_adapters.py wrote it.
GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "parity" / "golden" / "ranks.npz"))
BUDGET = RankBudget(*map(int, GOLDEN["budget"]))
MATRICES = ("m0", "m1", "m2")


def ours(step, kind):
    """The tree of a step, in our layout: a [inputs, r], e [r], b [r, outputs]."""

    def part(name):
        a, e, b = (GOLDEN[f"{step}/{name}.lora_{x}.default/{kind}"] for x in "AEB")
        return {"adapter": {"a": a.T, "e": e[:, 0], "b": b.T}}

    return {name: part(name) for name in MATRICES}


def test_masks_equal_pefts():
    allocate = allocate_ranks(BUDGET, 0.85, 0.85)
    update = jax.jit(allocate.update)
    state = allocate.init(ours(1, "value"))
    allocations = 0
    for step in range(1, BUDGET.stop + 1):
        params, grads = ours(step, "value"), ours(step, "grad")
        passed, state = update(grads, state, params)
        jax.tree.map(np.testing.assert_array_equal, passed, grads)
        masked = masked_ranks(params, (state,))
        theirs = f"{step}/m0.lora_E.default/kept" in GOLDEN
        assert bool(state.masked) == theirs, step
        for name in MATRICES:
            e, before = (tree[name]["adapter"]["e"] for tree in (masked, params))
            if theirs:
                kept = GOLDEN[f"{step}/{name}.lora_E.default/kept"]
                np.testing.assert_array_equal(kept_ranks(state)[f"{name}.adapter"], kept)
                np.testing.assert_array_equal(e, np.where(kept, before, 0))
            else:
                np.testing.assert_array_equal(e, before)
        if theirs:
            allocations += 1
            count = sum(int(x.sum()) for x in kept_ranks(state).values())
            assert count == GOLDEN[f"{step}/budget"]
    assert allocations == 7


@pytest.mark.parametrize("initial, target", [(18, 6), (336, 112), (1, 1)])
def test_budget_falls_as_the_cube_to_the_target(initial, target):
    for step in range(1, BUDGET.stop + 4):
        left = 1 - (step - BUDGET.start) / (BUDGET.stop - BUDGET.start)
        expected = int((initial - target) * left**3 + target)
        expected = initial if step <= BUDGET.start else target if step >= BUDGET.stop else expected
        assert int(BUDGET.at(jnp.int32(step), initial, target)) == expected


def stacked(key, layers=2, rank=4):
    """Two stacked matrices, one of them with three heads of outputs; every score is equal."""
    a, b = jax.random.normal(key, (2, layers, 5, rank))
    q = {"a": a, "e": jnp.zeros((layers, rank)), "b": jnp.zeros((layers, rank, 3, 2))}
    v = {"a": b, "e": jnp.zeros((layers, rank)), "b": jnp.zeros((layers, rank, 6))}
    return {"adapter": {"q": {"adapter": q}, "v": {"adapter": v}}, "base": None}


def test_equal_scores_keep_exactly_the_target():
    budget = RankBudget(target_rank=1, start=0, stop=3, every=1)
    tx = optax.chain(allocate_ranks(budget, 0.85, 0.85), optax.sgd(0.0))
    params = stacked(jax.random.key(0))
    state = tx.init(params)
    for _ in range(5):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    kept = kept_ranks(state)
    assert sorted(kept) == ["adapter.q.adapter", "adapter.v.adapter"]
    assert sum(int(x.sum()) for x in kept.values()) == 4


def test_the_final_triplets_stay_the_same_and_pruned_ones_stay_zero():
    budget = RankBudget(target_rank=2, start=1, stop=4, every=2)
    tx = optax.chain(allocate_ranks(budget, 0.85, 0.85), optax.adam(0.1))
    params, seen = stacked(jax.random.key(1)), []
    state = tx.init(params)
    for i in range(9):
        grads = jax.tree.map(lambda x, i=i: jax.random.normal(jax.random.key(i), x.shape), params)
        updates, state = tx.update(grads, state, params)
        params = masked_ranks(optax.apply_updates(params, updates), state)
        rank = sum(int((found["e"] != 0).sum()) for found in triplets(params).values())
        seen.append((rank, {k: np.asarray(v) for k, v in kept_ranks(state).items()}))
    assert [rank for rank, _ in seen[3:]] == [8] * 6
    for _, kept in seen[4:]:
        jax.tree.map(np.testing.assert_array_equal, kept, seen[3][1])


def test_orthogonality_is_pefts_mean_of_norms():
    params = stacked(jax.random.key(2))
    params["adapter"]["v"]["adapter"]["b"] = jax.random.normal(jax.random.key(3), (2, 4, 6))
    norms = []
    for found in triplets(params).values():
        for a, b in zip(np.asarray(found["a"]), np.asarray(found["b"]), strict=True):
            b = b.reshape(4, -1)
            norms += [np.linalg.norm(a.T @ a - np.eye(4)), np.linalg.norm(b @ b.T - np.eye(4))]
    np.testing.assert_allclose(orthogonality(params), np.mean(norms), rtol=1e-5)


def test_orthogonality_has_a_gradient_where_it_is_zero():
    eye = {"a": jnp.eye(4)[None], "e": jnp.zeros((1, 4)), "b": jnp.eye(4)[None]}
    value, grads = jax.value_and_grad(orthogonality)(eye)
    assert value == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
