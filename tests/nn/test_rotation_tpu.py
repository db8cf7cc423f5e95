"""The rotation as TPUs take it gives what the plain one gives, forwards and backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.nn.kernels import turn_whole
from t5x_llm.nn.positions import RotaryConfig, rotary_tables, rotate


@pytest.mark.parametrize("interleaved", [False, True])
def test_whole_heads(interleaved):
    rng = np.random.default_rng(0)
    x, pull = (jnp.asarray(rng.normal(size=(2, 8, 3, 16)), jnp.bfloat16) for _ in range(2))
    config = RotaryConfig(10000.0, 16, interleaved, scaling=None, two_d=False)
    tables = rotary_tables(config, jnp.asarray(rng.integers(0, 999, (2, 8))))
    cos, sin = (t[:, :, None, :] for t in tables)
    plain, plain_back = jax.vjp(lambda x: rotate(x, tables, config), x)
    whole, whole_back = jax.vjp(lambda x: turn_whole(x, cos, sin, interleaved), x)
    # A sum of two products may be fused: one unit in the last place of bfloat16 apart.
    for a, b in ((whole, plain), (whole_back(pull)[0], plain_back(pull)[0])):
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=2**-7, atol=2**-16
        )
