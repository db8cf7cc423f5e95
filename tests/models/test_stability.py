"""Options of stable training: each against arithmetic by hand, on several families."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from close import assert_close
from steps import prepare

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import ConfigError
from t5x_llm.data.batch import Batch
from t5x_llm.hf.references import numpy_layers as nl
from t5x_llm.models.families.deepseek import DeepseekV2
from t5x_llm.models.families.gemma import Gemma2
from t5x_llm.models.families.gpt2 import GPT2
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.families.mixtral import Mixtral
from t5x_llm.models.families.phi import Phi
from t5x_llm.models.model import Model, Training
from t5x_llm.models.stability import Stability
from t5x_llm.optim import Optimizer, Piecewise, Schedule
from t5x_llm.parallel import MeshConfig, make_mesh

F32 = Policy(compute="float32")
SIZES = dict(vocab_size=32, d_model=16, n_layers=2, n_heads=4, d_ff=24)
LLAMA = Llama(**SIZES, n_kv_heads=2, norm_eps=1e-3)
T = 12
# The sums of two layers (norm, query, logits, values, out; norm, up, down), and of the head.
TERMS = 2 * (16 + 16 + 4 + T + 16 + 16 + 16 + 24) + 2 * 16


def tokens(seed=1, length=T):
    return np.random.default_rng(seed).integers(0, 32, length).astype(np.int32)


def made(stability, family=LLAMA, **changes):
    """A model with these options and parameters wide enough that every part moves the logits."""
    config = dataclasses.replace(stability.apply(family.decoder()), **changes)
    model = Model(config, F32)

    def draw(path, x):
        noise = np.random.default_rng(len(str(path))).normal(size=x.shape)
        norm = "scale" in str(path[-1])
        return jnp.asarray(1 + 0.3 * noise if norm else 0.4 * noise, jnp.float32)

    return model, jax.tree_util.tree_map_with_path(draw, model.abstract_params())


def by_hand(params, ids, stability):
    """LLaMA's logits [T, V] with these options, one layer after the other, in NumPy."""
    params = jax.tree.map(np.asarray, params)
    eps, at, n_layers = 1e-3, np.arange(len(ids)), 2
    powers = {"fourth_root": 0.25, "square_root": 0.5, None: 0.0}
    alpha = (2.0 * n_layers) ** powers[stability.deep_norm]

    def norm(x, part):
        return nl.rms_norm(x, part["scale"], eps)

    def qk(x, part):
        if stability.qk_norm is None:
            return x
        if stability.qk_norm == "all":
            return norm(x.reshape(len(x), -1), part["norm"]).reshape(x.shape)
        return norm(x, part["norm"])

    def attention(x, p):
        q, k, v = (np.einsum("td,dnh->tnh", x, p[i]["kernel"]) for i in ("query", "key", "value"))
        q = nl.rotate(qk(q, p.get("query_norm")), at, 10000.0, 4)
        k = nl.rotate(qk(k, p.get("key_norm")), at, 10000.0, 4)
        scores = np.einsum("tnh,snh->nts", q, np.repeat(k, 2, 1)) / 2
        if cap := stability.attention_softcap:
            scores = cap * np.tanh(scores / cap)
        scores = np.where(np.tri(len(x)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        y = np.einsum("nts,snh->tnh", weights, np.repeat(v, 2, 1))
        return np.einsum("tnh,nhd->td", y, p["out"]["kernel"])

    def mlp(x, p):
        gate, up = x @ p["gate"]["kernel"], x @ p["up"]["kernel"]
        return (nl.silu(gate) * up) @ p["down"]["kernel"]

    x = params["embed"]["table"][ids]
    if stability.embed_norm:
        x = norm(x, params["embed_norm"])
    for i in range(n_layers):
        block = jax.tree.map(lambda a, i=i: a[i], params["group_0"]["block_0"])
        for name, layer in (("attention", attention), ("mlp", mlp)):
            y = x if stability.deep_norm else norm(x, block[f"{name}_norm"])
            y = layer(y, block[name])
            if stability.sandwich_norm:
                y = norm(y, block[f"{name}_out_norm"])
            x = alpha * x + y
            if stability.deep_norm:
                x = norm(x, block[f"{name}_post_norm"])
    x = x if stability.deep_norm else norm(x, params["final_norm"])
    logits = x @ params["head"]["kernel"]
    cap = stability.logit_softcap
    return cap * np.tanh(logits / cap) if cap else logits


@pytest.mark.parametrize(
    "options",
    [
        dict(deep_norm="fourth_root"),
        dict(deep_norm="square_root", embed_norm=True),
        dict(sandwich_norm=True, qk_norm="all"),
        dict(embed_norm=True, qk_norm="head", logit_softcap=3.0),
        dict(qk_norm="heads", attention_softcap=1.5),
    ],
    ids=str,
)
def test_logits_are_those_of_the_papers_arithmetic(options):
    stability = Stability(**options)
    model, params = made(stability)
    with jax.default_matmul_precision("highest"):
        hidden = model.apply(params, tokens()[None])[0]
        found = model.logits(params, hidden)[0]
    assert_close(found, by_hand(params, tokens(), stability), TERMS)
    for option in {"attention_softcap", "logit_softcap"} & set(options):
        uncapped = dataclasses.replace(stability, **{option: None})
        assert np.abs(by_hand(params, tokens(), uncapped) - found).max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "alpha", "beta"),
    # Table 1 of arXiv 2203.00555 for 32 layers; section 2.1 of arXiv 2210.02414 for 70.
    [("fourth_root", 2.828427, 0.25), ("square_root", 11.832160, 0.0845154)],
)
def test_deep_norm_scales_what_is_skipped_and_what_is_drawn(kind, alpha, beta):
    layers = 32 if kind == "fourth_root" else 70
    sizes = SIZES | dict(n_layers=layers, d_model=64, d_ff=96)
    config = Stability(deep_norm=kind).apply(Llama(**sizes).decoder())
    (block,) = config.groups[0].blocks
    np.testing.assert_allclose(block.residual.skip_scale, alpha, rtol=1e-6)
    part = Model(config).init(jax.random.key(0))["group_0"]["block_0"]
    for path, factor in {
        **{("attention", name): 1.0 for name in ("query", "key")},
        **{("attention", name): beta for name in ("value", "out")},
        **{("mlp", name): beta for name in ("gate", "up", "down")},
    }.items():
        kernel = part[path[0]][path[1]]["kernel"]
        np.testing.assert_allclose(np.std(kernel), 0.02 * factor, rtol=0.02, err_msg=str(path))


