"""(IA)3: the base to the bit at first, factors where they belong, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_models import adapter_leaves, gradients, hidden, made, shaken, some, tokens, without
from flax import nnx

from t5x_llm.core.errors import ConfigError
from t5x_llm.nn.adapters.scaling import IA3, InputScale, OutputScale
from t5x_llm.nn.dense import Dense

# Factors of a layer: keys and values by head, and what the last feed-forward map reads.
SHAPES = {
    "llama": {"key": (2, 2, 8), "value": (2, 2, 8), "down": (2, 48)},
    "qwen2": {"key": (2, 2, 8), "value": (2, 2, 8), "down": (2, 48)},
    "gpt2": {"key": (2, 4, 8), "value": (2, 4, 8), "down": (2, 128)},
    "mixtral": {"key": (2, 2, 8), "value": (2, 2, 8), "down": (2, 4, 48)},
    "falcon": {"key": (2, 1, 8), "value": (2, 1, 8), "down": (2, 128)},
    "t5": {"key": (2, 4, 8), "value": (2, 4, 8), "down": (2, 48)},
}


@pytest.mark.parametrize("family", some(SHAPES, ("qwen2", "mixtral")))
def test_a_fresh_one_is_the_base_to_the_bit_and_all_of_a_trained_one_matters(family):
    model, params = made(family, IA3())
    ids = tokens(2, 8)
    base = hidden(family, without(params), ids)
    np.testing.assert_array_equal(hidden(family, params, ids, model), base)
    grads = adapter_leaves(gradients(model, shaken(params), family))
    for path, grad in grads.items():
        (name,) = (n for n in ("key", "value", "down") if n in path.replace("_", ".").split("."))
        assert grad.shape == SHAPES[family][name], path
        assert np.abs(grad).max() > 1e-6, path
    assert len(grads) == (8 if family == "t5" else 3)


@pytest.mark.parametrize("inside", [True, False])
def test_scaled_layer_equals_numpy_and_its_merged_kernel(inside):
    layer = Dense(
        (6,), (3, 4), ("embed",), ("heads", "head"), std=1.0, bias=True, rngs=nnx.Rngs(params=0)
    )
    rng = np.random.default_rng(0)
    x, bias = (rng.normal(size=s).astype(np.float32) for s in ((2, 5, 6), (3, 4)))
    layer.bias[...] = jnp.asarray(bias)
    kernel = np.asarray(layer.kernel[...])
    scale = rng.normal(size=(6,) if inside else (3, 4)).astype(np.float32)
    own = nnx.Param(jnp.asarray(scale))
    layer.adapter = InputScale(own, 2) if inside else OutputScale(own)
    if inside:
        expected = np.einsum("btd,dnh->btnh", x * scale, kernel) + bias
    else:
        expected = (np.einsum("btd,dnh->btnh", x, kernel) + bias) * scale
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-5)
    merged = np.asarray(layer.weights(jnp.float32))
    bias = bias if inside else bias * scale
    np.testing.assert_allclose(np.einsum("btd,dnh->btnh", x, merged) + bias, expected, atol=1e-5)


def test_scaled_experts_are_each_scaled_by_their_own():
    rng = np.random.default_rng(1)
    kernels, x = (rng.normal(size=s).astype(np.float32) for s in ((3, 6, 4), (3, 5, 6)))
    ins, outs = (rng.normal(size=s).astype(np.float32) for s in ((3, 6), (3, 4)))
    found = InputScale(nnx.Param(jnp.asarray(ins)), 1).merged_experts(jnp.asarray(kernels))
    expected = np.einsum("eti,eio->eto", x * ins[:, None], kernels)
    np.testing.assert_allclose(np.einsum("eti,eio->eto", x, found), expected, atol=1e-5)
    found = OutputScale(nnx.Param(jnp.asarray(outs))).merged_experts(jnp.asarray(kernels))
    expected = np.einsum("eti,eio->eto", x, kernels) * outs[:, None]
    np.testing.assert_allclose(np.einsum("eti,eio->eto", x, found), expected, atol=1e-5)


def test_mistakes():
    with pytest.raises(ConfigError, match="IA3.outputs = 'keys'.*Did you mean 'key'"):
        made("llama", IA3(outputs=("keys",)))
    with pytest.raises(ConfigError, match="IA3.outputs = 'key'"):
        made("mamba", IA3())
    with pytest.raises(ConfigError, match="not in IA3.outputs"):
        made("llama", IA3(outputs=("mlp",)))
    with pytest.raises(ConfigError, match=r"IA3.outputs = \(\)"):
        IA3(outputs=(), inputs=())


def test_either_side_may_be_left_out():
    model, params = made("llama", IA3(inputs=()))
    assert len(adapter_leaves(params)) == 2
    model, params = made("mamba", IA3(outputs=("ssm.out",), inputs=()))
    assert jax.tree.leaves(adapter_leaves(params))
