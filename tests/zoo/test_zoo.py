"""Every family against golden values; no torch here. What takes long is marked ``zoo``."""

from __future__ import annotations

import importlib.util

import jax
import numpy as np
import pytest
import zoo
from perturb import changes
from zoo import CASES, CUT, GOLDEN, LENGTH, STRIDE

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import ConfigError
from t5x_llm.hf.import_ import family_of
from t5x_llm.models.families import FAMILIES
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten, from_hf, to_hf

HELD = sorted(path.stem for path in GOLDEN.glob("*.npz"))

# Seen by tests/models/test_model.py, tests/models/test_stability.py and tests/nn/test_moe.py.
TRAINING_ONLY = ("embed_gradient", "neftune", "balance_weight", "z_weight")

# Rotations grow with the sequence, from token 129 on, and stored keys keep theirs: a cache gives
# other numbers than the full pass, those of transformers (tests/infer/test_rotations_by_length.py).
BY_LENGTH = ("internlm_dynamic", "internlm2_dynamic")

# One case of each model type is in the default suite.
FIRST = list({config["model_type"]: name for name, config in reversed(CASES.items())}.values())


def cases(names):
    return [n if n in FIRST else pytest.param(n, marks=pytest.mark.zoo) for n in names]


@pytest.fixture(scope="module", params=cases(CASES))
def name(request):
    return request.param


@pytest.mark.parametrize("name", cases(HELD))
def test_logits(name):
    family, model, params = zoo.model(name)
    golden, forward = zoo.golden(name), zoo.run(model)
    shapes = {k: list(v) for k, v in zoo.hf_shapes(family).items()}
    assert shapes == {k: v[0] for k, v in golden["tensors"].items()}
    ids = zoo.tokens()[None]
    whole = forward(params, ids)
    atol = zoo.tolerance(name)
    np.testing.assert_allclose(whole[::STRIDE], golden["logits"], atol=atol, rtol=0)
    packed = forward(params, ids, *zoo.segments())
    np.testing.assert_allclose(packed[::STRIDE], golden["packed"], atol=atol, rtol=0)


def test_a_neighbour_document_changes_nothing(name):
    _, model, params = zoo.model(name)
    forward, ids = zoo.run(model), zoo.tokens()[None]
    other = np.concatenate([zoo.tokens(2)[None, :CUT], ids[:, CUT:]], axis=1)
    packed, again = (forward(params, row, *zoo.segments()) for row in (ids, other))
    np.testing.assert_array_equal(packed[CUT:], again[CUT:])
    assert np.any(packed[:CUT] != again[:CUT])


@pytest.mark.zoo
@pytest.mark.parametrize("name", [n for n in CASES if n not in BY_LENGTH])
def test_cached_decoding_equals_the_full_pass(name):
    _, model, params = zoo.model(name)
    ids = zoo.tokens()[None]
    full = zoo.run(model)(params, ids)

    @jax.jit
    def append(params, ids, cache):
        with jax.default_matmul_precision("highest"):
            hidden, cache = model.apply(params, ids, cache=cache)
            return model.logits(params, hidden)[0], cache

    cache, found = model.init_cache(1, LENGTH), []
    # Two lengths are two compilations.
    for start, end in [(0, 250), *((i, i + 1) for i in range(250, 262)), (262, 512)]:
        logits, cache = append(params, ids[:, start:end], cache)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found), full, atol=zoo.tolerance(name), rtol=0)


def test_weights_and_config_survive_the_round_trip(name):
    family, model, params = zoo.model(name)
    back = {hf: make() for hf, make in to_hf(family.weight_map(), params)}
    for hf, array in back.items():
        assert array.tobytes() == zoo.array(hf, array.shape).tobytes(), hf
    again = from_hf(family.weight_map(), model.abstract_params(), back.__getitem__)
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(value, flatten(again)[path])
    written = family.to_hf_config()
    again = family_of(written)
    assert again.decoder() == family.decoder() and again.to_hf_config() == written
    for field in set(written) & set(CASES[name]) - {"rope_parameters"}:
        assert written[field] == CASES[name][field], field


@pytest.mark.zoo
@pytest.mark.parametrize("name", HELD)
def test_gradients(name):
    family, _, params = zoo.model(name)
    golden = zoo.golden(name)
    step = jax.jit(jax.value_and_grad(zoo.mean_loss(name)))

    def differences(point):
        with jax.default_matmul_precision("highest"):
            loss, gradients = step(point, zoo.tokens())
        np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
        found = zoo.our_gradients(name, gradients).items()
        return zoo.golden_differences(name, found, golden["tensors"])

    zoo.assert_near_one(map(differences, zoo.nearby(family, params)))


@pytest.mark.zoo
def test_every_field_matters(name):
    """A field that changes no shape, output, fresh weight or config is one that nobody reads."""
    family = zoo.model(name)[0]
    ids = zoo.tokens(3, 160 if name in BY_LENGTH else 48)[None]

    def made(config):
        model = Model(config, Policy(compute="float32"))
        return model, model.abstract_params()

    def result(model, shapes):
        params = jax.tree_util.tree_map_with_path(
            lambda path, x: zoo.array(jax.tree_util.keystr(path), x.shape), shapes
        )
        return np.asarray(zoo.run(model)(params, ids))

    first, shapes = made(family.decoder())
    logits = result(first, shapes)
    checked = 0
    for field, other in changes(family.decoder()):
        if field.startswith("init.") or field.split(".")[-1] in TRAINING_ONLY:
            continue
        checked += 1
        if other is None:
            continue  # refused: it was read
        model, other_shapes = made(other)
        same = other_shapes == shapes and np.array_equal(result(model, other_shapes), logits)
        assert not same, f"{field} changes nothing"
    for field, other in changes(family):
        checked += 1
        if other is None:
            continue
        same = other.decoder() == family.decoder() and other.to_hf_config() == family.to_hf_config()
        assert not same, f"{type(family).__name__}.{field} changes nothing"
    assert checked > 15


@pytest.mark.zoo
@pytest.mark.parametrize("name", FIRST[::-1])
def test_it_learns_and_eight_devices_do_as_one(name):
    """One case of each model type: two compilations of a train step each."""
    losses = zoo.train(name, devices=1), zoo.train(name, devices=8)
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-4)
    assert np.mean(losses[0][-5:]) < np.mean(losses[0][:5]) - 0.2
    assert np.all(np.isfinite(losses[0]))


@pytest.mark.parametrize("model_type", [t for t, family in FAMILIES.items() if family.COPIES])
def test_fields_that_repeat_others_are_read_and_refused_where_they_disagree(model_type):
    config = next(c for c in CASES.values() if c["model_type"] == model_type)
    for field, ours in FAMILIES[model_type].COPIES.items():
        value = getattr(family_of(config), ours)
        assert family_of(config | {field: value}) == family_of(config)
        with pytest.raises(ConfigError, match=field):
            family_of(config | {field: value + 1})


def test_every_case_is_compared_with_something():
    """Each family has golden values from transformers or a NumPy reference of its own test."""
    for case, config in CASES.items():
        module = f"t5x_llm.hf.references.{config['model_type'].replace('-', '_')}"
        assert case in HELD or importlib.util.find_spec(module), case
