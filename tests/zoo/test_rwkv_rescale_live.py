"""transformers halves RWKV's stream every few layers at inference; ours computes the same."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import zoo
from make_golden import make_model

from t5x_llm.hf.import_ import import_model


@pytest.mark.filterwarnings("ignore")
def test_the_rescaled_model_has_the_same_logits(tmp_path):
    # The halved stream meets the same epsilon, so that only a small one is the same function.
    config = zoo.CASES["rwkv"] | {"rescale_every": 1, "layer_norm_epsilon": 1e-6}
    make_model(config).save_pretrained(tmp_path)
    family, _, _, report = import_model(tmp_path)
    assert family.rescale_every == 1
    assert report.passed and report.prompts["long"].max_abs < zoo.tolerance("rwkv")
