"""Our stack against files that transformers and torch wrote (make_golden.py); no torch here."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, GOLDEN, STRIDE, batch_of, golden, hf_config, prompt
from close import assert_within

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import ParityError
from t5x_llm.hf import export, parity, reference
from t5x_llm.hf.export import export_hf
from t5x_llm.hf.import_ import family_of, import_model
from t5x_llm.hf.safetensors_io import INDEX, SafetensorsReader
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten, to_hf


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    """Even where torch is installed, these tests use what CI has."""
    monkeypatch.setattr(reference, "torch_available", lambda: False)


def load(case):
    family, params, *_ = import_model(GOLDEN / case, check=False)
    return family, params, Model(family.decoder(), Policy(compute="float32"))


def test_logits(case):
    family, params, _ = load(case)
    ours = parity.our_logits(family, params)(prompt())[::STRIDE]
    np.testing.assert_allclose(ours, golden(case)["logits"], atol=1e-4, rtol=0)


def test_numpy_reference(case):
    read = SafetensorsReader(GOLDEN / case).read
    _, logits = reference.reference(GOLDEN / case, hf_config(case), read)
    np.testing.assert_allclose(logits(prompt())[::STRIDE], golden(case)["logits"], atol=1e-4)


def test_gradients(case):
    family, params, model = load(case)
    expected = golden(case)
    batch = batch_of(prompt()[None])

    def mean_loss(params):
        return model.loss(params, batch)[0] / batch.tokens.size

    loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(params)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5)
    for name, make in to_hf(family.weight_map(), gradients):
        theirs = expected[f"grad/{name}"]
        worst = np.abs(make() - theirs).max() / np.abs(theirs).max()
        # A key bias moves all scores of a query alike: its gradient is zero but for rounding.
        if name.endswith("k_proj.bias"):
            assert_within(np.abs(make() - theirs).max(), 1e-6, name)
        else:
            assert_within(worst, 1e-3, name)


def test_cached_decoding_equals_the_full_pass(case):
    family, params, model = load(case)
    tokens = prompt()[None]
    full = parity.our_logits(family, params)(prompt())

    @jax.jit
    def append(params, tokens, cache):
        hidden, cache = model.apply(params, tokens, cache=cache)
        return model.logits(params, hidden)[0], cache

    cache, found = model.init_cache(1, tokens.shape[1]), []
    for start, end in [(0, 300), *((i, i + 1) for i in range(300, 340)), (340, 512)]:
        logits, cache = append(params, tokens[:, start:end], cache)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found), full, atol=1e-4)


def test_left_padding_changes_nothing(case):
    family, params, model = load(case)
    tokens = prompt()[:40]
    plain = parity.our_logits(family, params)(tokens)
    index = np.arange(64)[None] - 24
    hidden, _ = model.apply(
        params,
        jnp.asarray(np.concatenate([np.zeros(24, np.int32), tokens])[None]),
        positions=jnp.maximum(index, 0),
        segment_ids=jnp.asarray(index >= 0, jnp.int32),
        cache=model.init_cache(1, 80),
    )
    np.testing.assert_allclose(model.logits(params, hidden)[0, 24:], plain, atol=1e-4)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 8000])
def test_export_gives_back_every_bit(case, tmp_path, max_shard_bytes):
    family, params, _ = load(case)
    report = export_hf(params, family, None, tmp_path / "out", max_shard_bytes)
    assert report.passed and report.prompts["long"].tokens == 512
    assert json.loads((tmp_path / "out/parity.json").read_text())["passed"]
    original, ours = SafetensorsReader(GOLDEN / case), SafetensorsReader(tmp_path / "out")
    assert sorted(original.names()) == sorted(ours.names())
    for name in original.names():
        a, b = original.read(name), ours.read(name)
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), name
    assert (tmp_path / "out" / INDEX).exists() == (max_shard_bytes == 8000)
    family_again, params_again, tokenizer, *_ = import_model(tmp_path / "out", check=False)
    assert family_again == family and tokenizer is None
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(value, flatten(params_again)[path])


def test_import_passes_the_gate_without_torch(case):
    report = import_model(GOLDEN / case).report
    assert report.passed and report.reference.startswith("numpy")
    assert_within(report.prompts["long"].relative, 1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_exports(case, tmp_path, dtype):
    family, params, _ = load(case)
    report = export_hf(params, family, None, tmp_path / "out", dtype=dtype)
    assert report.passed and report.dtype == dtype
    reader = SafetensorsReader(tmp_path / "out")
    assert {str(reader.read(n).dtype) for n in reader.names()} == {dtype}


def test_golden_configs_survive_the_round_trip(case):
    theirs = hf_config(case)
    ours = family_of(theirs).to_hf_config()
    for name in set(ours) & set(theirs):
        assert ours[name] == theirs[name], name
    assert family_of(ours) == family_of(theirs)


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("llama_untied", {"rope_parameters": {"rope_type": "default", "rope_theta": 510.0}}),
        ("llama_untied", {"rms_norm_eps": 2e-3}),
        ("gpt2", {"layer_norm_epsilon": 2e-3}),
    ],
)
def test_the_gate_refuses_a_wrong_model(case, change, tmp_path, monkeypatch):
    """The export's own config is spoilt, as a wrong mapping would spoil it."""
    family, params, _ = load(case)
    monkeypatch.setattr(
        type(family), "to_hf_config", lambda self: hf_config(case) | change, raising=True
    )
    with pytest.raises(ParityError, match="Nothing was written"):
        export_hf(params, family, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_gate_refuses_swapped_weights(tmp_path, monkeypatch):
    family, params, _ = load("llama_untied")
    swapped = [
        type(e)(
            e.hf.replace("gate_proj", "@").replace("up_proj", "gate_proj").replace("@", "up_proj"),
            e.ours,
            e.hf_axes,
            e.our_axes,
        )
        for e in family.weight_map()
    ]
    monkeypatch.setattr(type(family), "weight_map", lambda self: swapped)
    with pytest.raises(ParityError, match="Nothing was written"):
        export_hf(params, family, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_earlier_one(tmp_path, monkeypatch):
    family, params, _ = load("gpt2")
    export_hf(params, family, None, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(export, "model_card", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_hf(params, family, None, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
