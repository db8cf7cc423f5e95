"""The local filter against XLA's convolutions, each segment on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_llm.nn.layer import Context, starts_of
from t5x_llm.nn.lfa import LocalFilterConfig
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.param import InitConfig

D = 6
NORM = NormConfig("rms", 1e-6, bias=False, scale="ones")


@pytest.fixture(scope="module")
def layer():
    made = LocalFilterConfig(NORM).make(D, InitConfig(0.5, 0.5, 1.0, 1.0), nnx.Rngs(params=0))
    for i, part in enumerate((made.conv1, made.conv2)):
        part.bias[...] = jax.random.normal(jax.random.key(i), part.bias.shape)
    return made


def convolved(layer, x):
    """One segment [T, D]: convolved twice, padded by one, cropped to T, then the norm."""
    y = x
    for conv in (layer.conv1, layer.conv2):
        y = jax.lax.conv_general_dilated(
            y[None], conv.kernel[...], (1,), [(1, 1)], dimension_numbers=("NTC", "TIO", "NTC")
        )[0]
        y = y[: len(x)] + conv.bias[...]
    y = x + y
    return y / np.sqrt(np.mean(y * y, -1, keepdims=True) + 1e-6)


def inputs(segments):
    ids = jnp.asarray(segments)[None]
    x = jax.random.normal(jax.random.key(7), (1, ids.shape[1], D))
    return x, ids


def context(ids, before=None):
    return Context(jnp.zeros_like(ids), ids, starts_of(ids, before), {})


@pytest.mark.parametrize(
    "segments", [[1] * 9, [1, 2, 2, 3, 3, 3, 3, 4, 5], [0, 0, 1, 1, 1, 0, 2, 2, 0]], ids=str
)
def test_every_segment_is_filtered_alone(layer, segments):
    x, ids = inputs(segments)
    found = layer(x, context(ids), None)[0][0]
    cuts = np.flatnonzero(np.diff(segments)) + 1
    expected = np.concatenate([convolved(layer, part) for part in np.split(x[0], cuts)])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("calls", [(9,), (1,) * 9, (1, 2, 6), (4, 1, 1, 3)], ids=str)
@pytest.mark.parametrize("segments", [[1] * 9, [0, 0, 1, 1, 2, 2, 2, 2, 3]], ids=str)
def test_decoding_in_any_steps_is_the_full_pass(layer, calls, segments):
    x, ids = inputs(segments)
    full = layer(x, context(ids), None)[0]
    cache, found, start = layer.init_cache(1, 9, jnp.float32), [], 0
    for size in calls:
        part = ids[:, start : start + size]
        before = ids[:, start - 1] if start else jnp.array([-1])
        y, cache, _ = layer(x[:, start : start + size], context(part, before), cache)
        found.append(y)
        start += size
    np.testing.assert_allclose(jnp.concatenate(found, 1), full, atol=1e-5)


def test_a_token_sees_itself_and_the_two_before_it(layer):
    x, ids = inputs([1] * 9)
    jacobian = jax.jacobian(lambda x: layer(x, context(ids), None)[0])(x)[0, :, :, 0]
    seen = np.abs(jacobian).sum((1, 3)) > 0  # [output token, input token]
    at = np.arange(9)
    np.testing.assert_array_equal(seen, (at[:, None] >= at) & (at[:, None] - at <= 2))
