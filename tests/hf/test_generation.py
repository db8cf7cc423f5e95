"""What lies beside weights survives import and export: end tokens and settings of generation."""

import json

import models
import numpy as np
import pytest

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf import convert as conversion
from t5x_llm.hf import export, parity, reference
from t5x_llm.hf.generation import (
    DEFAULTS,
    UNSUPPORTED,
    end_ids,
    read_generation,
    sampling_fields,
    unsupported,
)
from t5x_llm.hf.import_ import import_model
from t5x_llm.hf.resize import resize
from t5x_llm.infer.sampling import Sampling
from t5x_llm.run.load import load
from t5x_llm.run.use import complete, sampling_for

SAID = {
    "bos_token_id": 1,
    "eos_token_id": [2, 30],
    "pad_token_id": 2,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "repetition_penalty": 1.1,
    "transformers_version": "4.42.3",
}


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setattr(reference, "torch_available", lambda: False)


def written(directory, **config):
    models.write(directory, models.tensors(), models.CONFIG | config)
    return directory


def said(directory, name="generation_config"):
    return json.loads((directory / f"{name}.json").read_text())


def test_import_keeps_every_setting_and_every_end_token(tmp_path, monkeypatch):
    for room in (conversion, export):  # the arithmetic is not what is tested
        monkeypatch.setattr(room, "gate", lambda *a: parity.unproved("", a[4]))
    source = written(tmp_path / "in", eos_token_id=[2, 30], bos_token_id=1, pad_token_id=-1)
    (source / "generation_config.json").write_text(json.dumps(SAID))
    conversion.convert(source, tmp_path / "out")
    assert said(tmp_path / "out") == SAID
    config = said(tmp_path / "out", "config")
    assert (config["eos_token_id"], config["bos_token_id"]) == ([2, 30], 1)
    assert config["pad_token_id"] is None  # -1 is no token
    conversion.convert(tmp_path / "out", tmp_path / "again", dtype="float16")
    resize(tmp_path / "again", tmp_path / "wider", vocab_size=96)
    assert said(tmp_path / "again") == said(tmp_path / "wider") == SAID


def test_an_export_has_the_settings_of_what_it_was_trained_from(tmp_path, monkeypatch):
    source = written(tmp_path / "in")
    (source / "generation_config.json").write_text(json.dumps(SAID | {"pad_token_id": 9999}))
    found = import_model(source, check=False)
    monkeypatch.setattr(export, "gate", lambda *a: parity.unproved("", a[4]))
    export.export_hf(
        found.params, found.family, None, tmp_path / "out", generation=found.generation
    )
    assert said(tmp_path / "out") == {k: v for k, v in SAID.items() if k != "pad_token_id"}


def test_without_the_file_settings_are_those_of_config_json(tmp_path):
    config = {"eos_token_id": [2, 3], "hidden_size": 16, "do_sample": True, "top_k": None}
    found = read_generation(tmp_path, config)
    assert found == {"eos_token_id": [2, 3], "do_sample": True}
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.5, "bos_token_id": 7}')
    found = read_generation(tmp_path, config)
    assert found == {"temperature": 0.5, "bos_token_id": 7, "eos_token_id": [2, 3]}
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="generation_config.json: expected a JSON object"):
        read_generation(tmp_path, config)


@pytest.mark.parametrize(
    ("value", "ends"),
    [(None, ()), (2, (2,)), ([2, 30, 2], (2, 30)), (-1, ()), ([5, 90], (5,)), ([], ())],
)
def test_end_ids(value, ends):
    assert end_ids({"eos_token_id": value}, 90) == ends


