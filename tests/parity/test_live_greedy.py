"""Exported models continue texts in transformers as they do here: same ids, same ends, same text.

With the settings of generation_config.json left to both sides.
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "hf"))

import models  # noqa: E402

from t5x_llm.hf.convert import convert  # noqa: E402
from t5x_llm.hf.export import export_hf  # noqa: E402
from t5x_llm.hf.import_ import import_model  # noqa: E402
from t5x_llm.run.load import load  # noqa: E402
from t5x_llm.run.use import complete, sampling_for  # noqa: E402
from t5x_llm.text import TokenizerTraining, train_tokenizer  # noqa: E402

TEXTS = [
    "The cat sat on the mat, and it rained. ",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声。",
    "😀 ok ",
]
PROMPTS = ["The cat", "春眠", " two  spaces", "emoji 😀👍🏽", "mixed 春 cat\nnew", "é ñ 한국어"]
LENGTH = 24
CASES = {
    "greedy": {},
    "one end": {"do_sample": False, "max_new_tokens": LENGTH},
    "ends": {"do_sample": False, "max_new_tokens": LENGTH, "eos_token_id": "list"},
    "penalty": {"repetition_penalty": 1.3, "max_new_tokens": LENGTH, "eos_token_id": "list"},
    "unsampled": {"temperature": 0.7, "top_p": 0.5, "max_new_tokens": LENGTH},
}


@pytest.fixture(scope="module", params=["tokenizer.json", "tokenizer.model"])
def exported(request, tmp_path_factory):
    """An export of random weights with a trained tokenizer; what this package generates freely."""
    place = tmp_path_factory.mktemp("export")
    training = TokenizerTraining(vocab_size=360)
    path = place / ("t.model" if request.param == "tokenizer.model" else "t")
    tokenizer = train_tokenizer(training, [text * 30 for text in TEXTS], path)
    config = models.CONFIG | {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 256}
    models.write(place / "raw", models.tensors(config, scale=0.5), config)
    found = import_model(place / "raw", check=False)
    export_hf(found.params, found.family, tokenizer, place / "hf")
    return place / "hf", tokenizer


@pytest.mark.parametrize("case", CASES)
def test_texts_are_those_of_transformers(exported, tmp_path, case):
    source, tokenizer = exported
    settings = dict(CASES[case])
    if settings.get("eos_token_id") == "list":
        greedy = sampling_for(settings | {"eos_token_id": None}, {"temperature": 0})
        free = complete(load(str(source)), PROMPTS[:1], greedy)  # for a token that does occur
        settings["eos_token_id"] = [tokenizer.eos_id, free[0].tokens[3]]
    file = source / "generation_config.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | settings))
    convert(source, tmp_path / "out")
    file.write_text(before)
    said = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {k: said[k] for k in settings} == settings
    loaded = load(str(tmp_path / "out"))
    ours = complete(loaded, PROMPTS, sampling_for(said, {"max_tokens": LENGTH, "temperature": 0}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ended = 0
    for completion in ours:
        inputs = reader(completion.prompt, return_tensors="pt")
        whole = theirs.generate(**inputs, max_new_tokens=LENGTH)[0].tolist()
        ids = whole[inputs["input_ids"].shape[1] :]
        ends = said["eos_token_id"]
        if ids[-1] in (ends if isinstance(ends, list) else [ends]):
            ids, ended = ids[:-1], ended + 1
            assert completion.finish_reason == "eos"
        assert list(completion.tokens) == ids, completion.prompt
        special = set(reader.all_special_ids)
        text = reader.decode(whole, skip_special_tokens=True)
        if not special & set(ids) and "\ufffd" not in text:
            assert text == completion.prompt + completion.text
    if "eos_token_id" in settings:
        assert ended > 0 and np.ndim(said["eos_token_id"]) == 1
