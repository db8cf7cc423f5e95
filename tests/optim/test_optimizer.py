"""Optimizers against optax itself and against NumPy written from the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from t5x_llm.core.errors import ConfigError
from t5x_llm.optim import DEFAULTS, Optimizer, Schedule, decay_mask, decay_summary
from t5x_llm.optim import opt_state_shardings as state_shardings
from t5x_llm.optim.freezing import select_trained
from t5x_llm.optim.muon import matrix_axes
from t5x_llm.parallel import MeshConfig, make_mesh, param_shardings, replicated

CONSTANT = Schedule("constant", peak=1e-2, warmup_steps=0)
SHAPES = {
    "embed": {"table": (160, 144)},
    "group_0": {
        "attention": {"query": {"kernel": (3, 8, 4, 2), "bias": (3, 4, 2)}},
        "attention_norm": {"scale": (3, 8)},
        "mlp": {"up": {"kernel": (3, 144, 136)}},
    },
    "head": {"kernel": (8, 16)},
}
LOGICAL = {
    "embed": {"table": ("vocab", "embed")},
    "group_0": {
        "attention": {
            "query": {
                "kernel": ("layers", "embed", "heads", "head"),
                "bias": ("layers", "heads", "head"),
            }
        },
        "attention_norm": {"scale": ("layers", "norm")},
        "mlp": {"up": {"kernel": ("layers", "embed", "mlp")}},
    },
    "head": {"kernel": ("embed", "vocab")},
}
MATRICES = {
    "embed.table": False,
    "group_0.attention.query.bias": False,
    "group_0.attention.query.kernel": True,
    "group_0.attention_norm.scale": False,
    "group_0.mlp.up.kernel": True,
    "head.kernel": True,
}


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: (scale * rng.normal(size=s)).astype(np.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def run(tx, params, steps=4):
    """Parameters after some jitted steps on fixed gradients."""
    state = tx.init(params)
    step = jax.jit(lambda g, s, p: tx.update(g, s, p))
    for i in range(steps):
        updates, state = step(tree(100 + i), state, params)
        params = optax.apply_updates(params, updates)
    return params


def close(a, b, rtol=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7), a, b)


REFERENCES = {
    "adamw": (
        {"b1": 0.8, "b2": 0.97, "eps": 1e-6, "weight_decay": 0.3},
        lambda m: optax.adamw(1e-2, 0.8, 0.97, 1e-6, weight_decay=0.3, mask=m),
    ),
    "lion": (
        {"b1": 0.8, "b2": 0.97, "weight_decay": 0.3},
        lambda m: optax.lion(1e-2, 0.8, 0.97, weight_decay=0.3, mask=m),
    ),
    "lamb": (
        {"b1": 0.8, "b2": 0.97, "eps": 1e-5, "weight_decay": 0.3},
        lambda m: optax.lamb(1e-2, 0.8, 0.97, 1e-5, weight_decay=0.3, mask=m),
    ),
    "adafactor": (
        {"b1": 0.8, "decay_exponent": 0.7, "weight_decay": 0.3},
        lambda m: optax.adafactor(
            1e-2, decay_rate=0.7, momentum=0.8, weight_decay_rate=0.3 * 1e-2, weight_decay_mask=m
        ),
    ),
    "sgd": (
        {"b1": 0.8, "weight_decay": 0.3},
        lambda m: optax.chain(optax.add_decayed_weights(0.3, m), optax.sgd(1e-2, momentum=0.8)),
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("rule", ["matrices", "all"])
def test_against_optax(name, rule):
    fields, reference = REFERENCES[name]
    params = tree(0)
    mask = decay_mask(params, rule)
    ours = Optimizer(name, CONSTANT, clip_norm=0.5, decay_mask=rule, **fields).build(100)
    theirs = optax.chain(optax.clip_by_global_norm(0.5), reference(mask))
    close(run(ours, params), run(theirs, params))


def palm_reference(params, grads, schedule, mask, axes, clip=1.0, b1=0.9):
    """PaLM section 5 in NumPy, float64: one step after another, every layer by itself."""
    m = {k: np.zeros_like(p) for k, p in params.items()}
    v = {k: np.zeros_like(p) for k, p in params.items()}
    for k, grad in enumerate(grads, start=1):
        lr = schedule(k - 1)
        norm = np.sqrt(sum((g**2).sum() for g in grad.values()))
        b2 = 1 - k**-0.8
        for name, p in params.items():
            g = grad[name] * min(1.0, clip / norm)
            v[name] = b2 * v[name] + (1 - b2) * (g**2 + 1e-30)
            over = tuple(i for i, a in enumerate(axes[name]) if a != "layers")
            rms = np.maximum(np.sqrt((p**2).mean(axis=over, keepdims=True)), 1e-3)
            m[name] = b1 * m[name] + (1 - b1) * lr * rms * g / np.sqrt(v[name])
            params[name] = p - m[name] - (lr**2 * p if mask[name] else 0)
    return params


def flat(values):
    leaves = jax.tree_util.tree_flatten_with_path(values, is_leaf=lambda x: isinstance(x, tuple))[0]
    return {".".join(k.key for k in path): x for path, x in leaves}


@pytest.mark.parametrize("rule", ["matrices", "all"])
def test_palm_adafactor_against_numpy(rule):
    schedule = Schedule("rsqrt", peak=1e-1, warmup_steps=0, hold_steps=2)
    params = tree(0, 0.3)
    params["head"]["kernel"] = params["head"]["kernel"] * 1e-5  # below the smallest RMS, 1e-3
    tx = Optimizer("palm_adafactor", schedule, decay_mask=rule).build(100, LOGICAL)
    expected = palm_reference(
        {k: x.astype(np.float64) for k, x in flat(params).items()},
        [{k: x.astype(np.float64) for k, x in flat(tree(100 + i)).items()} for i in range(4)],
        lambda k: 0.1 * np.sqrt(2 / max(k, 2)),
        decay_summary(params, rule, LOGICAL),
        flat(LOGICAL),
    )
    got = flat(run(tx, params))
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-5, atol=1e-7)


def test_muon_against_optax():
    """Matrices move as under optax's Muon, all heads as one matrix; the rest as under AdamW."""
    params = tree(0)
    fields = {"b1": 0.8, "b2": 0.97, "eps": 1e-6, "weight_decay": 0.3, "momentum": 0.9}
    tx = Optimizer("muon", CONSTANT, clip_norm=None, update_rms=0.3, **fields).build(100, LOGICAL)
    got = flat(run(tx, params))
    mask = decay_mask(params, "matrices", LOGICAL)
    adam = optax.adamw(1e-2, 0.8, 0.97, 1e-6, weight_decay=0.3, mask=mask)
    expected = flat(run(adam, params))
    axes = {
        "group_0.attention.query.kernel": optax.contrib.MuonDimensionNumbers(1, (2, 3)),
        "group_0.mlp.up.kernel": optax.contrib.MuonDimensionNumbers(1, 2),
    }
    theirs = optax.contrib.muon(
        1e-2, beta=0.9, eps=1e-6, weight_decay=0.3, consistent_rms=0.3,
        muon_weight_dimension_numbers=lambda p: jax.tree_util.tree_map_with_path(
            lambda path, _: axes.get(".".join(k.key for k in path)), p
        ),
    )  # fmt: skip
    muon = flat(run(theirs, params))
    for name in got:
        np.testing.assert_allclose(
            got[name], muon[name] if name in axes else expected[name], rtol=2e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("shape", "names", "expected"),
    [
        ((3, 8, 16), ("layers", "embed", "mlp"), ((1,), (2,))),
        ((3, 8, 4, 2), ("layers", "embed", "heads", "head"), ((1,), (2, 3))),
        ((3, 4, 2, 8), ("layers", "heads", "head", "embed"), ((1, 2), (3,))),
        ((3, 6, 2, 4), ("layers", "rank", "kv_heads", "head"), ((1,), (2, 3))),
        ((3, 4, 8, 16), ("layers", "experts", "embed", "mlp"), ((2,), (3,))),
        ((3, 8, 4), ("layers", "embed", "experts"), ((1,), (2,))),  # a router
        ((8, 16), None, ((0,), (1,))),
        ((3, 8, 16), None, None),
        ((3, 8, 1), ("layers", "embed", "rank"), None),  # a vector
        ((3, 8), ("layers", "embed"), None),
        ((64, 8), ("vocab", "embed"), None),
        ((3, 4, 8), ("layers", "conv", "inner"), None),
        ((3, 4, 2, 2), ("layers", "heads", "head", "head"), None),  # weights that learn in the test
    ],
)
def test_what_is_a_matrix_to_muon(shape, names, expected):
    found = matrix_axes(shape, names)
    assert found == (None if expected is None else optax.contrib.MuonDimensionNumbers(*expected))


