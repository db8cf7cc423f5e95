"""WKV in parallel against the recurrence of the paper, token by token in float64."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from close import assert_close

from t5x_llm.nn.rwkv import WKV, wkv

B, T, A = 2, 300, 3


def _empty():
    zero = np.zeros((B, A), np.float32)
    return WKV(zero, zero, zero - 1e30)


def _reference(k, v, decay, bonus, starts):
    """Equations 15 and 16 of arXiv 2305.13048, as logarithms of sums."""
    y = np.zeros((B, T, A))
    top, bottom = np.zeros((B, A)), np.full((B, A), -np.inf)  # mean and log weight of the past
    for t in range(T):
        bottom = np.where(starts[:, t, None], -np.inf, bottom)
        own = k[:, t] + bonus
        share = np.exp(own - np.logaddexp(bottom, own))
        y[:, t] = share * v[:, t] + (1 - share) * top
        share = np.exp(k[:, t] - np.logaddexp(bottom + decay, k[:, t]))
        top = share * v[:, t] + (1 - share) * top
        bottom = np.logaddexp(bottom + decay, k[:, t])
    return y


def _inputs(scale):
    rng = np.random.default_rng(0)
    k, v = scale * rng.normal(size=(B, T, A)), rng.normal(size=(B, T, A))
    decay, bonus = -np.array([1e-4, 0.1, 3.0]), np.array([0.5, -1.0, 2.0])
    starts = np.zeros((B, T), bool)
    starts[0, [0, 1, 40, 128, 250]] = starts[1, [0, 200]] = True
    return (*(x.astype(np.float32) for x in (k, v, decay, bonus)), starts)


def test_it_is_the_recurrence_for_any_size_of_keys():
    for scale in (1.0, 300.0):  # exp(300) is beyond float32
        inputs = _inputs(scale)
        y, _ = jax.jit(wkv)(*inputs, _empty())
        expected = _reference(*(x.astype(np.float64) for x in inputs[:4]), inputs[4])
        # A weight exp(x) carries the rounding of x, which is as large as the keys.
        assert_close(y, expected, T + np.abs(inputs[0]).max())


def test_cut_anywhere_it_goes_on_from_the_state():
    k, v, decay, bonus, starts = _inputs(2.0)
    run = jax.jit(wkv)
    whole, end = run(k, v, decay, bonus, starts, _empty())
    for cut in (1, 130):
        parts, state = [], _empty()
        for piece in (slice(0, cut), slice(cut, T)):
            y, state = run(k[:, piece], v[:, piece], decay, bonus, starts[:, piece], state)
            parts.append(y)
        np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-5)
        means = [s.top / s.bottom for s in (state, end)]
        np.testing.assert_allclose(*means, atol=1e-5)


@pytest.mark.extended
def test_gradients_are_finite_and_those_of_differences():
    k, v, decay, bonus, starts = _inputs(3.0)
    weight = np.random.default_rng(1).normal(size=(B, T, A)).astype(np.float32)

    def loss(k, v, decay, bonus):
        return (wkv(k, v, decay, bonus, starts, _empty())[0] * weight).sum()

    inputs = (k, v, decay, bonus)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*inputs)
    wide = [x.astype(np.float64) for x in inputs]
    for i, gradient in enumerate(gradients):
        direction = np.random.default_rng(2 + i).normal(size=wide[i].shape) * np.abs(wide[i])
        ends = []
        for step in (1e-5, -1e-5):
            moved = [x + step * direction if j == i else x for j, x in enumerate(wide)]
            ends.append((_reference(*moved, starts) * weight).sum())
        expected = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(np.sum(gradient * direction), expected, rtol=1e-3)
