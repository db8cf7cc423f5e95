"""Logit warps against what transformers' processors gave (golden/warps.npz)."""

from __future__ import annotations

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.infer import warp

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "parity/golden/warps.npz")


def apply(name, logits):
    kind, value = name.rsplit("_", 1)
    if kind == "repetition":
        seen = np.zeros(logits.shape, bool)
        np.put_along_axis(seen, GOLDEN["ids"], True, -1)
        return warp.repetition_penalty(logits, jnp.asarray(seen), jnp.float32(value))
    if kind == "top_k":
        return warp.top_k(logits, jnp.int32(value))
    return {"temperature": warp.temperature, "top_p": warp.top_p}[kind](logits, jnp.float32(value))


@pytest.mark.parametrize("name", sorted(set(GOLDEN.files) - {"logits", "ids", "chain"}))
def test_one(name):
    found = apply(name, jnp.asarray(GOLDEN["logits"]))
    np.testing.assert_array_equal(np.isinf(found), np.isinf(GOLDEN[name]))
    np.testing.assert_allclose(found, GOLDEN[name], rtol=1e-6)


def test_chain():
    found = jnp.asarray(GOLDEN["logits"])
    for name in ("repetition_1.3", "temperature_0.7", "top_k_7", "top_p_0.6"):
        found = apply(name, found)
    np.testing.assert_array_equal(np.isinf(found), np.isinf(GOLDEN["chain"]))
    np.testing.assert_allclose(found, GOLDEN["chain"], rtol=1e-6)


def test_something_always_stays():
    logits = jnp.asarray([[0.0, 5.0, -1.0], [1.0, 1.0, 1.0]])
    assert np.isfinite(warp.top_p(logits, jnp.float32(1e-6))).sum(-1).tolist() == [1, 3]
    assert np.isfinite(warp.top_k(logits, jnp.int32(1))).sum(-1).tolist() == [1, 3]