@pytest.mark.parametrize("name", ["lamb", "adafactor", "palm_adafactor", "muon"])
def test_stacked_layers_equal_separate_layers(name):
    """With logical axes, a parameter stacked over layers moves as its layers would alone."""
    rng = np.random.default_rng(0)
    stacked = {"kernel": (rng.normal(size=(3, 6, 5)) * [[[1]], [[9]], [[0.1]]]).astype(np.float32)}
    separate = {f"l{i}": {"kernel": stacked["kernel"][i]} for i in range(3)}
    grad = rng.normal(size=(3, 6, 5)).astype(np.float32) * 100
    optimizer = Optimizer(name, CONSTANT, clip_norm=None)
    a = optimizer.build(10, {"kernel": ("layers", "embed", "mlp")})
    b = optimizer.build(10)
    one, _ = a.update({"kernel": grad}, a.init(stacked), stacked)
    many, _ = b.update({f"l{i}": {"kernel": grad[i]} for i in range(3)}, b.init(separate), separate)
    whole, _ = b.update({"kernel": grad}, b.init(stacked), stacked)
    for i in range(3):
        np.testing.assert_allclose(one["kernel"][i], many[f"l{i}"]["kernel"], rtol=1e-5, atol=1e-7)
    assert not np.allclose(one["kernel"], whole["kernel"], rtol=1e-3)


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_frozen_has_neither_update_nor_state(name):
    """The others move as if they were alone; the norm that clips is theirs."""
    some = {"embed": (7, 5), "norm": (5,), "stack": (3, 5, 4)}
    rng = np.random.default_rng(0)
    params, grads = (
        {k: {"x": rng.normal(size=shape).astype(np.float32)} for k, shape in some.items()}
        for _ in range(2)
    )
    axes = {
        "embed": {"x": ("vocab", "embed")},
        "norm": {"x": ("embed",)},
        "stack": {"x": ("layers", "embed", "mlp")},
    }
    alone = Optimizer(name, CONSTANT)
    frozen = Optimizer(name, CONSTANT, trained=("embed", "stack.*"))
    kept = ("embed", "stack")
    part = [{k: each[k] for k in kept} for each in (params, grads, axes)]
    axes = select_trained(frozen.trained_mask(params), axes)
    tx, tx_alone = frozen.build(10, axes), alone.build(10, part[2])
    params, grads = (select_trained(frozen.trained_mask(x), x) for x in (params, grads))
    state, state_alone = tx.init(params), tx_alone.init(part[0])
    for _ in range(2):
        updates, state = tx.update(grads, state, params)
        expected, state_alone = tx_alone.update(part[1], state_alone, part[0])
    assert updates["norm"]["x"] is None
    for k in kept:
        np.testing.assert_array_equal(updates[k]["x"], expected[k]["x"])
    sizes = [sorted(x.size for x in jax.tree.leaves(s)) for s in (state, state_alone)]
    assert sizes[0] == sizes[1]
    for wrong in ("head", "embed.y"):
        with pytest.raises(ConfigError, match="embed, norm, stack"):
            Optimizer(name, CONSTANT, trained=(wrong,)).trained_mask(some)
    with pytest.raises(ConfigError, match="tuple of paths"):
        Optimizer(trained=(1,))


