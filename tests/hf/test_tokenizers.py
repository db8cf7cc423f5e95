"""What belongs to a tokenizer goes through import, export, resize and GGUF."""

from __future__ import annotations

import json

import models
import pytest
import tokenizer_layouts as layouts
from ggufs import FIELDS, write_gguf

from t5x_llm.core.errors import CheckpointError
from t5x_llm.hf import reference
from t5x_llm.hf.convert import convert
from t5x_llm.hf.resize import resize
from t5x_llm.hf.source import open_source
from t5x_llm.text import load_tokenizer
from t5x_llm.text.bytes import letters
from t5x_llm.text.grow import Growing, learn


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setattr(reference, "torch_available", lambda: False)


def model_with(make, at):
    """A tiny LLaMA with a tokenizer of this layout."""
    make(at)
    size = load_tokenizer(at).vocab_size + 2
    config = models.CONFIG | {"vocab_size": size}
    return models.write(at, models.tensors(config), config)


MORE = [make for make in layouts.ALL if make.__name__ not in ("llama_chat", "t5", "roberta")]


@pytest.mark.parametrize(
    "make",
    [layouts.llama_chat, *(pytest.param(make, marks=pytest.mark.extended) for make in MORE)],
    ids=lambda make: make.__name__,
)
def test_import_brings_the_tokenizer(tmp_path, make):
    hub = model_with(make, tmp_path / "hub")
    assert convert(hub, tmp_path / "out").has_tokenizer
    before, after = load_tokenizer(hub), load_tokenizer(tmp_path / "out")
    assert after.special == before.special and after.add_bos == before.add_bos
    for name in ("bos_id", "eos_id", "pad_id", "vocab_size", "fingerprint"):
        assert getattr(after, name) == getattr(before, name), name
    said, kept = (
        json.loads((at / "tokenizer_config.json").read_text()) for at in (hub, tmp_path / "out")
    )
    names = ("chat_template", "model_max_length", "pad_token", "eos_token")
    assert {n: kept.get(n) for n in names if n in said} == {n: said[n] for n in names if n in said}
    template = "chat_template.jinja"
    assert (tmp_path / "out" / template).exists() == (hub / template).exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == (
        before.eos_id
    )


def test_resize_to_a_tokenizer_grown_from_the_bare_file(tmp_path):
    """The chat template and the added tokens of the model's directory stay."""
    hub = model_with(layouts.llama_chat, tmp_path / "hub")
    bare = tmp_path / "bare.model"
    load_tokenizer(hub).save(tmp_path / "whole")
    bare.write_bytes((tmp_path / "whole" / "tokenizer.model").read_bytes())
    texts = ["春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"] * 40
    grown = learn(load_tokenizer(bare), texts, Growing(20), progress=False).grown(20)
    old = load_tokenizer(hub)
    resize(hub, tmp_path / "out", tokenizer=grown)
    found = load_tokenizer(tmp_path / "out")
    assert (found.vocab_size, found.eos_id) == (old.vocab_size + 20, old.eos_id)
    assert found.special == old.special
    template = tmp_path / "out" / "chat_template.jinja"
    assert template.read_text("utf-8") == layouts.TEMPLATE


PIECES = [*letters(), "!!", "<|end|>"]
BYTE_LEVEL = FIELDS | {
    "llama.vocab_size": (4, len(PIECES)),
    "tokenizer.ggml.model": (8, "gpt2"),
    "tokenizer.ggml.pre": (8, "llama-bpe"),
    "tokenizer.ggml.tokens": (9, (8, PIECES)),
    "tokenizer.ggml.token_type": (9, (5, [1] * 257 + [3])),
    "tokenizer.ggml.merges": (9, (8, ["! !"])),
    "tokenizer.ggml.eos_token_id": (4, 257),
    "tokenizer.chat_template": (8, "{{ messages }}"),
}
MODEL = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁a", "<|end|>"]
SENTENCEPIECE = FIELDS | {
    "llama.vocab_size": (4, len(MODEL)),
    "tokenizer.ggml.model": (8, "llama"),
    "tokenizer.ggml.tokens": (9, (8, MODEL)),
    # llama.cpp's converter marks what tokenizer_config.json calls special, <unk> too, as control.
    "tokenizer.ggml.token_type": (9, (5, [3] * 3 + [6] * 256 + [1, 3])),
    "tokenizer.ggml.scores": (9, (6, [0.0] * len(MODEL))),
    "tokenizer.ggml.eos_token_id": (4, 260),
    "tokenizer.ggml.add_bos_token": (7, False),
    "tokenizer.ggml.padding_token_id": (4, 2),
    "tokenizer.chat_template": (8, "{{ messages }}"),
    "tokenizer.chat_template.tools": (8, "{{ tools }}"),
}


@pytest.mark.parametrize("fields", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte_level", "sentencepiece"])
def test_a_gguf_file_gives_all_that_it_has(tmp_path, fields):
    write_gguf(tmp_path / "x.gguf", fields, {})
    found = open_source(tmp_path / "x.gguf").tokenizer()
    assert found.special[found.eos_id] == "<|end|>" and not found.add_bos
    assert found.decode(found.encode("a!!\n床")) == "a!!\n床"
    found.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 64 and config["eos_token"] == "<|end|>"
    assert config["add_bos_token"] is False
    named = [{"name": "default", "template": "{{ messages }}"},
             {"name": "tools", "template": "{{ tools }}"}]  # fmt: skip
    assert config["chat_template"] == ("{{ messages }}" if fields is BYTE_LEVEL else named)
    if fields is SENTENCEPIECE:  # llama.cpp's own ids where the file names none
        assert (found.unk_id, found.bos_id, found.pad_id) == (0, 1, 2)
    again = load_tokenizer(tmp_path)
    assert (again.eos_id, again.add_bos) == (found.eos_id, found.add_bos)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merges": None}, r"x\.gguf tokenizer\.ggml\.merges is missing"),
        ({"merges": (9, (8, ["! ! !"]))}, r"x\.gguf .*merges\[0\] = '! ! !' is no pair"),
        ({"merges": (9, (8, ["!!"]))}, r"x\.gguf .*merges\[0\] = '!!' is no pair"),
        ({"merges": (9, (8, ["! !", "! a"]))}, r"x\.gguf .*merges\[1\] = '! a' .*lack '!a'"),
        ({"tokens": (9, (8, ["!!", *PIECES[1:]]))}, r"x\.gguf .*tokens has '!!' twice"),
        ({"tokens": (9, (4, list(range(258))))}, r"x\.gguf tokenizer.ggml.tokens is no list"),
        ({"scores": (9, (6, [0.0]))}, r"x\.gguf .*scores are not equally long"),
        ({"tokens": None}, r"x\.gguf tokenizer\.ggml\.tokens is no list"),
    ],
)
def test_a_damaged_tokenizer_is_named_as_the_ggufs(tmp_path, change, message):
    fields = BYTE_LEVEL | {f"tokenizer.ggml.{k}": v for k, v in change.items()}
    write_gguf(tmp_path / "x.gguf", {k: v for k, v in fields.items() if v is not None}, {})
    with pytest.raises(CheckpointError, match=message):
        open_source(tmp_path / "x.gguf").tokenizer()


def test_a_gguf_file_without_tokenizer(tmp_path):
    write_gguf(tmp_path / "x.gguf", FIELDS, {})
    assert open_source(tmp_path / "x.gguf").tokenizer() is None
