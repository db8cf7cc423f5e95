"""Kept values change no gradient, and a policy that saves them keeps bits, not wide numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.nn.remat import keep, remat_policy


def _layers(x, kernels, policy):
    def body(x, kernel):
        y = keep(x @ kernel, "mlp_up") if policy else x @ kernel
        return jnp.tanh(y), None

    if policy:
        body = jax.checkpoint(body, policy=remat_policy(policy), prevent_cse=False)
    return jnp.sum(jax.lax.scan(body, x, kernels)[0].astype(jnp.float32))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("policy", ["save_projections", "full"])
def test_gradients_are_those_without_names(dtype, policy):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 16)), dtype)
    kernels = jnp.asarray(rng.normal(size=(3, 16, 16)) / 4, dtype)
    gradient = jax.grad(_layers, argnums=(0, 1))
    for a, b in zip(gradient(x, kernels, policy), gradient(x, kernels, None), strict=True):
        tolerance = 2e-2 if dtype == "bfloat16" else 1e-6
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), atol=tolerance, rtol=tolerance
        )


def test_a_saved_bfloat16_value_is_stacked_as_its_bits():
    x, kernels = jnp.ones((8, 16), jnp.bfloat16), jnp.ones((3, 16, 16), jnp.bfloat16)
    _, pullback = jax.vjp(lambda x: _layers(x, kernels, "save_projections"), x)
    kept = [(v.shape, str(v.dtype)) for v in jax.tree.leaves(pullback)]
    assert ((3, 8, 16), "uint16") in kept