@pytest.mark.parametrize("value", ["</s>", [1, "2"], True, 2.0, {"a": 1}])
def test_end_ids_that_are_no_ids(value):
    with pytest.raises(ConfigError, match="eos_token_id"):
        end_ids({"eos_token_id": value}, 90)


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"eos_token_id": 2, "max_length": 4096}, {}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50, "top_p": 1.0}),
        ({"temperature": 0.9, "top_p": 0.6}, {"temperature": 0.0}),  # no do_sample: greedy
        ({"do_sample": False, "repetition_penalty": 1.2}, {"temperature": 0.0}),
        (SAID, {"temperature": 0.6, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1}),
        ({"max_new_tokens": 7, "stop_strings": "x"}, {"max_tokens": 7, "stop": ("x",)}),
    ],
)
def test_settings_mean_what_they_mean_in_transformers(settings, fields):
    found = sampling_fields(settings)
    assert {k: found[k] for k in fields} == fields and bool(found) == bool(fields)
    Sampling(**found)


def test_flags_override_the_file_and_the_file_the_caller():
    otherwise = {"temperature": 0.8, "top_p": 0.95}
    assert sampling_for({}, {}, otherwise) == Sampling(temperature=0.8, top_p=0.95)
    found = sampling_for(SAID, {"top_k": 3, "seed": 4}, otherwise)
    assert (found.temperature, found.top_k, found.top_p, found.seed) == (0.6, 3, 0.9, 4)
    with pytest.raises(ConfigError, match=r"generation_config.json top_p.*give top_p yourself"):
        sampling_for({"do_sample": True, "top_p": 7})
    assert sampling_for({"do_sample": True, "top_p": 7}, {"top_p": 0.5}).top_p == 0.5
    with pytest.raises(ConfigError, match=r"^Sampling.top_p"):
        sampling_for({}, {"top_p": 7})


def test_what_is_not_followed_is_named():
    neutral = {name: values[0] for name, values in UNSUPPORTED.items() if values}
    assert unsupported(neutral | DEFAULTS) == {}
    assert unsupported({"num_beams": 4, "min_p": 0.1}) == {"num_beams": 4, "min_p": 0.1}


class Letters:
    """A tokenizer of ids as characters."""

    bos_id, eos_id, pad_id, add_bos, vocab_size = 1, 0, None, True, 90

    def encode(self, text):
        return [ord(c) - 32 for c in text]

    def decode(self, ids):
        return "".join(chr(i + 32) for i in ids)


def test_generation_ends_at_every_end_token(tmp_path):
    source = written(tmp_path / "in")
    model = load(str(source))._replace(tokenizer=Letters())
    (whole,) = complete(model, ["abc"], Sampling(max_tokens=24, temperature=0))
    assert len(set(whole.tokens)) > 2
    end = whole.tokens[3]
    settings = {"eos_token_id": [89, end], "do_sample": False, "max_new_tokens": 24}
    (cut,) = complete(model._replace(generation=settings), ["abc"])
    assert cut.finish_reason == "eos"
    assert cut.tokens == whole.tokens[: whole.tokens.index(end)]


def test_a_step_of_what_has_none_is_refused(tmp_path):
    source = written(tmp_path / "in")
    with pytest.raises(ConfigError, match="step = 7: expected none.*no run directory"):
        load(str(source), step=7)


def test_tied_tensors_may_be_stored_under_any_one_of_their_names(tmp_path):
    tied = models.CONFIG | {"tie_word_embeddings": True}
    whole = models.tensors()
    del whole["lm_head.weight"]
    table = whole.pop("model.embed_tokens.weight")
    found = []
    for name in ("model.embed_tokens.weight", "lm_head.weight", "embed_tokens.weight"):
        models.write(tmp_path / name, whole | {name: table}, tied)
        found.append(import_model(tmp_path / name, check=False).params)
    for other in found[1:]:
        np.testing.assert_array_equal(other["embed"]["table"], found[0]["embed"]["table"])
    models.write(tmp_path / "x", whole, tied)
    with pytest.raises(CheckpointError, match="missing, e.g. model.embed_tokens.weight"):
        import_model(tmp_path / "x", check=False)