def test_schedule_is_followed():
    schedule = Schedule("linear", peak=1.0, warmup_steps=3, final_fraction=0.0)
    tx = Optimizer("sgd", schedule, b1=0.0, clip_norm=None).build(10)
    params = {"w": jnp.zeros((2, 2))}
    state = tx.init(params)
    for k in range(10):
        updates, state = tx.update({"w": jnp.ones((2, 2))}, state, params)
        np.testing.assert_allclose(-updates["w"][0, 0], schedule.build(10)(k), rtol=1e-6)


def test_masks():
    params = tree(0)
    assert decay_summary(params, "matrices", LOGICAL) == MATRICES
    both = decay_summary(params, "matrices_and_embeddings", LOGICAL)
    assert both == {**MATRICES, "embed.table": True}
    assert all(decay_summary(params, "all").values())
    assert not any(decay_summary(params, "none").values())
    shapes = jax.eval_shape(lambda: params)
    assert decay_summary(shapes, "matrices", LOGICAL) == MATRICES
    odd = {"positions": np.ones((4, 4)), "stack": np.ones((3, 4)), "vector": np.ones(4)}
    assert decay_summary(odd) == {"positions": False, "stack": True, "vector": False}
    axes = {"positions": ("positions", "embed"), "stack": ("layers", "embed"), "vector": ("embed",)}
    assert not decay_summary(odd, "matrices", axes)["stack"]
    assert decay_summary({"ssm": {"a_log": np.ones((4, 4)), "out": np.ones((4, 4))}}) == {
        "ssm.a_log": False,
        "ssm.out": True,
    }


