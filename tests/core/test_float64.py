"""The same function in float64: against NumPy in float64, every kind of control flow in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.core.float64 import in_float64

N = 32


@pytest.fixture
def weights():
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=(3, N, N)).astype(np.float32) for name in ("a", "b")}


def run(function, weights, *rest):
    """(in float64, in float32) as NumPy."""
    wide, narrow = in_float64(function)(weights, *rest), function(weights, *rest)
    assert jax.numpy.result_type(narrow) == jnp.float32 and not jax.config.jax_enable_x64
    return np.asarray(wide), np.asarray(narrow)


def check(found, wanted):
    """float64 is right to 1e-12, and float32 is not: the test can tell."""
    wide, narrow = found
    assert wide.dtype == np.float64
    scale = np.abs(wanted).max()
    assert np.abs(wide - wanted).max() < 1e-12 * scale < np.abs(narrow - wanted).max()


def test_products_and_functions(weights):
    def function(w, x):
        y = jax.nn.softmax(x @ w["a"][0], axis=-1)
        y = jax.nn.silu(jnp.einsum("ij,jk->ik", y, w["b"][0], preferred_element_type=jnp.float32))
        return y.astype(jnp.float32) * jax.lax.rsqrt(jnp.mean(y**2, -1, keepdims=True) + 1e-3)

    x = np.linspace(-1, 1, 4 * N, dtype=np.float32).reshape(4, N)
    a, b = (weights[name][0].astype(np.float64) for name in "ab")
    z = x @ a
    e = np.exp(z - z.max(-1, keepdims=True))
    y = (e / e.sum(-1, keepdims=True)) @ b
    y = y / (1 + np.exp(-y))
    check(run(function, weights, x), y / np.sqrt((y**2).mean(-1, keepdims=True) + np.float32(1e-3)))


def test_scan_widens_what_it_carries(weights):
    """The carry begins as a constant that no weight made, and becomes wide on the way."""

    def function(w):
        def body(carry, layer):
            total, count = carry
            total = total + jnp.tanh(layer["a"] @ layer["b"])
            return (total, count + 1), jnp.sum(total)

        (total, count), sums = jax.lax.scan(body, (jnp.zeros((N, N)), 0), w)
        return total + jnp.sum(sums) + count.astype(jnp.float32)

    a, b = (weights[name].astype(np.float64) for name in "ab")
    totals = np.cumsum(np.tanh(a @ b), 0)
    check(run(function, weights), totals[-1] + totals.sum() + 3)


def test_while_and_cond(weights):
    def function(w, n):
        y = jax.lax.fori_loop(0, n, lambda i, y: jnp.sin(w["a"][0] @ y), jnp.ones((N, N)))
        return jax.lax.cond(n > 2, lambda: y @ w["b"][0], lambda: jnp.zeros((N, N)))

    y, a = np.ones((N, N)), weights["a"][0].astype(np.float64)
    for _ in range(3):
        y = np.sin(a @ y)
    check(run(function, weights, np.int32(3)), y @ weights["b"][0].astype(np.float64))
    assert not run(function, weights, np.int32(2))[0].any()


def test_calls_and_custom_gradients(weights):
    @jax.custom_vjp
    def product(x, y):
        return x @ y

    product.defvjp(lambda x, y: (x @ y, (x, y)), lambda saved, dy: saved)

    def function(w):
        inner = jax.checkpoint(jax.jit(lambda x: jax.nn.relu(product(x, w["b"][1]))))
        return inner(w["a"][1])

    a, b = (weights[name][1].astype(np.float64) for name in "ab")
    check(run(function, weights), np.maximum(a @ b, 0))


def test_what_no_weight_made_stays(weights):
    """Angles are float32 in reference implementations too; roundings asked for are carried out."""
    positions = np.arange(500, 500 + N, dtype=np.int32)

    def angles(positions):
        return jnp.cos(positions.astype(jnp.float32) * jnp.float32(0.1234567))

    def function(w, positions):
        kept = jax.lax.reduce_precision(w["b"][0], 8, 7)
        return angles(positions)[:, None] * w["a"][0] + kept

    narrow = np.asarray(jax.jit(angles)(positions), np.float64)[:, None]
    kept = np.asarray(weights["b"][0].astype(jnp.bfloat16), np.float64)
    wide, _ = run(function, weights, positions)
    np.testing.assert_allclose(wide, narrow * weights["a"][0].astype(np.float64) + kept, rtol=1e-13)


def test_what_came_out_goes_in(weights):
    """Layer by layer: nothing is rounded between them."""
    layer = in_float64(lambda w: jnp.tanh(w[0] @ w[1]))
    x = weights["a"][0]
    wanted = x.astype(np.float64)
    for w in weights["b"]:
        x, wanted = layer((x, w)), np.tanh(wanted @ w.astype(np.float64))
    np.testing.assert_allclose(np.asarray(x), wanted, atol=1e-13)
