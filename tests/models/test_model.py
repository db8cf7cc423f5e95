"""The generic decoder: caching, packing, remat, sharding names, and that every field matters."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import ConfigError
from t5x_llm.models.families.gpt2 import GPT2
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.model import Model

F32 = Policy(compute="float32")
FAMILIES = {
    "mha": Llama(vocab_size=64, d_model=32, n_layers=3, n_heads=4, d_ff=48),
    "gqa": Llama(vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=48),
    "mqa_tied": Llama(
        vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=1, d_ff=48, tied=True
    ),
    "biased": Llama(
        vocab_size=64,
        d_model=32,
        n_layers=2,
        n_heads=4,
        d_ff=48,
        head_dim=12,
        attention_bias=True,
        mlp_bias=True,
    ),
    "gpt2": GPT2(vocab_size=64, d_model=32, n_layers=2, n_heads=4, max_length=64),
}


@pytest.fixture(params=FAMILIES, scope="module")
def case(request):
    model = Model(FAMILIES[request.param].decoder(), F32)
    model.run = jax.jit(model.apply)
    params = jax.jit(model.init)(jax.random.key(0))
    # Larger weights than an init's, so that every path shows in the output.
    noise = iter(jax.random.split(jax.random.key(5), len(jax.tree.leaves(params))))
    params = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(noise), x.shape), params)
    tokens = jax.random.randint(jax.random.key(1), (2, 16), 0, 64)
    return model, params, tokens


def test_cached_decoding_equals_the_full_pass(case):
    model, params, tokens = case
    full, _ = model.run(params, tokens)
    step = jax.jit(lambda p, t, c: model.apply(p, t, cache=c))
    cache, parts = model.init_cache(2, 20), []
    for first, last in [(0, 5), *((i, i + 1) for i in range(5, 16))]:
        hidden, cache = step(params, tokens[:, first:last], cache)
        parts.append(hidden)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), full, atol=2e-5)


def test_left_padding_changes_nothing(case):
    model, params, tokens = case
    padded = jnp.pad(tokens, ((0, 0), (4, 0)))
    segments = (jnp.arange(20) >= 4).astype(jnp.int32)[None].repeat(2, 0)
    positions = jnp.maximum(jnp.arange(20) - 4, 0)[None].repeat(2, 0)
    cache = model.init_cache(2, 24)
    got, _ = model.run(params, padded, positions=positions, segment_ids=segments, cache=cache)
    np.testing.assert_allclose(got[:, 4:], model.run(params, tokens)[0], atol=2e-5)


def test_a_neighbour_document_changes_nothing(case):
    model, params, tokens = case
    segments = jnp.asarray([[1] * 7 + [2] * 9] * 2)
    positions = jnp.asarray([[*range(7), *range(9)]] * 2)
    packed, _ = model.run(params, tokens, positions=positions, segment_ids=segments)
    alone, _ = model.run(params, tokens[:, 7:])
    np.testing.assert_allclose(packed[:, 7:], alone, atol=2e-5)
    other = tokens.at[:, :7].set(0)
    again, _ = model.run(params, other, positions=positions, segment_ids=segments)
    np.testing.assert_array_equal(again[:, 7:], packed[:, 7:])


def test_the_future_changes_nothing(case):
    model, params, tokens = case
    a, _ = model.run(params, tokens)
    b, _ = model.run(params, tokens.at[:, 10:].set(0))
    np.testing.assert_array_equal(a[:, :10], b[:, :10])


@pytest.mark.parametrize(
    "case",
    [n if n in ("gqa", "gpt2") else pytest.param(n, marks=pytest.mark.extended) for n in FAMILIES],
    indirect=True,
)
def test_remat_changes_no_gradient(case):
    model, params, tokens = case

    def gradient(remat):
        other = Model(model.config, F32, remat)

        def loss(p):
            return jnp.mean(other.logits(p, other.apply(p, tokens)[0]) ** 2)

        return jax.jit(jax.grad(loss))(params)

    plain = gradient("none")
    for remat in ("full", "dots", "save_qkv", "save_projections"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            plain,
            gradient(remat),
        )


def test_axes_name_every_dimension(case):
    model, params, _ = case
    axes = model.logical_axes()
    jax.tree.map(lambda x, names: len(names) == x.ndim or pytest.fail(str(names)), params, axes)
    assert axes["group_0"]["block_0"]["attention"]["query"]["kernel"] == (
        "layers",
        "embed",
        "heads",
        "head",
    )


def test_init_is_the_abstract_tree(case):
    model, params, _ = case
    same = jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), params, model.abstract_params()
    )
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
    ("family", "count"),
    [
        # arXiv 2307.09288 and the released checkpoints' tensor shapes.
        (Llama(32000, 4096, 32, 32, 11008), 6_738_415_616),
        (Llama(32000, 5120, 40, 40, 13824), 13_015_864_320),
        (Llama(32000, 8192, 80, 64, 28672, n_kv_heads=8), 68_976_648_192),
        # Radford et al. 2019; transformers' GPT2LMHeadModel.num_parameters().
        (GPT2(50257, 768, 12, 12), 124_439_808),
        (GPT2(50257, 1600, 48, 25), 1_557_611_200),
    ],
)
def test_parameter_counts_are_the_published_ones(family, count):
    assert Model(family.decoder()).parameter_count()["total"] == count


def _variants(config):
    """One changed copy for every field of a dataclass tree, with its dotted name."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        options = []
        if isinstance(value, bool):
            options = [not value]
        elif isinstance(value, int):
            options = [value * 2 or 1]
        elif isinstance(value, float):
            options = [value * 1.5]
        elif isinstance(value, str):
            options = {"rms": ["layer"], "layer": ["rms"], "silu": ["gelu"]}.get(value, ["relu"])
        elif dataclasses.is_dataclass(value):
            for name, changed in _variants(value):
                yield f"{field.name}.{name}", _replaced(config, field.name, changed)
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                for name, changed in _variants(item):
                    items = None if changed is None else (*value[:i], changed, *value[i + 1 :])
                    yield f"{field.name}.{name}", _replaced(config, field.name, items)
        for option in options:
            yield field.name, _replaced(config, field.name, option)