@pytest.mark.parametrize("name", DEFAULTS)
def test_state_is_sharded_like_the_parameters(name):
    config = MeshConfig(fsdp=4, tensor=2)
    mesh = make_mesh(config)
    params = tree(0)
    shapes = jax.eval_shape(lambda: params)
    shardings = param_shardings(LOGICAL, shapes, mesh, config.rules())
    tx = Optimizer(name, CONSTANT).build(10, LOGICAL)
    derived = state_shardings(tx, shardings, shapes, replicated(mesh))
    placed = jax.device_put(params, shardings)
    state = jax.jit(tx.init, out_shardings=derived)(placed)
    jax.tree.map(lambda x, s: s.shard_shape(x.shape), state, derived)
    held = {x.sharding.spec for x in jax.tree.leaves(state) if x.shape == (160, 144)}
    expected = set() if name == "adafactor" else {PartitionSpec("tensor", "fsdp")}
    assert held == expected
    # A step keeps the layout and gives the numbers of one device.
    step = jax.jit(tx.update, out_shardings=(shardings, derived))
    updates, _ = step(jax.device_put(tree(1), shardings), state, placed)
    alone, _ = tx.update(tree(1), tx.init(params), params)
    close(updates, alone, rtol=1e-4)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"name": "adam"}, "Did you mean 'adamw'"),
        ({"name": "lion", "eps": 1e-8}, "lion has no eps"),
        ({"name": "palm_adafactor", "b2": 0.99}, "palm_adafactor has no b2"),
        ({"decay_exponent": 0.8}, "adamw has no decay_exponent"),
        ({"b1": 1.5}, "Optimizer.b1"),
        ({"weight_decay": -0.1}, "Optimizer.weight_decay"),
        ({"clip_norm": 0}, "Optimizer.clip_norm"),
        ({"decay_mask": "matrix"}, "Optimizer.decay_mask"),
        ({"schedule": 1e-3}, "Optimizer.schedule"),
        ({"eps": "1e-8"}, "Optimizer.eps"),
    ],
)
def test_bad_optimizers(bad, words):
    with pytest.raises(ConfigError, match=words):
        Optimizer(**bad)
