"""What training promises: the same bytes, whole digits, Chinese covered, errors that help."""

import re

import pytest
import sentencepiece

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.text import TokenizerTraining, load_tokenizer, train_tokenizer


def pieces(directory):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    return [processor.id_to_piece(i) for i in range(processor.vocab_size())]


def test_pieces(trained):
    tokenizer, directory = trained
    found = pieces(directory)
    assert len(found) == tokenizer.vocab_size == 4096
    assert found[:4] == ["<unk>", "<s>", "</s>", "<pad>"]
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, 3)
    ordinary = [p for p in found if not re.fullmatch(r"<0x..>", p)]
    assert not [p for p in ordinary if re.search(r"\d.*\d", p)]
    assert {"\n", "▁", "▁the", "的", "人", "，"} <= set(found)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_same_text_same_bytes(tmp_path, texts, kind):
    config = TokenizerTraining(vocab_size=3000, kind=kind, sample_bytes=100_000)
    train_tokenizer(config, iter(texts), tmp_path / "a", progress=False)
    train_tokenizer(config, reversed(texts), tmp_path / "elsewhere" / "b", progress=False)
    for name in ("tokenizer.model", "tokenizer.json"):
        one = (tmp_path / "a" / name).read_bytes()
        assert one == (tmp_path / "elsewhere" / "b" / name).read_bytes()


def test_seed_draws_other_text(tmp_path, texts):
    prints = {
        train_tokenizer(
            TokenizerTraining(vocab_size=2500, sample_bytes=50_000, seed=seed),
            texts,
            tmp_path / str(seed),
            progress=False,
        ).fingerprint
        for seed in (0, 1)
    }
    assert len(prints) == 2


def test_progress_is_shown(tmp_path, texts, capfd):
    train_tokenizer(TokenizerTraining(vocab_size=3000), texts[:90], tmp_path)
    shown = "".join(capfd.readouterr())
    assert "reading" in shown and "fitting 3,000 bpe pieces" in shown and " s, written" in shown


@pytest.mark.parametrize("texts", [[], ["", ""], ["\n"], ["\r\n" * 9, "\n\n"]])
def test_no_text(tmp_path, texts):
    with pytest.raises(DataError, match="No text"):
        train_tokenizer(TokenizerTraining(), texts, tmp_path, progress=False)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_vocabulary_larger_than_the_text_supports(tmp_path, kind):
    with pytest.raises(ConfigError, match=r"vocab_size = 8192: expected at most \d+ .*Lower it"):
        train_tokenizer(TokenizerTraining(kind=kind), ["a few words"], tmp_path, progress=False)


def test_vocabulary_smaller_than_the_characters(tmp_path, texts):
    config = TokenizerTraining(vocab_size=300)
    with pytest.raises(ConfigError, match=r"vocab_size = 300: expected at least \d+ .*coverage"):
        train_tokenizer(config, texts, tmp_path, progress=False)


@pytest.mark.parametrize(
    "field, value",
    [("kind", "bpee"), ("vocab_size", 200), ("vocab_size", 8192.5), ("character_coverage", 0.5),
     ("sample_bytes", 0), ("num_threads", 0), ("seed", -1), ("max_piece_length", 0)],
)  # fmt: skip
def test_bad_settings(field, value):
    with pytest.raises(ConfigError, match=f"TokenizerTraining.{field}"):
        TokenizerTraining(**{field: value})


def test_unwritable_output(tmp_path, texts):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"TokenizerTraining\.out"):
        train_tokenizer(TokenizerTraining(), texts, tmp_path / "file" / "out", progress=False)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_extra_ids_are_at_the_end_and_never_text(tmp_path, texts, kind):
    config = TokenizerTraining(vocab_size=600, kind=kind, extra_ids=10)
    tokenizer = train_tokenizer(config, texts[:20], tmp_path, progress=False)
    assert tokenizer.vocab_size == 600
    ids = [tokenizer.id_of(f"<extra_id_{i}>") for i in range(10)]
    assert ids == list(range(599, 589, -1)) and tokenizer.id_of("<extra_id_10>") is None
    text = "a <extra_id_0> b</s><extra_id_9>"
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded) == text and not set(ids) & set(encoded)
    assert tokenizer.decode([*encoded, *ids]) == text
    as_json = load_tokenizer(tmp_path / "tokenizer.json")
    assert [as_json.id_of(f"<extra_id_{i}>") for i in range(10)] == ids
    assert as_json.encode(text) == encoded and as_json.id_of("no such piece") is None
    # The others are those of a smaller vocabulary.
    fewer = TokenizerTraining(vocab_size=590, kind=kind)
    if kind == "bpe":
        train_tokenizer(fewer, texts[:20], tmp_path / "fewer", progress=False)
        assert pieces(tmp_path)[:590] == pieces(tmp_path / "fewer")
    with pytest.raises(ConfigError, match="at least 271"):
        TokenizerTraining(vocab_size=270, extra_ids=10)