def _replaced(config, name, value):
    """The changed copy, or None where it is refused."""
    if value is None:
        return None
    try:
        return dataclasses.replace(config, **{name: value})
    except ConfigError:
        return None


@pytest.mark.parametrize("name", [pytest.param("gqa", marks=pytest.mark.extended), "gpt2"])
def test_every_field_matters(name):
    """A field that changes neither a shape nor an output is a field nobody reads."""
    config = FAMILIES[name].decoder()
    tokens = jax.random.randint(jax.random.key(1), (1, 8), 0, 64)

    def result(config):
        model = Model(config, F32)
        shapes = model.abstract_params()
        params = jax.tree_util.tree_map_with_path(
            lambda path, x: _weights(jax.tree_util.keystr(path), x.shape), shapes
        )
        run = jax.jit(lambda p: model.logits(p, model.apply(p, tokens)[0]))
        return shapes, run(params)

    shapes, logits = result(config)
    seen = 0
    for field, changed in _variants(config):
        seen += 1
        # A refused value was read; test_init_follows_its_config sees to the init fields.
        if changed is None or field.startswith("init."):
            continue
        other_shapes, other = result(changed)
        differs = other_shapes != shapes or bool(jnp.any(other != logits))
        assert differs, f"{field} changes nothing"
    assert seen >= 15


def _weights(path, shape):
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    return jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32)


def test_init_follows_its_config():
    config = dataclasses.replace(
        FAMILIES["mha"], n_layers=4, d_model=128, vocab_size=512, init_std=None, residual_scale=0.5
    )
    params = jax.jit(Model(config.decoder()).init)(jax.random.key(0))
    block = params["group_0"]["block_0"]
    np.testing.assert_allclose(np.std(params["embed"]["table"]), 0.02, rtol=0.02)
    np.testing.assert_allclose(np.std(block["mlp"]["up"]["kernel"]), 128**-0.5, rtol=0.03)
    np.testing.assert_allclose(np.std(block["mlp"]["down"]["kernel"]), 0.5 * 48**-0.5, rtol=0.03)
    np.testing.assert_array_equal(block["mlp_norm"]["scale"], 1)
    layers = block["mlp"]["up"]["kernel"]
    assert np.any(layers[0] != layers[1])
