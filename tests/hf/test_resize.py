"""Another vocabulary size: old rows keep every bit, old logits stay."""

from __future__ import annotations

import io
import json

import ml_dtypes
import models
import numpy as np
import pytest
import sentencepiece

from t5x_llm.core.errors import ConfigError
from t5x_llm.hf import reference
from t5x_llm.hf.import_ import import_model
from t5x_llm.hf.parity import our_logits
from t5x_llm.hf.resize import check_old_ids, resize, subpieces
from t5x_llm.hf.safetensors_io import SafetensorsReader
from t5x_llm.models.vocabulary import Growth, resized, rounded_up
from t5x_llm.text import load_tokenizer
from t5x_llm.text.sentencepiece import SentencePieceTokenizer


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setattr(reference, "torch_available", lambda: False)


def byte_pairs(directory, merges):
    """A byte-level tokenizer of printable ASCII and some merges."""
    directory.mkdir(exist_ok=True)
    vocab = [chr(i) for i in range(47, 127)] + ["".join(m) for m in merges]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer = {
        "version": "1.0",
        "pre_tokenizer": byte_level | {"use_regex": False},
        "decoder": byte_level | {"use_regex": False},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(vocab)},
            "merges": [list(m) for m in merges],
        },
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return load_tokenizer(directory)


OLD = [("t", "h"), ("th", "e")]
NEW = [*OLD, ("c", "a"), ("ca", "the")]


@pytest.fixture
def model(tmp_path):
    """90 rows, 82 of them tokens."""
    path = models.write(tmp_path / "model", models.tensors())
    byte_pairs(path, OLD)
    return path


def rows(directory, name="lm_head.weight"):
    return SafetensorsReader(directory).read(name)


@pytest.mark.parametrize("how", ["mean", "subpieces", "noise"])
def test_old_rows_and_old_logits_stay(model, tmp_path, how):
    new = byte_pairs(tmp_path / "new", NEW)
    out = tmp_path / "out"
    found = resize(model, out, tokenizer=new, multiple=32, growth=Growth(how, noise=0.5))
    assert found[:2] == (90, 96) and found[2].passed
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        before, after = rows(model, name), rows(out, name)
        assert after.shape == (96, 16) and after[:82].tobytes() == before[:82].tobytes()
        mean = before[:82].mean(0, dtype=np.float64)
        if how == "noise":
            assert np.unique(after[82:], axis=0).shape[0] == 14
            spread = (after[82:] - mean) / before[:82].std(0)
            assert 0.3 < spread.std() < 0.7
            continue
        expected = np.tile(mean.astype(np.float32), (14, 1))
        if how == "subpieces":
            c, a, the = 52, 50, 81
            assert load_tokenizer(model).encode("cathe") == [c, a, the]
            expected[0] = before[[c, a]].mean(0, dtype=np.float64)
            expected[1] = before[[c, a, the]].mean(0, dtype=np.float64)
        np.testing.assert_array_equal(after[82:], expected)
    for path in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        assert rows(out, path).tobytes() == rows(model, path).tobytes()
    old, wide = import_model(model, check=False), import_model(out, check=False)
    ids = np.asarray(old.tokenizer.encode("the}mat|the~sat" * 3), np.int32)
    logits = [our_logits(m.family, m.params)(ids) for m in (old, wide)]
    np.testing.assert_allclose(logits[1][:, :82], logits[0][:, :82], atol=2e-6)
    assert wide.tokenizer.encode("cathe") == [83]


def test_padding_and_cutting_it_again(model, tmp_path):
    assert resize(model, tmp_path / "wide", multiple=128)[:2] == (90, 128)
    assert resize(tmp_path / "wide", tmp_path / "tight", vocab_size=82)[:2] == (128, 82)
    assert rows(tmp_path / "tight").tobytes() == rows(model)[:82].tobytes()
    with pytest.raises(ConfigError, match="at least the tokenizer's 82"):
        resize(model, tmp_path / "x", vocab_size=81)


def test_old_ids_must_mean_what_they_meant(model, tmp_path):
    other = byte_pairs(tmp_path / "other", [("c", "a"), *OLD])
    with pytest.raises(ConfigError, match="id 80 = .*ca.*expected 'th'"):
        resize(model, tmp_path / "x", tokenizer=other)
    with pytest.raises(ConfigError, match="80 tokens.*at least the old one's 82"):
        check_old_ids(load_tokenizer(model), byte_pairs(tmp_path / "less", []))
    with pytest.raises(ConfigError, match="mean, noise or random"):
        resize(model, tmp_path / "x", vocab_size=200, growth=Growth("subpieces"))


def test_subpieces_are_what_a_token_was_written_as(tmp_path):
    old = byte_pairs(tmp_path / "old", [])
    new = byte_pairs(tmp_path / "new", [("Q", "R"), ("c", "a")])
    assert subpieces(old, new) == {80: [34, 35], 81: [52, 50]}


@pytest.mark.parametrize("leading_space", [False, True])
def test_the_space_in_front_of_a_text_is_no_part_of_a_piece(tmp_path, leading_space):
    """SentencePiece puts one before a text unless told otherwise, as LLaMA's does."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab ab abc 中 文 中文"] * 9),
        model_writer=written,
        vocab_size=270,
        byte_fallback=True,
        hard_vocab_limit=False,
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    old = SentencePieceTokenizer(written.getvalue())
    proto = old.proto
    for piece in ("国", "中国", "▁国"):
        proto.pieces.add(piece=piece, score=-1e6, type=proto.pieces[-1].NORMAL)
    new = SentencePieceTokenizer(proto.SerializeToString())
    space, middle = (old.id_of(piece) for piece in (" ", "中"))
    guo = [old.id_of(f"<0x{byte:02X}>") for byte in "国".encode()]
    first = old.vocab_size
    assert subpieces(old, new, leading_space) == (
        # Written out as texts, pieces with and without a space are the same.
        {first: [space, *guo], first + 1: old.encode("中国"), first + 2: [space, *guo]}
        if leading_space
        else {first: guo, first + 1: [middle, *guo], first + 2: [space, *guo]}
    )


def test_the_arithmetic_alone():
    table = np.random.default_rng(0).normal(size=(50, 4)).astype(ml_dtypes.bfloat16)
    assert resized(table, 50, Growth()).tobytes() == table.tobytes()
    assert resized(table, 20, Growth()).tobytes() == table[:20].tobytes()
    bias = resized(table[:, 0], 60, Growth())
    np.testing.assert_array_equal(
        bias[50:], np.mean(table[:, 0], dtype=np.float64).astype(bias.dtype)
    )
    again = [resized(table, 60, Growth("noise", seed=s)) for s in (0, 0, 1)]
    assert again[0].tobytes() == again[1].tobytes() != again[2].tobytes()
    shifted = np.random.default_rng(1).normal(3, 2, size=(400, 8))
    drawn = resized(shifted, 4000, Growth("random"))[400:]
    assert abs(drawn.mean()) < 0.1 and 0.95 < drawn.std() / np.sqrt(np.mean(shifted**2)) < 1.05
    assert [rounded_up(n, 64) for n in (1, 64, 65)] == [64, 64, 128]
    for change in ({"how": "best"}, {"noise": -1}, {"seed": 1.5}):
        with pytest.raises(ConfigError, match="Growth"):
            Growth(**change)
