"""Fields of config.json that are unknown, inert, off or quantised; and what is compared."""

from __future__ import annotations

import json
import pickle

import models
import pytest

from t5x_llm.cli import import_ as command
from t5x_llm.core.errors import ConfigError
from t5x_llm.hf import import_, parity, reference
from t5x_llm.hf.convert import convert
from t5x_llm.hf.import_ import import_model
from t5x_llm.hf.model_config import family_of
from t5x_llm.models.families import FAMILIES
from t5x_llm.models.hf_config import UnknownField

INERT = {
    "_attn_implementation_autoset": True,
    "unsloth_version": "2025.3.19",
    "unsloth_fixed": True,
    "quantization_config": None,
    "sliding_window": None,
    "pretraining_tp": 2,
    "torch_dtype": "bfloat16",
    "dtype": "bfloat16",
    "auto_map": {"AutoModel": "modeling_x.X"},
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "repetition_penalty": 1.1,
    "pruned_heads": {},
    "return_dict": True,
    "torchscript": False,
    "attention_dropout": 0.1,
    "hidden_dropout_prob": 0.1,
    "resid_pdrop": 0.1,
    "output_router_logits": True,
    "use_mrope": False,
    "rope_interleaved": False,
    "some_switch": False,
    "some_count": 0,
    "some_list": [],
    "transformers.js_config": {"dtype": "q4"},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return models.write(tmp_path_factory.mktemp("model"), models.tensors())


def edited(directory, tmp_path, **change):
    """A copy of the model with other fields; its weights are linked."""
    path = tmp_path / "edited"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(models.CONFIG | change))
    (path / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    return path


@pytest.fixture
def as_if_transformers(monkeypatch):
    """The reference says that it is transformers; our NumPy computes it."""
    monkeypatch.setattr(reference, "torch_available", lambda: False)
    monkeypatch.setattr(import_, "why_not_transformers", lambda *a: None)


@pytest.fixture
def without_transformers(monkeypatch):
    monkeypatch.setattr(reference, "torch_available", lambda: False)


def test_what_is_inert_changes_nothing():
    assert family_of(models.CONFIG | INERT) == family_of(models.CONFIG)
    for name, value in INERT.items():
        assert family_of(models.CONFIG | {name: value}) == family_of(models.CONFIG), name


def test_unknown_fields_are_noted_where_transformers_proves(
    directory, tmp_path, as_if_transformers
):
    path = edited(
        directory, tmp_path, twist=3, rope_scaling={"type": "linear", "factor": 2, "y": 1}
    )
    report = import_model(path).report
    assert report.passed and "twist = 3, rope_scaling.y = 1" in " ".join(report.notes)
    convert(path, tmp_path / "out")
    notes = json.loads((tmp_path / "out" / "parity.json").read_text())["notes"]
    assert any("twist" in note for note in notes)
    assert "twist" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_unknown_fields_are_named_elsewhere(directory, tmp_path, without_transformers, capsys):
    path = edited(directory, tmp_path, twist=3, spin={"a": 1})
    for read in (
        lambda: import_model(path),
        lambda: convert(path, tmp_path / "out"),
        lambda: import_model(path, check=False),
        lambda: family_of(json.loads((path / "config.json").read_text())),
    ):
        with pytest.raises(UnknownField, match="--ignore_field twist --ignore_field spin"):
            read()
    with pytest.raises(SystemExit) as exit_:
        command.main([str(path), str(tmp_path / "out"), "--ignore_field", "twist"])
    assert exit_.value.code == 2 and "spin" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    fields = ["--ignore_field", "twist", "--ignore_field", "spin"]
    command.main([str(path), str(tmp_path / "out"), *fields])
    assert import_model(tmp_path / "out").report.passed


def test_errors_survive_a_process_boundary():
    error = UnknownField("twist", 3, ("twist", "spin"))
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.path == "twist"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "weights are quantised"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "weights are quantised"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"use_mrope": True}, "three dimensions"),
        ({"rope_scaling": {"type": "linear", "factor": "8.0"}}, r"rope_scaling\.factor = '8.0'"),
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor = None: expected a number"),
        ({"rope_scaling": {"type": "ntk"}}, r"rope_scaling\.type = 'ntk'"),
        ({"rope_parameters": {"rope_type": "ntk"}}, r"rope_parameters\.rope_type = 'ntk'"),
        ({"rope_scaling": {"rope_type": ["linear"]}}, r"rope_scaling\.rope_type"),
        ({"rope_scaling": "linear"}, "a table of settings"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": 2}},
            r"rope_scaling\.long_factor = 2: expected a list of numbers",
        ),
        ({"model_type": "gemma3"}, "'gemma3' itself is not known here"),
        ({"model_type": "qwen35"}, "'qwen35' itself is not known here"),
        ({"model_type": "Llama"}, "Did you mean 'llama'"),
        ({"model_type": "mistrel"}, "Did you mean 'mistral'"),
        ({"model_type": None, "peft_type": "LORA"}, "settings of an adapter"),
        (
            {"model_type": "llava", "text_config": {"model_type": "llama"}},
            "several modalities.*'llama', is described in text_config",
        ),
        ({"num_key_value_heads": 3, "num_attention_heads": 4}, "json num_key_value_heads = 3"),
        ({"rms_norm_eps": 0}, "config.json rms_norm_eps = 0"),
        ({"rope_theta": -1}, "config.json rope_theta = -1"),
        ({"hidden_size": 6}, "config.json hidden_size = 6: .* even number"),
        ({"model_type": "mistral", "sliding_window": 0}, "config.json sliding_window = 0"),
        ({"hidden_size": None}, "hidden_size = None: expected a value; the field is missing"),
    ],
)
def test_refusals_name_what_is_there(change, words):
    with pytest.raises(ConfigError, match=words):
        family_of(
            {k: v for k, v in (models.CONFIG | change).items() if v is not None or k in change}
        )


