"""Heads of scores as transformers stores them, against its own scores (make_scoring.py)."""

from __future__ import annotations

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.evaluate.scoring import DocumentScorer
from t5x_llm.hf import scoring
from t5x_llm.hf.scoring import document_scores, export_scorer, read_scorer
from t5x_llm.hf.source import read_config
from t5x_llm.models.families import FAMILIES
from t5x_llm.models.model import Model
from t5x_llm.parallel import MeshConfig, make_mesh
from t5x_llm.text import TokenizerTraining, train_tokenizer
from t5x_llm.train.scoring import Classification, Regression, ScoringTask

GOLDEN = pathlib.Path(__file__).parents[1] / "parity" / "golden" / "scoring"


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setattr(scoring, "torch_available", lambda: False)


def documents(case):
    golden = np.load(GOLDEN / f"{case}.npz")
    rows = zip(golden["ids"], golden["lengths"], strict=True)
    return [ids[:length] for ids, length in rows], golden["scores"]


@pytest.mark.parametrize("case", ["llama", "mistral", "qwen2", "gpt2"])
def test_scores_of_a_padded_batch_are_those_of_transformers(case):
    scorer = read_scorer(GOLDEN / case)
    rows, expected = documents(case)
    assert scorer.scoring.outputs == expected.shape[1]
    assert isinstance(scorer.scoring, Regression if case == "gpt2" else Classification)
    np.testing.assert_allclose(document_scores(scorer, rows), expected, atol=2e-5)


def test_scores_depend_on_no_batch_and_no_padding():
    """Id 0 is the pad token: a document that ends with it is scored at that token all the same."""
    scorer = read_scorer(GOLDEN / "llama")
    rows, expected = documents("llama")
    rows.append(np.append(rows[0], 0).astype(rows[0].dtype))
    model = Model(scorer.family.decoder(), Policy(compute="float32"))
    config = MeshConfig(data=2, fsdp=4)
    whole = DocumentScorer(model, make_mesh(config), config.rules(), 24, 8)
    found = whole(scorer.params, rows)
    np.testing.assert_allclose(found[:4], expected, atol=2e-5)
    np.testing.assert_allclose(found, document_scores(scorer, rows), atol=2e-5)
    assert np.abs(found[4] - found[0]).max() > 1e-2
    np.testing.assert_allclose(whole(scorer.params, rows[::-1])[::-1], found, atol=1e-6)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    where = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(TokenizerTraining(vocab_size=300), ["some words and others"] * 9, where)


def family(case, size):
    config = read_config(GOLDEN / case)
    read = FAMILIES[config["model_type"]].from_hf_config
    drop = ("id2label", "label2id", "problem_type")
    return read({k: v for k, v in config.items() if k not in drop} | {"vocab_size": size})


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_export_is_proved_and_loads_back(case, tmp_path, tokenizer):
    made = family(case, tokenizer.vocab_size)
    task = Classification(("bad", "good"))
    learned = ScoringTask(Model(made.decoder()), task, 8, ("a",))
    params = jax.device_get(learned.init(jax.random.key(0)))
    report = export_scorer(params, made, task, tokenizer, tmp_path / "out")
    assert report.passed and report.reference.startswith("numpy")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"} and config["pad_token_id"] is not None
    assert config["architectures"][0].endswith("ForSequenceClassification")
    again = read_scorer(tmp_path / "out")
    assert again.scoring == task
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


def test_what_is_no_scorer_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no classifier"):
        read_scorer(GOLDEN.parent / "llama_tied")
    shutil.copytree(GOLDEN / "llama", tmp_path / "broken")
    config = json.loads((GOLDEN / "llama" / "config.json").read_text())
    config["id2label"] = {"0": "a", "1": "b"}
    (tmp_path / "broken" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"score\.weight"):
        read_scorer(tmp_path / "broken")
