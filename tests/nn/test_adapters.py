"""LoRA and its kin: what a layer with factors computes, and which values the factors begin with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import ConfigError
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.families.mixtral import Mixtral
from t5x_llm.models.model import Model, Training
from t5x_llm.models.weight_map import flatten, unflatten
from t5x_llm.nn.adapters import roots
from t5x_llm.nn.adapters.lora import LoRA
from t5x_llm.nn.adapters.low_rank import Form, LowRank
from t5x_llm.nn.adapters.targets import matches
from t5x_llm.optim.masks import scale_named

SMALL = dict(vocab_size=61, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24, max_length=32)
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 12)).astype(np.int32)


def model(adapter, family=None):
    return Model((family or Llama(**SMALL)).decoder(), Policy(compute="float32"), adapter=adapter)


def logits(made, params, training=None):
    if training is not None:
        hidden, *_ = made._apply(params, TOKENS, None, None, None, {}, training.key)
    else:
        hidden, _ = made.apply(params, TOKENS)
    return np.asarray(made.logits(params, hidden))


def moved(params, seed=1):
    """The same with adapters that change something, as training leaves them."""
    rng = np.random.default_rng(seed)
    flat = flatten(params)
    for path, x in flat.items():
        if roots.root_of(tuple(path.split("."))) == roots.ADAPTER:
            flat[path] = x + 0.1 * rng.normal(size=x.shape).astype(np.float32)
    return unflatten(flat)


def of_matrices(params, config, name="query"):
    """(W [I, O], its change s A B, magnitude) of one kernel of the second layer, in NumPy."""
    flat = {path: np.asarray(x, np.float64)[1] for path, x in flatten(params).items()
            if path.startswith(f"group_0.block_0.attention.{name}.")}  # fmt: skip
    part = {path.split(f"{name}.")[1]: x for path, x in flat.items()}
    rank = part["adapter.a"].shape[-1]
    scaling = config.alpha / (np.sqrt(rank) if config.rank_stabilised else rank)
    change = part["adapter.a"] @ part["adapter.b"].reshape(rank, -1)
    if "adapter.initial_a" in part:
        change -= part["adapter.initial_a"] @ part["adapter.initial_b"].reshape(rank, -1)
    whole = part["kernel"].reshape(16, -1)
    return whole, scaling * change, part.get("adapter.magnitude")


FORMS = {
    "lora": LoRA(rank=3),
    "attention": LoRA(rank=2, alpha=3.0, targets="attention"),
    "rank stabilised": LoRA(rank=4, rank_stabilised=True),
    "dora": LoRA(rank=3, dora=True),
    "zero a": LoRA(rank=3, init="zero_a"),
    "pissa": LoRA(rank=3, init="pissa"),
    "ranks": LoRA(rank=3, ranks={"feed_forward": 2, "attention.query": 5}),
    "head": LoRA(rank=3, targets=("head", "mlp.up")),
}


@pytest.mark.parametrize("name", FORMS)
def test_adapters_are_nothing_at_first_and_what_the_formula_says_later(name):
    config, plain = FORMS[name], model(None)
    made = model(config)
    params = made.init(jax.random.key(3))
    own = plain.init(jax.random.key(3))
    same = jax.tree.map(np.array_equal, roots.split(params)[roots.BASE], own)
    assert all(jax.tree.leaves(same))  # the base is what it is without
    before = logits(plain, own)
    first = logits(made, params)
    if name in ("dora", "pissa"):  # a quotient of norms, a difference of equal terms
        np.testing.assert_allclose(first, before, atol=2e-6)
    else:
        np.testing.assert_array_equal(first, before)
    params = moved(params)
    found = logits(made, params)
    assert np.abs(found - before).max() > 1e-2
    # The model with kernels W + s A B, times magnitude over norm, does the same without adapters.
    flat = flatten(roots.split(params)[roots.BASE])
    for path, kernel in flat.items():
        parts = path.removesuffix(".kernel")
        if f"{parts}.adapter.a" not in flatten(params):
            continue
        own = {k.rpartition(".")[2]: np.asarray(x, np.float64) for k, x in flatten(params).items()
               if k.startswith(f"{parts}.adapter.")}  # fmt: skip
        rank, layers = own["a"].shape[-1], path.startswith("group")
        change = _product(own["a"], own["b"], layers)
        if "initial_a" in own:
            change -= _product(own["initial_a"], own["initial_b"], layers)
        scaling = config.alpha / (np.sqrt(rank) if config.rank_stabilised else rank)
        whole = np.asarray(kernel, np.float64) + scaling * change
        if "magnitude" in own:
            inputs = whole.ndim - own["magnitude"].ndim
            norm = np.sqrt((whole**2).sum(tuple(range(1, 1 + inputs)), keepdims=True))
            size = own["magnitude"].shape
            whole *= own["magnitude"].reshape(size[0], *[1] * inputs, *size[1:]) / norm
        flat[path] = whole.astype(np.float32)
    np.testing.assert_allclose(found, logits(plain, unflatten(flat)), atol=3e-5)


def _product(a, b, layers):
    form = "l...r,lrx->l...x" if layers else "...r,rx->...x"
    lead = 1 if layers else 0
    flat = np.einsum(form, a, b.reshape(*b.shape[: lead + 1], -1))
    return flat.reshape(*a.shape[:-1], *b.shape[lead + 1 :])


def test_ranks_by_target():
    params = flatten(model(FORMS["ranks"]).abstract_params())
    ranks = {p.split("block_0.")[1]: x.shape[-1] for p, x in params.items() if p.endswith("r.a")}
    assert ranks == {
        "attention.query.adapter.a": 5, "attention.key.adapter.a": 3,
        "attention.value.adapter.a": 3, "attention.out.adapter.a": 3,
        "mlp.gate.adapter.a": 2, "mlp.up.adapter.a": 2, "mlp.down.adapter.a": 2,
    }  # fmt: skip


def test_initial_values_depend_on_seed_and_path_alone():
    few = flatten(model(LoRA(rank=3, targets="attention.query")).init(jax.random.key(3)))
    many = flatten(model(LoRA(rank=3, targets=("all_linear", "head"))).init(jax.random.key(3)))
    path = "group_0.block_0.attention.query.adapter.a"
    np.testing.assert_array_equal(few[path], many[path])
    again = flatten(model(LoRA(rank=3)).init(jax.random.key(3)))[path]
    other = flatten(model(LoRA(rank=3)).init(jax.random.key(4)))[path]
    cosine = np.sum(again * few[path]) / np.sum(few[path] ** 2)
    assert cosine == 1.0 and abs(np.sum(other * few[path]) / np.sum(few[path] ** 2)) < 0.5
    # As PEFT: uniform to 1 / sqrt(inputs).
    values = np.concatenate(
        [np.ravel(x) for p, x in many.items() if "attention.query.adapter.a" in p]
    )
    assert 0.23 < np.abs(values).max() <= 0.25


def test_pissa_begins_with_the_largest_singular_values():
    config = LoRA(rank=3, alpha=6.0, init="pissa")
    params = model(config).init(jax.random.key(3))
    whole, change, _ = of_matrices(params, config)
    assert np.abs(change).max() == 0
    flat = {
        k: np.asarray(x)[1] for k, x in flatten(params).items() if "attention.query.adapter" in k
    }
    a, b = (flat[f"group_0.block_0.attention.query.adapter.{n}"] for n in "ab")
    u, s, v = np.linalg.svd(whole)
    np.testing.assert_allclose(2.0 * a @ b.reshape(3, -1), u[:, :3] * s[:3] @ v[:3], atol=1e-5)


def test_dropout_is_of_the_key_and_off_without_one():
    made = model(LoRA(rank=3, dropout=0.5))
    params = moved(made.init(jax.random.key(3)))
    plain = model(LoRA(rank=3))
    np.testing.assert_array_equal(logits(made, params), logits(plain, params))
    one, again, other = (logits(made, params, Training(jax.random.key(k))) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    module = made.bind(params)
    made.adapter.randomise(module, jax.random.key(1))
    block = module.group_0.block_0
    keys = [jax.random.key_data(x.adapter.key[...]) for x in (block.attention.query, block.mlp.up)]
    assert len(np.unique(np.concatenate(keys), axis=0)) == 4  # each layer's own


def test_what_is_dropped_is_made_up_for():
    eye = {name: nnx.Param(jnp.eye(4)) for name in "ab"}
    factors, x = LowRank(Form(1.0, 0.25, 1), eye), jnp.ones((4000, 4))
    factors.key = nnx.Variable(jax.random.key(0))
    y = np.asarray(factors(x, 0 * x, jnp.eye(4)))
    values, counts = np.unique(y, return_counts=True)
    np.testing.assert_allclose(values, [0, 4 / 3], rtol=1e-6)
    assert counts[0] / y.size == pytest.approx(0.25, abs=0.015)


def test_experts_are_changed_each_by_its_own():
    sizes = SMALL | {"d_model": 16, "d_ff": 8}
    family = Mixtral(**sizes, n_experts=4, top_k=2)
    made, plain = model(LoRA(rank=2, targets="feed_forward"), family), model(None, family)
    params = made.init(jax.random.key(3))
    own = roots.split(params)[roots.BASE]
    np.testing.assert_array_equal(logits(made, params), logits(plain, own))
    params = moved(params)
    flat, base = flatten(params), flatten(own)
    for name in ("gate", "up", "down"):
        path = f"group_0.block_0.mlp.experts.{name}"
        a, b = flat[f"{path}_adapter.a"], flat[f"{path}_adapter.b"]
        assert a.shape[:2] == (2, 4)
        base[path] = base[path] + 8.0 * np.einsum("leir,lero->leio", a, b)
    np.testing.assert_allclose(logits(made, params), logits(plain, unflatten(base)), atol=3e-5)


def test_the_gradient_is_that_of_the_merged_kernel():
    config = LoRA(rank=3, targets="attention.query")
    made, plain = model(config), model(None)
    params = moved(made.init(jax.random.key(3)))
    parts = roots.split(params)

    def loss(model, tree):
        hidden, _ = model.apply(tree, TOKENS)
        return jnp.mean(jax.nn.log_softmax(model.logits(tree, hidden))[..., 5])

    def of_adapter(adapter):
        return loss(made, roots.merge(parts | {roots.ADAPTER: adapter}))

    path = "group_0.block_0.attention.query"
    found = flatten(jax.grad(of_adapter)(parts[roots.ADAPTER]))
    a, b = (flatten(params)[f"{path}.adapter.{n}"] for n in "ab")
    base = flatten(parts[roots.BASE])
    base[f"{path}.kernel"] = base[f"{path}.kernel"] + 16 / 3 * jnp.einsum("lir,lrnh->linh", a, b)
    kernel = flatten(jax.grad(lambda tree: loss(plain, tree))(unflatten(base)))[f"{path}.kernel"]
    scaled = np.asarray(kernel) * 16 / 3
    np.testing.assert_allclose(found[f"{path}.adapter.a"],
                               np.einsum("linh,lrnh->lir", scaled, b), atol=1e-6)  # fmt: skip
    np.testing.assert_allclose(found[f"{path}.adapter.b"],
                               np.einsum("linh,lir->lrnh", scaled, a), atol=1e-6)  # fmt: skip


def test_the_second_factor_may_learn_faster():
    tree = {"query": {"adapter": {"a": jnp.ones(3), "b": jnp.ones(3)}}}
    tx = optax.chain(optax.sgd(0.1), scale_named("b", 16.0))
    updates, _ = tx.update(tree, tx.init(tree), tree)
    assert np.allclose(updates["query"]["adapter"]["b"], 16 * updates["query"]["adapter"]["a"])


def test_names_of_targets():
    path = "group_0.block_1.attention.query"
    for target, expected in {
        "all_linear": True, "attention": True, "feed_forward": False, "query": True,
        "attention.query": True, "block_1": True, "block_0": False, "quer": False, "head": False,
    }.items():  # fmt: skip
        assert matches(path, target) == expected
    assert matches("head", "head") and not matches("head", "all_linear")
    assert matches("group_0.block_0.ssm.into", "attention")
    assert matches("group_0.block_0.channel_mix.key", "feed_forward")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"targets": "quary"}, r"LoRA\.targets = 'quary'.*Did you mean 'query'"),
        ({"rank": 17}, r"LoRA\.rank = 17.*at most (8|16): group_0\.block_0\..* has 16 inputs"),
        ({"ranks": {"key": 9}}, r"LoRA\.ranks = 9.*at most 8"),
    ],
)
def test_what_a_model_cannot_take_is_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        model(LoRA(**options)).abstract_params()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rank": 0}, "LoRA.rank"),
        ({"alpha": 0.0}, "LoRA.alpha"),
        ({"dropout": 1.0}, "below 1"),
        ({"init": "random"}, "zero_b"),
        ({"targets": ()}, "LoRA.targets"),
        ({"ranks": {"key": 0}}, "LoRA.ranks"),
        ({"rate_ratio": -1.0}, "LoRA.rate_ratio"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        LoRA(**options)


def test_dropout_of_experts_is_refused():
    family = Mixtral(**SMALL, n_experts=4, top_k=2)
    with pytest.raises(ConfigError, match=r"LoRA\.dropout.*experts"):
        model(LoRA(rank=2, dropout=0.1), family).abstract_params()
