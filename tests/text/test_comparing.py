"""Tokenizers belong together if their ids mean the same, however their files are written."""

import json

import pytest

from t5x_llm.core.errors import ConfigError
from t5x_llm.text import TokenizerTraining, load_tokenizer, train_tokenizer
from t5x_llm.text.comparing import check_same_tokenizer, difference, differing_id


@pytest.fixture(scope="module")
def pair(texts, tmp_path_factory):
    """Two tokenizers of one size, of other text; and the directory of the first."""
    root = tmp_path_factory.mktemp("pair")
    config = TokenizerTraining(vocab_size=3000, sample_bytes=200_000)
    made = [
        train_tokenizer(config, part, root / name, progress=False)
        for name, part in (("a", texts[:60]), ("b", texts[60:]))
    ]
    return *made, root / "a"


def rewritten(source, target, change):
    """A tokenizer.json that another program wrote: other bytes, and ``change`` made to it."""
    target.mkdir()
    content = json.loads((source / "tokenizer.json").read_text("utf-8"))
    change(content)
    (target / "tokenizer.json").write_text(json.dumps(content, indent=3), "utf-8")
    names = "special_tokens_map.json"
    (target / names).write_bytes((source / names).read_bytes())
    return load_tokenizer(target)


def test_files_written_otherwise_are_the_same_tokenizer(pair, tmp_path):
    first, _, directory = pair
    json_alone = rewritten(directory, tmp_path / "json", lambda content: None)
    assert json_alone.fingerprint != first.fingerprint
    assert difference(first, json_alone) == difference(json_alone, first) == ""


def test_a_token_that_pads_changes_no_text(pair, tmp_path):
    def padded(content):
        token = dict(content["added_tokens"][-1], id=first.vocab_size, content="<more>")
        content["added_tokens"].append(token)

    first, _, directory = pair
    found = rewritten(directory, tmp_path / "more", padded)
    assert found.vocab_size == first.vocab_size + 1 and difference(first, found) == ""


def test_others_are_told_apart(pair, tmp_path):
    first, second, directory = pair
    assert first.vocab_size == second.vocab_size
    assert "id " in difference(first, second) and differing_id(first, second)
    with pytest.raises(ConfigError, match=r"Here\.there = 'mine .*tokenizer of theirs.*Do that"):
        check_same_tokenizer("Here.there", first, second, ("mine", "theirs"), "Do that.")

    def other_merges(content):
        content["model"]["merges"] = content["model"]["merges"][::-1]

    merged = rewritten(directory, tmp_path / "merged", other_merges)
    assert not differing_id(first, merged) and "other ids" in difference(first, merged)
    larger = load_tokenizer("bytes")
    assert difference(first, larger)
