"""Bottleneck layers against NumPy, and that a fresh one leaves its base as it is."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from adapter_models import adapter_leaves, gradients, hidden, made, shaken, some, tokens, without

from t5x_llm.core.errors import ConfigError
from t5x_llm.nn.adapters.bottleneck import BottleneckLayer
from t5x_llm.nn.adapters.residual import Bottleneck

CASES = {
    "llama": ("houlsby", {"attention", "mlp"}),
    "qwen2": ("pfeiffer", {"mlp"}),
    "gpt2": ("pfeiffer", {"mlp"}),
    "mixtral": ("houlsby", {"attention", "mlp"}),
    "falcon": ("houlsby", {"attention", "mlp"}),
    "mamba": ("houlsby", {"ssm"}),
    "t5": ("houlsby", {"attention", "cross_attention", "mlp"}),
}


def test_layer_equals_numpy():
    layer = BottleneckLayer(6, 4, "relu")
    rng, values = np.random.default_rng(0), {}
    for name, shape in {"down": (6, 4), "down_bias": (4,), "up": (4, 6), "up_bias": (6,)}.items():
        values[name] = rng.normal(size=shape).astype(np.float32)
        getattr(layer, name)[...] = jnp.asarray(values[name])
    y = rng.normal(size=(2, 3, 6)).astype(np.float32)
    inner = np.maximum(y @ values["down"] + values["down_bias"], 0)
    expected = y + inner @ values["up"] + values["up_bias"]
    np.testing.assert_allclose(layer(jnp.asarray(y)), expected, atol=1e-5)


@pytest.mark.parametrize("family", some(CASES, ("llama", "qwen2")))
def test_a_fresh_one_is_the_base_to_the_bit_and_all_of_a_trained_one_matters(family):
    form, parts = CASES[family]
    model, params = made(family, Bottleneck(form, size=3))
    ids = tokens(2, 8)
    base = hidden(family, without(params), ids)
    np.testing.assert_array_equal(hidden(family, params, ids, model), base)
    trained = shaken(params)
    grads = adapter_leaves(gradients(model, trained, family))
    assert {path.split(".")[-2] for path in grads} == parts
    assert all(np.abs(x).max() > 1e-6 for x in grads.values())
    groups = 3 if family == "t5" else 1
    assert len(grads) == 4 * (5 if groups == 3 else len(parts))


def test_up_std_begins_near_the_base():
    model, params = made("llama", Bottleneck(size=3, std=0.01, up_std=0.01))
    ids = tokens(2, 8)
    found = hidden("llama", params, ids, model)
    base = hidden("llama", without(params), ids)
    assert 0 < np.abs(found - base).max() < 1e-2


def test_remat_changes_nothing():
    grads = []
    for remat in ("none", "full"):
        model, params = made("llama", Bottleneck(size=3), remat=remat)
        grads.append(adapter_leaves(gradients(model, shaken(params), "llama")))
    for path, x in grads[0].items():
        np.testing.assert_allclose(x, grads[1][path], atol=2e-4)


def test_nothing_feed_forward():
    with pytest.raises(ConfigError, match="'houlsby', as no layer of this model is feed-forward"):
        made("mamba", Bottleneck("pfeiffer"))


@pytest.mark.parametrize(
    "field, value", [("form", "both"), ("size", 0), ("activation", "gelo"), ("std", 0)]
)
def test_mistakes(field, value):
    with pytest.raises(ConfigError, match=f"Bottleneck.{field} = {value!r}"):
        Bottleneck(**{field: value})
