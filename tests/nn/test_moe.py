"""Mixtures of experts against a dense loop over experts, and their losses against the papers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_llm.core.errors import ConfigError
from t5x_llm.nn.cache import CacheRows
from t5x_llm.nn.kernels import grouped
from t5x_llm.nn.layer import Context, starts_of
from t5x_llm.nn.mlp import ACTIVATIONS, MlpConfig
from t5x_llm.nn.moe import MoeConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.router import GroupLimitConfig, RouterConfig
from t5x_llm.parallel import MeshConfig, make_mesh, param_shardings, use

INIT = InitConfig(kernel_std=0.4, embed_std=0.02, residual_scale=1.0, branch_scale=1.0)
D = 16


def router(**changes):
    base = dict(n_experts=8, top_k=2, scoring="softmax", correction=False, groups=None)
    base |= dict(normalise=None, scale=1.0, balance_weight=0.01, z_weight=0.001)
    return RouterConfig(**base | changes)


def moe(router_config, **changes):
    base = dict(d_ff=24, activation="silu", gated=True, shared=None, shared_gate=False)
    base |= dict(dispatch="dropless", capacity_factor=None)
    return MoeConfig(router=router_config, **base | changes)


SHARED = MlpConfig(20, "silu", gated=True, bias=False)
FLAVOURS = {
    "mixtral": moe(router(normalise=1.0)),
    "qwen2_moe": moe(router(top_k=4), shared=SHARED, shared_gate=True),
    "qwen3_moe": moe(router(top_k=3, normalise=1.0)),
    "dbrx": moe(router(top_k=4, normalise=2.0)),
    "grok": moe(router(), activation="gelu_tanh"),
    "switch": moe(router(top_k=1), activation="relu", gated=False),
    "deepseek_v2": moe(
        router(top_k=3, groups=GroupLimitConfig(4, 2, "max"), scale=16.0), shared=SHARED
    ),
    "deepseek_v3": moe(
        router(
            top_k=3,
            scoring="sigmoid",
            correction=True,
            groups=GroupLimitConfig(4, 2, "top2"),
            normalise=1.0,
            scale=2.5,
        ),
        shared=SHARED,
    ),
}


def make(config, seed=0):
    layer = config.make(D, INIT, nnx.Rngs(seed))
    if config.router.correction:
        layer.router.correction[...] = jax.random.normal(jax.random.key(7), (8,))
    return layer


def context(segment_ids):
    segment_ids = jnp.asarray(segment_ids, jnp.int32)
    return Context(jnp.zeros_like(segment_ids), segment_ids, starts_of(segment_ids), {})


def tokens(b=2, t=11, seed=0):
    return jax.random.normal(jax.random.key(seed), (b, t, D))


def choose(name, logits, correction):
    """Weights [E] of one token, zero for experts it does not go to: transformers' modeling files.

    Grok-1: its released model.py.
    """
    softmax = np.exp(logits - logits.max())
    softmax /= softmax.sum()
    weights = np.zeros_like(logits)

    def best(scores, k):
        return np.argsort(-scores, kind="stable")[:k]

    if name == "deepseek_v3":
        scores = 1 / (1 + np.exp(-logits))
        biased = scores + correction
        groups = np.sort(biased.reshape(4, 2), axis=-1)[:, -2:].sum(-1)
        masked = np.full_like(biased, -np.inf)
        for g in best(groups, 2):
            masked[2 * g : 2 * g + 2] = biased[2 * g : 2 * g + 2]
        chosen = best(masked, 3)
        weights[chosen] = 2.5 * scores[chosen] / (scores[chosen].sum() + 1e-20)
    elif name == "deepseek_v2":
        masked = np.zeros_like(softmax)
        for g in best(softmax.reshape(4, 2).max(-1), 2):
            masked[2 * g : 2 * g + 2] = softmax[2 * g : 2 * g + 2]
        chosen = best(masked, 3)
        weights[chosen] = 16.0 * softmax[chosen]
    else:
        top_k, norm = {
            "mixtral": (2, lambda w: w.sum()),
            "qwen2_moe": (4, lambda w: 1.0),
            "qwen3_moe": (3, lambda w: w.sum()),
            "dbrx": (4, np.linalg.norm),
            "grok": (2, lambda w: 1.0),
            "switch": (1, lambda w: 1.0),
        }[name]
        chosen = best(softmax, top_k)
        weights[chosen] = softmax[chosen] / norm(softmax[chosen])
    return weights


def dense(name, layer, x):
    """Every expert for every token, one after the other, in float64."""
    config = layer.config
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), nnx.to_pure_dict(nnx.state(layer)))
    x = np.asarray(x, np.float64)
    act = {
        "silu": lambda y: y / (1 + np.exp(-y)),
        "gelu_tanh": lambda y: 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))),
        "relu": lambda y: np.maximum(y, 0),
    }[config.activation]
    out = np.zeros_like(x)
    for b, t in np.ndindex(*x.shape[:2]):
        row = x[b, t]
        weights = choose(name, row @ p["router"]["kernel"], p["router"].get("correction"))
        for e in np.flatnonzero(weights):
            up = row @ p["experts"]["up"][e]
            inner = act(row @ p["experts"]["gate"][e]) * up if config.gated else act(up)
            out[b, t] += weights[e] * (inner @ p["experts"]["down"][e])
        if config.shared is not None:
            s = {k: v["kernel"] for k, v in p["shared"].items()}
            shared = (act(row @ s["gate"]) * (row @ s["up"])) @ s["down"]
            if config.shared_gate:
                shared = shared / (1 + np.exp(-row @ p["shared_gate"]["kernel"]))
            out[b, t] += shared
    return out


def run(layer, x, segment_ids):
    """The compiled layer: (y, scalars)."""
    graphdef, state = nnx.split(layer)

    @jax.jit
    def call(state, x, segment_ids):
        y, cache, aux = nnx.merge(graphdef, state)(x, context(segment_ids), None)
        assert cache is None
        return y, aux

    return call(state, x, segment_ids)


def capacity(config, factor=8.0):
    return dataclasses.replace(config, dispatch="capacity", capacity_factor=factor)


@pytest.mark.parametrize("way", ["dropless", "capacity"])
@pytest.mark.parametrize("name", FLAVOURS)
def test_routing_equals_a_loop_over_experts(name, way):
    config = FLAVOURS[name] if way == "dropless" else capacity(FLAVOURS[name])
    layer, x = make(config), tokens()
    y, aux = run(layer, x, np.ones((2, 11)))
    np.testing.assert_allclose(y, dense(name, layer, x), rtol=2e-4, atol=2e-4)
    assert aux["moe_dropped"] == 0
    assert set(aux) == {"loss", "moe_balance", "moe_z", "moe_dropped"}


def pretend(platform, monkeypatch):
    """Takes the products of another platform, Pallas kernels interpreted."""
    if platform in ("gpu", "tpu"):
        monkeypatch.setattr(grouped, "platform", lambda: platform)
        kernel = functools.partial(grouped.gmm, interpret=True)
        monkeypatch.setattr(grouped, "gmm", kernel)


def dense_output(config, params, x, valid):
    """The layer without dispatch, differentiable: every expert sees every token."""
    scores = x @ params["router"]["kernel"]
    probabilities = jax.nn.softmax(scores, -1)
    if config.router.scoring == "sigmoid":
        probabilities = jax.nn.sigmoid(scores)
    biased = probabilities + params["router"].get("correction", 0.0)
    cut = jnp.sort(biased, -1)[..., -config.router.top_k, None]
    weights = jnp.where(biased >= cut, probabilities, 0.0)
    if config.router.normalise is not None:
        weights = weights / jnp.sum(weights, -1, keepdims=True)
    weights = weights * config.router.scale * valid[..., None]
    e = params["experts"]
    act = ACTIVATIONS[config.activation]
    inner = jnp.einsum("btd,edf->btef", x, e["up"])
    inner = act(jnp.einsum("btd,edf->btef", x, e["gate"])) * inner if config.gated else act(inner)
    return jnp.einsum("btef,efd,bte->btd", inner, e["down"], weights)


@pytest.mark.parametrize("path", ["cpu", "gpu", "tpu", "capacity"])
@pytest.mark.parametrize(
    "config",
    [
        moe(router(normalise=1.0)),
        moe(router(top_k=3, scoring="sigmoid", correction=True, scale=2.5)),
        moe(router(top_k=1), gated=False, activation="gelu"),
    ],
    ids=["mixtral", "sigmoid", "switch"],
)
def test_gradients_equal_those_of_the_dense_loop(config, path, monkeypatch):
    if path == "capacity":
        config = capacity(config)
    pretend(path, monkeypatch)
    layer, x = make(config), tokens()
    segments = np.ones((2, 11), np.int32)
    segments[1, 8:] = 0
    graphdef, state = nnx.split(layer)
    target = jax.random.normal(jax.random.key(5), x.shape)

    def loss(state, x):
        y, _, _ = nnx.merge(graphdef, state)(x, context(segments), None)
        return jnp.sum(y * target)

    def expected(state, x):
        y = dense_output(config, nnx.to_pure_dict(state), x, jnp.asarray(segments != 0))
        return jnp.sum(y * target)

    got = jax.jit(jax.value_and_grad(loss, (0, 1)))(state, x)
    want = jax.jit(jax.value_and_grad(expected, (0, 1)))(state, x)
    correction = nnx.to_pure_dict(got[1][0])["router"].get("correction", jnp.zeros(8))
    np.testing.assert_array_equal(correction, 0)  # it is not trained by gradient
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), got, want)


@pytest.mark.parametrize("way", ["dropless", "capacity"])
def test_bfloat16_is_close_to_float32(way):
    config = FLAVOURS["mixtral"] if way == "dropless" else capacity(FLAVOURS["mixtral"])
    layer = make(config)
    x = tokens(2, 64).astype(jnp.bfloat16)
    segments = np.ones((2, 64))
    y, _ = run(layer, x, segments)
    z, _ = run(layer, x.astype(jnp.float32), segments)
    assert y.dtype == jnp.bfloat16
    error = jnp.linalg.norm(y.astype(jnp.float32) - z) / jnp.linalg.norm(z)
    assert error < 0.02

    def loss(x):
        return jnp.sum(run(layer, x, segments)[0].astype(jnp.float32) ** 2)

    a, b = jax.grad(loss)(x).astype(jnp.float32), jax.grad(loss)(x.astype(jnp.float32))
    assert jnp.linalg.norm(a - b) / jnp.linalg.norm(b) < 0.05


def one_way(config, expert):
    """A layer that sends every token with a positive first channel to ``expert`` alone."""
    layer = make(config)
    kernel = np.zeros((D, config.router.n_experts), np.float32)
    kernel[0, expert] = 50.0
    layer.router.kernel[...] = kernel
    return layer


def test_tokens_beyond_capacity_are_dropped_in_order():
    config = capacity(moe(router(top_k=1, n_experts=4)), factor=1.0)
    layer = one_way(config, 2)
    x = jnp.abs(tokens(2, 8)) + 0.5
    segments = np.ones((2, 8), np.int32)
    segments[0, :3] = 0  # takes no place
    y, aux = run(layer, x, segments)
    whole, _ = run(make_dropless(layer), x, segments)
    assert config.capacity(8) == 2
    np.testing.assert_allclose(aux["moe_dropped"], (3 + 6) / 13, rtol=1e-6)
    kept = np.zeros((2, 8), bool)
    kept[0, 3:5] = kept[1, :2] = True
    np.testing.assert_allclose(y[kept], whole[kept], atol=1e-5)
    np.testing.assert_array_equal(y[~kept], 0)
    assert np.abs(whole[kept]).min(axis=-1).max() > 0


def test_with_a_cache_nothing_is_dropped():
    """Neither by capacity, which a call's padding would change; that padding goes nowhere."""
    layer, x = make(capacity(FLAVOURS["mixtral"], 0.3)), tokens(2, 12)
    lengths = jnp.asarray([12, 5])
    valid = jnp.arange(12) < lengths[:, None]
    whole, _ = run(make_dropless(layer), x, valid)
    rows = CacheRows(jnp.zeros(2, jnp.int32), lengths)
    y, _, aux = layer(x, dataclasses.replace(context(valid), rows=rows), {})
    assert aux["moe_dropped"] == 0 and run(layer, x, valid)[1]["moe_dropped"] > 0.1
    np.testing.assert_array_equal(y, whole)