@pytest.mark.parametrize("value", [0, -1, 3, 10**9, 0.5, 1e400, float("nan"), True, "8", [], {}])
def test_no_refusal_names_what_no_file_has(value):
    """Parts of a model check themselves under names that neither config.json nor gin knows."""
    names = [*models.CONFIG, "head_dim", "rope_theta", "rms_norm_eps", "initializer_range"]
    for name in names:
        if name == "model_type":
            continue
        try:
            family_of(models.CONFIG | {name: value})
        except ConfigError as e:
            assert e.field.startswith("config.json"), (name, str(e))


def test_presets_name_their_own_fields():
    for make, field in (
        (lambda: FAMILIES["llama"](90, 16, 2, 4, 24, n_kv_heads=3), "Llama.n_kv_heads"),
        (lambda: FAMILIES["llama"](90, 16, 2, 4, 24, norm_eps=0), "Llama.norm_eps"),
        (lambda: FAMILIES["gptj"](90, 16, 2, 4, rotary_dim=5), "GPTJ.rotary_dim"),
        (lambda: FAMILIES["mistral"](90, 16, 2, 4, 24, n_kv_heads=4, window=0), "Mistral.window"),
    ):
        with pytest.raises(ConfigError) as error:
            make()
        assert error.value.field == field


def test_no_similar_architecture_is_suggested():
    for name in ("gemma3", "qwen35", "llama4", "phi4", "glm4", "mistral3", "olmo3", "bart"):
        with pytest.raises(ConfigError) as error:
            family_of(models.CONFIG | {"model_type": name})
        assert "Did you mean" not in str(error.value), name


DYNAMIC = {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 600}


@pytest.mark.parametrize(
    ("change", "tokens", "note"),
    [
        ({}, 512, ""),
        ({"model_type": "mistral"}, 4096 + 64, ""),  # its window where it does not say
        ({"model_type": "mistral", "sliding_window": 100}, 512, ""),
        ({"model_type": "mistral", "sliding_window": None}, 512, ""),
        ({"model_type": "mistral", "sliding_window": 100_000}, 512, "a window of 100000 tokens"),
        (DYNAMIC, 600 + 64, ""),
        (DYNAMIC | {"rope_scaling": {"type": "linear", "factor": 2.0}}, 512, ""),
        ({"model_type": "mistral", "vocab_size": 10**6}, 512, "a window of 4096 tokens"),
    ],
)
def test_the_long_prompt_goes_beyond_windows_and_rotations(change, tokens, note):
    length, notes = parity.long_prompt(family_of(models.CONFIG | change))
    assert length == tokens and bool(notes) == bool(note) and note in " ".join(notes)
