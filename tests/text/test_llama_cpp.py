"""An exported tokenizer says to llama.cpp what it needs; ids recorded there are ours.

``tests/bench/llama_cpp_ids.py`` records them, and compares many more.
"""

import json
from pathlib import Path

import pytest
import tokenizer_layouts as layouts

from t5x_llm.text import TokenizerTraining, load_tokenizer, train_tokenizer
from t5x_llm.text.sentencepiece import SentencePieceTokenizer

RECORDED = json.loads(Path(__file__).with_name("golden").joinpath("llama_cpp_ids.json").read_text())


def test_ids_are_those_of_llama_cpp(tmp_path):
    """Of the model, and of what is saved, in transformers too."""
    transformers = pytest.importorskip("transformers")
    SentencePieceTokenizer(layouts.handmade()).save(tmp_path)
    ours = load_tokenizer(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(RECORDED) == 40
    for text, ids in RECORDED:
        assert ours.encode(text) == ids
        options = {"add_special_tokens": False, "split_special_tokens": True}
        assert theirs.encode(text, **options) == ids


def test_no_space_in_front_unless_the_model_puts_one(tmp_path, texts):
    """llama.cpp puts a space before every text of a SentencePiece model unless told otherwise."""

    def said(directory):
        config = json.loads((directory / "tokenizer_config.json").read_text())
        return config.get("add_prefix_space")

    how = TokenizerTraining(vocab_size=400, character_coverage=0.98)
    train_tokenizer(how, texts[:5], tmp_path / "trained", progress=False)
    assert said(tmp_path / "trained") is False
    layouts.llama(tmp_path / "llama")
    load_tokenizer(tmp_path / "llama").save(tmp_path / "saved")
    assert said(tmp_path / "saved") is None
    # Told so beside somebody else's model, it is none of the model either.
    config = {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}
    layouts.write(tmp_path / "llama", tokenizer_config__json=config)
    load_tokenizer(tmp_path / "llama").save(tmp_path / "without")
    assert said(tmp_path / "without") is False
    assert load_tokenizer(tmp_path / "without").encode("a") == load_tokenizer(
        tmp_path / "llama"
    ).encode("a") != load_tokenizer(tmp_path / "saved").encode("a")  # fmt: skip
