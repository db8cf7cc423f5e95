"""Kept values change no gradient, and a policy that saves them keeps bits, not wide numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.core.dtypes import Policy
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.model import Model
from t5x_llm.nn.remat import keep, remat_policy
from t5x_llm.parallel import MeshConfig, make_mesh, use


def _layers(x, kernels, policy):
    def body(x, kernel):
        y = keep(x @ kernel, "mlp_up") if policy else x @ kernel
        return jnp.tanh(y), None

    if policy:
        body = jax.checkpoint(body, policy=remat_policy(policy), prevent_cse=False)
    return jnp.sum(jax.lax.scan(body, x, kernels)[0].astype(jnp.float32))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("policy", ["save_projections", "full", "offload_projections"])
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


@pytest.mark.parametrize(
    ("policy", "saved"),
    [("save_projections", True), ("save_attention_up", True), ("save_attention", False)],
)
def test_a_saved_bfloat16_value_is_stacked_as_its_bits(policy, saved):
    x, kernels = jnp.ones((8, 16), jnp.bfloat16), jnp.ones((3, 16, 16), jnp.bfloat16)
    _, pullback = jax.vjp(lambda x: _layers(x, kernels, policy), x)
    kept = [(v.shape, str(v.dtype)) for v in jax.tree.leaves(pullback)]
    assert (((3, 8, 16), "uint16") in kept) == saved


@pytest.mark.parametrize(
    "remat",
    [
        "dots",
        pytest.param("full", marks=pytest.mark.extended),
        pytest.param("save_projections", marks=pytest.mark.extended),
    ],
)
def test_the_input_of_a_layer_is_stacked_as_its_bits(one_device, remat):
    """Nothing in bfloat16 is stacked over layers, and the gradients are those of ``none``."""
    layers, b, t = 3, 2, 16
    family = Llama(vocab_size=32, d_model=8, n_layers=layers, n_heads=2, d_ff=24)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (b, t)), jnp.int32)
    config = MeshConfig()

    def loss(params, choice):
        with use(make_mesh(config, one_device), config.rules()):
            hidden = Model(family.decoder(), remat=choice).apply(params, tokens)[0]
        return jnp.sum(jnp.sin(hidden.astype(jnp.float32)))

    params = Model(family.decoder()).init(jax.random.key(0))
    _, pullback = jax.vjp(lambda p: loss(p, remat), params)
    kept = {(v.shape, str(v.dtype)) for v in jax.tree.leaves(pullback)}
    assert ((layers, b, t, 8), "uint16") in kept
    assert ((layers, b, t, 8), "bfloat16") not in kept
    again, plain = (jax.jit(jax.grad(lambda p, c=c: loss(p, c)))(params) for c in (remat, "none"))
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=2e-2 * np.abs(y).max())


@pytest.mark.parametrize("remat", ["offload_stream", "full"])
def test_what_is_offloaded_goes_to_the_host(remat):
    """The layers' inputs, stacked, lie in the host's memory between the passes, and only there."""
    family = Llama(vocab_size=32, d_model=8, n_layers=3, n_heads=2, d_ff=24)
    tokens = jnp.zeros((2, 16), jnp.int32)

    def gradient(remat):
        model = Model(family.decoder(), Policy(compute="float32"), remat)
        return jax.grad(lambda p: jnp.sum(jnp.sin(model.apply(p, tokens)[0])))

    params = Model(family.decoder()).init(jax.random.key(0))
    text = str(jax.make_jaxpr(gradient(remat))(params))
    found = [stack in text for stack in ("f32<host>[3,2,16,8]", "f32[3,2,16,8]")]
    assert found == ([True, False] if remat == "offload_stream" else [False, True])
    got, plain = (jax.jit(gradient(name))(params) for name in (remat, "none"))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