def gradients(model, params, shares):
    """Of the loss, for each share of the embedding gradient."""
    batch = batch_of(tokens(2, T + 1)[None])

    def loss(params, share):
        return model.loss(params, batch, training=Training(jax.random.key(0), share))[0]

    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.grad(loss))
        return [gradient(params, jnp.float32(share)) for share in shares]


def batch_of(rows):
    shape = (rows.shape[0], rows.shape[1] - 1)
    return Batch(
        tokens=rows[:, :-1],
        targets=rows[:, 1:],
        positions=np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
        segment_ids=np.ones(shape, np.int32),
        loss_mask=np.ones(shape, np.float32),
        source=np.zeros(shape[0], np.int32),
    )


def test_the_embedding_gradient_is_shrunk_on_its_way_in_alone():
    """e <- a e + (1 - a) stopgrad(e): the same loss, and a times the gradient by the input."""
    model, params = made(Stability())
    full, shrunk = gradients(model, params, (1.0, 0.25))
    np.testing.assert_allclose(
        shrunk.pop("embed")["table"], 0.25 * full.pop("embed")["table"], rtol=1e-4, atol=1e-7
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), shrunk, full)
    # Of a tied table the head's share stays whole.
    model, params = made(Stability(), dataclasses.replace(LLAMA, tied=True))
    none, some, all_ = (g["embed"]["table"] for g in gradients(model, params, (0.0, 0.4, 1.0)))
    np.testing.assert_allclose(some, none + 0.4 * (all_ - none), rtol=1e-3, atol=1e-5)
    assert np.linalg.norm(none) > 0.1 and np.linalg.norm(all_ - none) > 0.1


def test_the_share_follows_its_schedule_in_the_train_step():
    model, _ = made(Stability())
    mesh_config = MeshConfig(data=1, fsdp=1, tensor=1)
    mesh, rules = make_mesh(mesh_config, jax.devices()[:1]), mesh_config.rules()
    parts = prepare(
        *(model, Optimizer(schedule=Schedule("constant", warmup_steps=0)), mesh, rules),
        tx=optax.sgd(1.0),
        sources=("a",),
        microbatches=2,
        embed_gradient=Piecewise(((2, 0.0), (6, 1.0))),
    )
    batch = batch_of(np.stack([tokens(s, T + 1) for s in (3, 4)]))

    def moved(at):
        state = parts.init()
        before = jax.device_get(state.params)
        state = dataclasses.replace(state, step=jnp.int32(at))
        after = jax.device_get(parts.step(state, batch)[0].params)
        return jax.tree.map(np.subtract, after, before)

    early, middle, late = (moved(at) for at in (1, 5, 9))
    assert not np.any(early["embed"]["table"]) and np.any(early["head"]["kernel"])
    table = late["embed"]["table"]
    np.testing.assert_allclose(middle["embed"]["table"], 0.75 * table, rtol=1e-3, atol=1e-8)
    np.testing.assert_array_equal(early["head"]["kernel"], late["head"]["kernel"])