def make_dropless(layer):
    config = dataclasses.replace(layer.config, dispatch="dropless", capacity_factor=None)
    other = make(config)
    nnx.update(other, nnx.state(layer))
    return other


@pytest.mark.parametrize("path", ["cpu", "gpu", "tpu"])
def test_all_tokens_of_one_expert_are_kept(path, monkeypatch):
    pretend(path, monkeypatch)
    layer = one_way(moe(router(top_k=1)), 7)
    x = jnp.abs(tokens(3, 50)) + 0.5
    y, _ = run(layer, x, np.ones((3, 50)))
    np.testing.assert_allclose(y, dense("switch", layer, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [FLAVOURS["mixtral"], capacity(FLAVOURS["mixtral"], 0.7)])
def test_padding_is_ignored(config):
    layer, x = make(config), tokens(2, 12)
    segments = np.ones((2, 12), np.int32)
    segments[0, 5:] = segments[1, :4] = 0
    other = jnp.where(jnp.asarray(segments)[..., None] == 0, 100 * tokens(2, 12, seed=9), x)
    (y, aux), (z, other_aux) = (run(layer, a, segments) for a in (x, other))
    np.testing.assert_array_equal(y, z)
    np.testing.assert_array_equal(y[segments == 0], 0)
    assert aux == other_aux
    y, aux = run(layer, x, np.zeros((2, 12)))
    np.testing.assert_array_equal(y, 0)
    assert all(value == 0 for value in aux.values())


def test_the_loss_is_the_weighted_sum():
    layer = make(FLAVOURS["mixtral"])
    _, aux = run(layer, tokens(), np.ones((2, 11)))
    np.testing.assert_allclose(
        aux["loss"], 0.01 * aux["moe_balance"] + 0.001 * aux["moe_z"], rtol=1e-6
    )
    assert all(value.dtype == jnp.float32 for value in aux.values())


@pytest.mark.parametrize(
    "mesh_config",
    [
        MeshConfig(fsdp=1, data=2, expert=4),
        MeshConfig(fsdp=2, data=1, expert=2, tensor=2),
        MeshConfig(fsdp=2, expert=2, context=2),
        MeshConfig(fsdp=8),
        MeshConfig(fsdp=4, expert=2, overrides=(("compute.experts", ("fsdp", "expert")),)),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "name",
    [
        "qwen2_moe",
        *(pytest.param(n, marks=pytest.mark.extended) for n in ("deepseek_v3", "capacity")),
    ],
)
def test_eight_devices_equal_one(name, mesh_config):
    config = capacity(FLAVOURS["mixtral"], 1.0) if name == "capacity" else FLAVOURS[name]
    layer, x = make(config), tokens(8, 12)
    segments = np.ones((8, 12), np.int32)
    segments[3, 7:] = 0
    graphdef, state = nnx.split(layer)
    target = jax.random.normal(jax.random.key(5), x.shape)

    def loss(state, x):
        y, _, aux = nnx.merge(graphdef, state)(x, context(segments), None)
        return jnp.sum(y * target) + 100 * aux["loss"], (y, aux)

    expected = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(state, x)
    mesh, rules = make_mesh(mesh_config), mesh_config.rules()

    def sharded(state, x):
        with use(mesh, rules):
            return jax.value_and_grad(loss, (0, 1), has_aux=True)(state, x)

    got = jax.jit(sharded)(placed(state, mesh, rules), x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


def placed(state, mesh, rules):
    def put(v):
        axes, value = v.get_metadata()["logical"], v[...]
        sharding = param_shardings(
            axes, jax.ShapeDtypeStruct(value.shape, value.dtype), mesh, rules
        )
        return v.replace(jax.device_put(value, sharding))

    return jax.tree.map(put, state, is_leaf=lambda v: isinstance(v, nnx.Variable))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: moe(router(), shared_gate=True), "MoeConfig.shared_gate"),
        (lambda: moe(router(), capacity_factor=1.0), "capacity_factor = 1.0.*None for"),
        (lambda: moe(router(), dispatch="capacity"), "capacity_factor = None"),
        (lambda: moe(router(), dispatch="dropfree"), "MoeConfig.dispatch"),
        (lambda: moe(router(), activation="sliu"), "Did you mean 'silu'"),
    ],
)
def test_what_cannot_work_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        change()


def test_parameters_and_their_axes():
    layer = make(FLAVOURS["qwen2_moe"])
    flat = nnx.to_flat_state(nnx.state(layer))
    axes = {".".join(path): v.get_metadata()["logical"] for path, v in flat}
    shapes = {".".join(path): v[...].shape for path, v in flat}
    assert axes == {
        "router.kernel": ("embed", "experts"),
        "experts.gate": ("experts", "embed", "mlp"),
        "experts.up": ("experts", "embed", "mlp"),
        "experts.down": ("experts", "mlp", "embed"),
        "shared.gate.kernel": ("embed", "mlp"),
        "shared.up.kernel": ("embed", "mlp"),
        "shared.down.kernel": ("mlp", "embed"),
        "shared_gate.kernel": ("embed", "rank"),
    }
    assert shapes["experts.gate"] == (8, D, 24) and shapes["experts.down"] == (8, 24, D)
