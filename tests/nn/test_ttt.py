"""TTT-Linear where segments of any length meet in a row, and in pieces; values are the zoo's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from flax import nnx

from t5x_llm.core.errors import ConfigError
from t5x_llm.nn.layer import Context, starts_of
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.positions import RotaryConfig
from t5x_llm.nn.ttt import TTTConfig

D = 8
# With mini-batches of 4: single tokens, whole and part mini-batches, chunks of several segments.
LENGTHS = (3, 1, 1, 2, 9, 4, 1, 6, 8, 5)
# Two projections of D, the taps, and for each of the longest segment's 3 mini-batches the inner
# norm, prediction, gradient and its sum over the mini-batch, of 4 each.
TERMS = 2 * D + 3 + 3 * (4 * 4)


def _config(**changed):
    fields = dict(
        n_heads=2,
        head_dim=4,
        mini_batch=4,
        base_rate=2.0,
        inner_rotary=RotaryConfig(100.0, 4, True, None, two_d=False),
        norm_eps=1e-3,
        gated=True,
        shared_taps=3,
    )
    return TTTConfig(**(fields | changed))


@pytest.fixture(scope="module")
def layer():
    made = _config().make(D, InitConfig(0.7, 0.02, 1.0, 1.0), nnx.Rngs(params=0))
    graphdef, state = nnx.split(made)
    # Away from the zeros that biases begin with.
    keys = iter(jax.random.split(jax.random.key(1), 99))
    state = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), state)
    return nnx.merge(graphdef, state)


@nnx.jit
def _run(layer, x, ids, cache=None, before=None):
    starts = starts_of(ids, before)
    context = Context(jnp.zeros_like(ids), ids, starts, {})
    y, cache, _ = layer(x, context, cache)
    return y, cache


def _row():
    ids = jnp.asarray(np.repeat(np.arange(len(LENGTHS)) + 1, LENGTHS))[None]
    return jax.random.normal(jax.random.key(2), (1, ids.shape[1], D)), ids


def test_each_segment_is_as_if_alone(layer):
    x, ids = _row()
    packed, _ = _run(layer, x, ids)
    for i in (0, 2, 4, 5, 8):
        own = np.flatnonzero(ids[0] == i + 1)
        alone, _ = _run(layer, x[:, own], jnp.ones((1, len(own)), jnp.int32))
        assert_close(packed[:, own], alone, TERMS)


def test_in_pieces_as_in_one(layer):
    x, ids = _row()
    whole, _ = _run(layer, x, ids)
    for size in (1, 10):  # never a whole mini-batch
        cache, parts = layer.init_cache(1, 0, jnp.float32), []
        before = jnp.full((1,), -1)
        for at in range(0, x.shape[1], size):
            piece = slice(at, at + size)
            y, cache = _run(layer, x[:, piece], ids[:, piece], cache, before)
            before = ids[:, piece][:, -1]
            parts.append(y)
        assert_close(np.concatenate(parts, axis=1), whole, TERMS)


def test_state_does_not_grow(layer):
    short, long = (
        jax.eval_shape(lambda n=n: layer.init_cache(2, n, jnp.float32)) for n in (1, 999)
    )
    assert short == long


def test_it_refuses_what_it_cannot_turn():
    with pytest.raises(ConfigError, match="at most head_dim = 4"):
        _config(inner_rotary=RotaryConfig(100.0, 8, True, None, two_d=False))