def test_neftune_adds_uniform_noise_by_length_and_width():
    """Of +-alpha / sqrt(L D) (arXiv 2310.05914, algorithm 1), L without padding."""
    alpha, d = 5.0, 64
    family = Llama(**(SIZES | dict(d_model=d)))
    config = dataclasses.replace(family.decoder(), groups=(), final_norm=None, neftune=alpha)
    model = Model(config, F32)
    params = model.init(jax.random.key(0))
    ids = np.stack([tokens(1, 200), tokens(2, 200)])
    segments = np.ones_like(ids)
    segments[1, 50:] = 0

    def run(noise=None):
        return np.asarray(model.apply(params, ids, segment_ids=segments, noise=noise)[0])

    plain = run()
    np.testing.assert_array_equal(plain, np.asarray(params["embed"]["table"])[ids])
    one, two = (run(jax.random.key(i)) - plain for i in range(2))
    for row, length in ((0, 200), (1, 50)):
        bound = alpha / np.sqrt(length * d)
        assert 0.999 * bound < np.abs(one[row]).max() <= bound * 1.0001
        np.testing.assert_allclose(np.std(one[row]), bound / np.sqrt(3), rtol=0.02)
        assert abs(one[row].mean()) < 0.03 * bound
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.03
    # The loss knows it in training alone, and each microbatch has noise of its own.
    batch = batch_of(np.stack([tokens(3, T + 1)]))
    training = Training(jax.random.key(5))
    losses = [
        float(model.loss(params, batch, training=given)[0])
        for given in (None, None, training, training.at(0), training.at(1))
    ]
    assert losses[0] == losses[1] and len(set(losses)) == 4


def test_z_loss_is_the_square_of_log_z():
    """1e-4 log^2 Z (PaLM, arXiv 2204.02311, section 5), with capped logits too."""
    model, params = made(Stability(logit_softcap=4.0))
    rows = tokens(5, T + 1)[None]
    plain, _ = model.loss(params, batch_of(rows))
    with_z, aux = model.loss(params, batch_of(rows), 1e-4)
    logits = by_hand(params, rows[0, :-1], Stability(logit_softcap=4.0)).astype(np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(with_z - plain, 1e-4 * np.sum(log_z**2), rtol=2e-2)
    np.testing.assert_allclose(aux["z_loss"], 1e-4 * np.sum(log_z**2), rtol=1e-3)


ALL = Stability(
    sandwich_norm=True, embed_norm=True, qk_norm="head", attention_softcap=2.0, logit_softcap=3.0
)
PARALLEL = dataclasses.replace(ALL, sandwich_norm=False)


@pytest.mark.parametrize(
    ("family", "stability"),
    [
        pytest.param(
            *(GPT2(**SIZES), Stability(deep_norm="fourth_root", qk_norm="all")),
            marks=pytest.mark.extended,
        ),
        (Gemma2(**SIZES, n_kv_heads=2, head_dim=4), Stability(embed_norm=True, qk_norm="heads")),
        (Mixtral(**SIZES, n_kv_heads=2, n_experts=4), ALL),
        (Phi(**SIZES), PARALLEL),
    ],
    ids=lambda x: type(x).__name__,
)
def test_any_family_takes_them_and_learns(family, stability):
    config = stability.apply(family.decoder())
    model = Model(config, F32)
    params = model.init(jax.random.key(0))
    batch = batch_of(np.stack([tokens(s, T + 1) for s in range(4)]))
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(lambda p: model.loss(p, batch)[0])(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, value, grads

    state, losses = tx.init(params), []
    for _ in range(12):
        params, state, value, grads = step(params, state)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 5 and np.all(np.isfinite(losses))
    flat, _ = jax.tree_util.tree_flatten_with_path(grads)
    for path, gradient in flat:
        if "norm" in str(path) and "bias" not in str(path):
            assert np.any(gradient != 0), path


@pytest.mark.parametrize(
    ("options", "family", "named"),
    [
        (dict(deep_norm="fourth_root"), Phi(**SIZES), "Stability.deep_norm"),
        (dict(sandwich_norm=True), Phi(**SIZES), "Stability.sandwich_norm"),
        (
            dict(qk_norm="head"),
            DeepseekV2(**SIZES),
            "Stability.qk_norm",
        ),
    ],
)
def test_what_an_architecture_has_no_place_for_is_refused(options, family, named):
    with pytest.raises(ConfigError, match=named):
        Stability(**options).apply(family.decoder())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(deep_norm="third_root"), "Stability.deep_norm"),
        (dict(qk_norm="every"), "Stability.qk_norm"),
        (dict(logit_softcap=0.0), "Stability.logit_softcap"),
        (dict(deep_norm="fourth_root", sandwich_norm=True), "Stability.sandwich_norm"),
    ],
)
def test_mistakes_are_named(options, named):
    with pytest.raises(ConfigError, match=named):
        Stability(**options)


def test_nothing_chosen_changes_nothing():
    for family in (LLAMA, GPT2(**SIZES), Gemma2(**SIZES, n_kv_heads=2, head_dim=4)):
        assert Stability().apply(family.decoder()) == family.decoder()
