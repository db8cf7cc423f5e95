"""Families that transformers does not have, against NumPy written from papers and model cards."""

from __future__ import annotations

import importlib

import jax
import numpy as np
import pytest
import zoo
from close import assert_within
from zoo import CASES, CUT

from t5x_llm.hf.references import MODULES


def reference(name):
    """(config, read, tokens) -> logits, or None."""
    kind = MODULES.get(CASES[name]["model_type"])
    if kind is None:
        return None
    return getattr(importlib.import_module(f"t5x_llm.hf.references.{kind}"), kind)


NAMES = [name for name in CASES if reference(name)]


def reader(name, dtype=np.float32, **changed):
    shapes = zoo.hf_shapes(zoo.model(name)[0])

    def read(tensor):
        if tensor in changed:
            return changed[tensor]
        return zoo.array(tensor, shapes[tensor]).astype(dtype)

    return read


@pytest.mark.parametrize("name", NAMES)
def test_logits(name):
    _, model, params = zoo.model(name)
    forward, ids = zoo.run(model), zoo.tokens()
    compute, read = reference(name), reader(name)
    atol = zoo.tolerance(name)
    expected = compute(CASES[name], read, ids)
    np.testing.assert_allclose(forward(params, ids[None]), expected, atol=atol, rtol=0)
    packed = forward(params, ids[None], *zoo.segments())
    apart = [compute(CASES[name], read, part) for part in (ids[:CUT], ids[CUT:])]
    np.testing.assert_allclose(packed, np.concatenate(apart), atol=atol, rtol=0)


@pytest.mark.zoo
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    """Along a random direction of each tensor, against central differences in float64."""
    _, model, params = zoo.model(name)
    ids, compute = zoo.tokens(7, 25), reference(name)
    with jax.default_matmul_precision("highest"):
        gradients = jax.jit(jax.grad(zoo.mean_loss(name)))(params, ids)

    def loss(**changed):
        logits = compute(CASES[name], reader(name, np.float64, **changed), ids[:-1])
        top = logits.max(-1, keepdims=True)
        log_z = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
        return np.mean(log_z - logits[np.arange(len(ids) - 1), ids[1:]])

    for tensor, gradient in zoo.our_gradients(name, gradients).items():
        weights = zoo.array(tensor, gradient.shape).astype(np.float64)
        direction = np.random.default_rng(5).normal(size=gradient.shape)
        step = 1e-6  # small enough that no token changes its experts
        plus, minus = (loss(**{tensor: weights + s * step * direction}) for s in (1, -1))
        expected, found = (plus - minus) / (2 * step), np.sum(gradient * direction)
        scale = np.linalg.norm(gradient)
        allowed = 1e-3 * max(scale, abs(expected)) + 1e-6
        assert_within(abs(found - expected), allowed, tensor)
