"""config.json comes from strangers: whatever it says ends in a model or in one of our errors."""

from __future__ import annotations

import json
import resource

import models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_llm.core.errors import CheckpointError, ConfigError, ParityError, T5xLLMError
from t5x_llm.hf import reference
from t5x_llm.hf.convert import convert
from t5x_llm.hf.export import export_hf
from t5x_llm.hf.import_ import family_of, import_model, resolve
from t5x_llm.hf.safetensors_io import SafetensorsReader
from t5x_llm.hf.source import open_source


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setattr(reference, "torch_available", lambda: False)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return models.write(tmp_path_factory.mktemp("model"), models.tensors())


ABSURD = [2**62, 10**30, 10**9, -1, 0, 1e400, float("nan"), True, "8", [], {}, [1] * 9, {"a": 1}]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*models.CONFIG, "head_dim", "rope_parameters", "rope_scaling", "rope_theta"]),
    st.sampled_from(ABSURD),
)
def test_absurd_values(directory, name, value):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        source = open_source(directory)
        resolve(source.weights, family_of(models.CONFIG | {name: value}))
    except T5xLLMError as e:
        assert str(e)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_hidden_layers": 10**9}, ConfigError, "num_hidden_layers.*at most 10000"),
        ({"num_hidden_layers": 9999}, CheckpointError, "far more tensors than there are"),
        ({"num_hidden_layers": 3}, CheckpointError, "9 of 30 tensors are missing"),
        ({"vocab_size": 2**40}, ConfigError, "config.json vocab_size = .*at most 2147483647"),
        ({"intermediate_size": 25}, CheckpointError, "does not fit"),
        ({"model_type": ["llama"]}, ConfigError, "model_type"),
        ({"auto_map": {"AutoModel": "evil.Model"}, "twist": 1}, ConfigError, "twist"),
    ],
)
def test_claims_that_the_files_do_not_bear_out(directory, change, error, message):
    with pytest.raises(error, match=message):
        resolve(SafetensorsReader(directory), family_of(models.CONFIG | change))


def test_a_huge_config_is_not_parsed(tmp_path):
    models.write(tmp_path, models.tensors())
    (tmp_path / "config.json").write_text(json.dumps(models.CONFIG) + " " * 10_000_001)
    with pytest.raises(CheckpointError, match="larger than"):
        import_model(tmp_path)


def test_unproved_is_asked_for_and_said(directory, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "NUMPY", {})
    for write in (
        lambda **more: convert(directory, tmp_path / "out", **more).report,
        lambda **more: export_hf(
            import_model(directory, check=False).params,
            family_of(models.CONFIG),
            None,
            tmp_path / "out",
            **more,
        ),
    ):
        with pytest.raises(ParityError, match="Install torch and transformers.*--unproved"):
            write()
        report = write(unproved=True)
        assert not report.passed and not report.prompts and report.reference == "none"
        assert "bit for bit; logits not compared. No reference" in report.summary()
        stored = json.loads((tmp_path / "out" / "parity.json").read_text())
        assert stored["passed"] is False and "not compared" in stored["notes"][0]
        assert "Not checked: " in (tmp_path / "out" / "README.md").read_text()


def test_a_module_of_references_is_named_by_no_path():
    for name in ("numpy_layers", "..reference", "os", "", "baichuan.__builtins__", "__init__"):
        assert reference.numpy_reference(name) is None
    assert reference.numpy_reference("palm").__name__ == "palm"


def test_references_get_wide_numbers(directory):
    """A reference that is read in bfloat16 would round as it goes."""
    seen = []

    def read(name):
        seen.append(name)
        return np.ones(3, np.float16)

    config = {"model_type": "stranger"}
    reference.NUMPY["stranger"] = lambda config, read, tokens: read("x")
    try:
        found = reference.reference(directory, config, read)[1](np.zeros(2, np.int32))
    finally:
        del reference.NUMPY["stranger"]
    assert seen == ["x"] and found.dtype == np.float32
