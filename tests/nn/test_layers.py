"""Norms, rotation and feed-forward layers against flax.linen and NumPy."""

import dataclasses

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.families.llama import Llama
from t5x_llm.nn.mlp import Mlp, MlpConfig
from t5x_llm.nn.norm import Norm, NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.positions import RotaryConfig, rotary_tables, rotate

INIT = InitConfig(kernel_std=None, embed_std=0.02, residual_scale=1.0, branch_scale=1.0)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norm_equals_linen(kind):
    x = 3 + 5 * jax.random.normal(jax.random.key(0), (2, 7, 16))
    norm = Norm(NormConfig(kind, 1e-5, bias=kind == "layer", scale="ones"), 16)
    norm.scale[...] = jnp.linspace(0.5, 2, 16)
    params = {"scale": norm.scale[...]}
    if kind == "layer":
        norm.bias[...] = jnp.linspace(-1, 1, 16)
        params["bias"] = norm.bias[...]
    peer = (linen.RMSNorm if kind == "rms" else linen.LayerNorm)(epsilon=1e-5)
    np.testing.assert_allclose(norm(x), peer.apply({"params": params}, x), rtol=2e-5, atol=2e-5)


def test_norm_statistics_are_float32_under_bfloat16():
    # 4096 ones plus a spike: a bfloat16 sum of squares would stop growing at 256.
    x = jnp.ones((1, 4096), jnp.bfloat16)
    y = Norm(NormConfig("rms", 1e-6, bias=False, scale="ones"), 4096)(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), 1.0, rtol=1e-2)


def test_rotation_is_complex_multiplication():
    config = RotaryConfig(100.0, 8, interleaved=False, scaling=None, two_d=False)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = rng.integers(0, 1000, (2, 5))
    frequency = 100.0 ** (-np.arange(4) / 4)
    angle = positions[..., None, None] * frequency
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)
    expected = np.concatenate([turned.real, turned.imag], -1)
    got = rotate(jnp.asarray(x), rotary_tables(config, jnp.asarray(positions)), config)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_scores_depend_on_distance_only():
    config = RotaryConfig(1e4, 16, interleaved=False, scaling=None, two_d=False)
    q, k = jax.random.normal(jax.random.key(1), (2, 1, 1, 1, 16))

    def score(i, j):
        at = [rotary_tables(config, jnp.full((1, 1), p)) for p in (i, j)]
        return jnp.sum(rotate(q, at[0], config) * rotate(k, at[1], config))

    np.testing.assert_allclose(score(9, 4), score(1009, 1004), rtol=1e-3)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu"])
def test_mlp_equals_its_formula(gated, activation):
    mlp = Mlp(MlpConfig(24, activation, gated, bias=True), 16, INIT, nnx.Rngs(0))
    for layer in (mlp.up, mlp.down, *((mlp.gate,) if gated else ())):
        layer.bias[...] = jax.random.normal(jax.random.key(3), layer.bias.shape)
    x = jax.random.normal(jax.random.key(0), (2, 3, 16))
    peer = {
        "silu": lambda y: y / (1 + jnp.exp(-y)),
        "gelu": lambda y: y * jax.scipy.stats.norm.cdf(y),
        "gelu_tanh": lambda y: (
            0.5 * y * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi) * (y + 0.044715 * y**3)))
        ),
        "relu": lambda y: jnp.maximum(y, 0),
    }[activation]
    up = x @ mlp.up.kernel[...] + mlp.up.bias[...]
    inner = peer(x @ mlp.gate.kernel[...] + mlp.gate.bias[...]) * up if gated else peer(up)
    expected = inner @ mlp.down.kernel[...] + mlp.down.bias[...]
    np.testing.assert_allclose(mlp.apply(x), expected, atol=1e-4)


def test_impossible_heads_are_refused():
    with pytest.raises(ConfigError, match=r"AttentionConfig.n_kv_heads = 3.*divisor.*n_heads = 4"):
        dataclasses.replace(Llama(8, 8, 1, 2, 8).attention(), n_heads=4, n_kv_heads=3)
    with pytest.raises(ConfigError, match="even number"):
        RotaryConfig(1e4, 7, interleaved=False, scaling=None, two_d=False)
    with pytest.raises(ConfigError, match="Did you mean 'silu'"):
        MlpConfig(8, "sliu", gated=True, bias=False)
