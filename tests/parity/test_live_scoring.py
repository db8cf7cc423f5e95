"""Heads of scores that are written here, loaded and computed by transformers itself."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from t5x_llm.hf.scoring import document_scores, export_scorer, read_scorer
from t5x_llm.models.families import FAMILIES
from t5x_llm.models.model import Model
from t5x_llm.text import TokenizerTraining, train_tokenizer
from t5x_llm.train.scoring import Classification, ScoringTask

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LLAMA = dict(d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=24)
SIZES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "gpt2": dict(d_model=16, n_layers=2, n_heads=2, max_length=64),
}


@pytest.mark.parametrize("case", SIZES)
def test_exported_scores_are_those_of_transformers(case, tmp_path):
    training = TokenizerTraining(vocab_size=300)
    tokenizer = train_tokenizer(training, ["some words and others"] * 9, tmp_path / "t")
    family = FAMILIES[case](vocab_size=tokenizer.vocab_size, **SIZES[case])
    scoring = Classification(("bad", "fair", "good"))
    task = ScoringTask(Model(family.decoder()), scoring, 16, ("a",))
    params = jax.device_get(task.init(jax.random.key(0)))
    report = export_scorer(params, family, scoring, tokenizer, tmp_path / "out")
    assert report.passed and report.reference.startswith("transformers")
    auto = transformers.AutoModelForSequenceClassification
    theirs = auto.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    rows = [np.arange(5, 5 + length) for length in (3, 9, 1)]
    ids = np.full((3, 9), theirs.config.pad_token_id)
    for row, document in enumerate(rows):
        ids[row, : len(document)] = document
    mask = torch.from_numpy((ids != theirs.config.pad_token_id).astype(np.int64))
    with torch.no_grad():
        scores = theirs(torch.from_numpy(ids), attention_mask=mask).logits.numpy()
    ours = document_scores(read_scorer(tmp_path / "out"), rows)
    np.testing.assert_allclose(ours, scores, atol=2e-5)
