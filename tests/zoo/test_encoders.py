"""Encoders and encoder-decoders against golden values of transformers; no torch here."""

from __future__ import annotations

import encoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from encoders import CASES, CUT, LENGTH, TARGET_CUT, TARGETS
from perturb import changes

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import ConfigError
from t5x_llm.hf import parity
from t5x_llm.hf.import_ import family_of
from t5x_llm.hf.reference import numpy_reference
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten, from_hf, to_hf

TWO_SIDED = [name for name in CASES if encoders.two_sided(name)]
UNSEEN = ("embed_gradient", "neftune", "start")  # in training, in generation


@pytest.fixture(scope="module", params=CASES)
def name(request):
    return request.param


def test_logits(name):
    family, model, params = encoders.model(name)
    golden, forward = encoders.golden(name), encoders.forward(model)
    shapes = {k: list(v) for k, v in zoo.hf_shapes(family).items()}
    assert shapes == {k: v[0] for k, v in golden["tensors"].items()}
    for packed, key in ((False, "logits"), (True, "packed")):
        found = forward(params, encoders.inputs(name, packed))[:: encoders.stride(name)]
        np.testing.assert_allclose(found, golden[key], atol=1e-4, rtol=0)


def test_a_neighbour_document_changes_nothing(name):
    """Neither on the encoder's side nor on the decoder's; and the token itself is seen."""
    _, model, params = encoders.model(name)
    forward, given = encoders.forward(model), encoders.inputs(name, packed=True)
    packed = forward(params, given)
    for side in ("tokens", "encoder_tokens"):
        if side not in given:
            continue
        cut = CUT if given[side].shape[1] == LENGTH else TARGET_CUT
        other = np.array(given[side])
        other[:, :cut] = encoders.inputs(name, seed=2)[side][:, :cut]
        again = forward(params, given | {side: other})
        rest = TARGET_CUT if encoders.two_sided(name) else CUT
        np.testing.assert_array_equal(packed[rest:], again[rest:])
        assert np.all(np.any(packed[:rest] != again[:rest], axis=-1)[1:])


@pytest.mark.parametrize("name", TWO_SIDED)
def test_cached_decoding_equals_the_full_pass(name):
    """The encoder runs once; padding on its side changes nothing."""
    _, model, params = encoders.model(name)
    given = encoders.inputs(name)
    full = encoders.forward(model)(params, given)

    @jax.jit
    def append(params, ids, cache, **encoder):
        with jax.default_matmul_precision("highest"):
            hidden, cache = model.apply(params, ids, cache=cache, **encoder)
            return model.logits(params, hidden)[0], cache

    padded = {
        "encoder_tokens": np.pad(given["encoder_tokens"], ((0, 0), (0, 16))),
        "encoder_segment_ids": (np.arange(LENGTH + 16) < LENGTH).astype(np.int32)[None],
    }
    logits, cache = append(params, given["tokens"][:, :50], model.init_cache(1, TARGETS), **padded)
    found = [logits]
    for i in range(50, TARGETS):
        logits, cache = append(params, given["tokens"][:, i : i + 1], cache)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found), full, atol=1e-4, rtol=0)


def test_a_cache_needs_a_decoder_and_a_decoder_its_encoder():
    model, t5 = encoders.model("bert")[1], encoders.model("t5")
    with pytest.raises(ConfigError, match="cannot continue a text"):
        model.init_cache(1, 8)
    with pytest.raises(ValueError, match="encoder_tokens"):
        t5[1].apply(t5[2], jnp.zeros((1, 4), jnp.int32))


def test_weights_and_config_survive_the_round_trip(name):
    family, model, params = encoders.model(name)
    back = {hf: make() for hf, make in to_hf(family.weight_map(), params)}
    for hf, array in back.items():
        assert array.tobytes() == zoo.array(hf, array.shape).tobytes(), hf
    again = from_hf(family.weight_map(), model.abstract_params(), back.__getitem__)
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(value, flatten(again)[path])
    written = family.to_hf_config()
    assert family_of(written).decoder() == family.decoder()
    for field in set(written) & set(CASES[name]):
        assert written[field] == CASES[name][field], field


def test_numpy_says_the_same(name):
    """The reference of the export gate, where torch is absent."""
    family, _, params = encoders.model(name)
    shapes = zoo.hf_shapes(family)
    compute = numpy_reference(CASES[name]["model_type"])
    expected = compute(CASES[name], lambda n: zoo.array(n, shapes[n]), zoo.tokens())
    found = parity.our_logits(family, params)(zoo.tokens())
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.zoo
def test_gradients(name):
    family, _, params = encoders.model(name)
    golden = encoders.golden(name)
    step = jax.jit(jax.value_and_grad(encoders.mean_loss(name)))

    def differences(point):
        with jax.default_matmul_precision("highest"):
            loss, gradients = step(point)
        np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
        found = ((hf, make()) for hf, make in to_hf(family.weight_map(), gradients))
        return zoo.golden_differences(name, found, golden["tensors"])

    zoo.assert_near_one(map(differences, zoo.nearby(family, params)))


@pytest.mark.zoo
def test_every_field_matters(name):
    """A field that changes no shape, output or config is one that nobody reads."""
    family = encoders.model(name)[0]
    given = {k: v[:, :48] for k, v in encoders.inputs(name).items()}

    def shapes(config):
        return Model(config, Policy(compute="float32")).abstract_params()

    def logits(config):
        model = Model(config, Policy(compute="float32"))
        params = jax.tree_util.tree_map_with_path(
            lambda path, x: zoo.array(jax.tree_util.keystr(path), x.shape), shapes(config)
        )
        return np.asarray(encoders.forward(model)(params, given))

    config = family.decoder()
    usual, checked = logits(config), 0
    for field, other in changes(config):
        if field.startswith("init.") or field.split(".")[-1] in UNSEEN:
            continue
        checked += 1
        if other is None or str(shapes(other)) != str(shapes(config)):
            continue
        assert not np.array_equal(logits(other), usual), f"{field} changes nothing"
    for field, other in changes(family):
        checked += 1
        if other is None:
            continue
        same = other.decoder() == config and other.to_hf_config() == family.to_hf_config()
        assert not same, f"{type(family).__name__}.{field} changes nothing"
    assert checked > 15


@pytest.mark.zoo
@pytest.mark.parametrize("name", [name for name in CASES if name != "t5_1_1"])
def test_it_learns_and_eight_devices_do_as_one(name):
    """One case of each model type: two compilations of a train step each."""
    losses = [encoders.train(name, devices) for devices in (1, 8)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-4)
    assert np.mean(losses[0][-5:]) < np.mean(losses[0][:5]) - 0.2
    assert np.all(np.isfinite(losses[0]))
