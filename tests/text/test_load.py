"""Files from elsewhere: tokenizer.json, other SentencePiece models, and things that are neither."""

import io
import json

import pytest
import sentencepiece
import tokenizers

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.text import load, load_tokenizer

SAMPLES = ["hello  world\n", " 床前明月光 ", "x</s> 12345", "", "\t😀▁\0"]


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory, texts):
    """A directory with a GPT-2-like tokenizer.json, trained by the tokenizers library."""
    directory = tmp_path_factory.mktemp("byte_level")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=["<|endoftext|>", "</s>", "<|pad|>"],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    made.enable_truncation(8)
    made.enable_padding()
    made.save(str(directory / "tokenizer.json"))
    return directory


def sentencepiece_model(texts, **options) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=written, minloglevel=2, **options
    )
    return written.getvalue()


def test_tokenizer_json(byte_level, tmp_path):
    transformers = pytest.importorskip("transformers")
    loaded = load_tokenizer(byte_level)
    assert loaded.vocab_size == 700
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id, loaded.unk_id) == (0, 1, 2, None)
    loaded.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == 1 and theirs.pad_token_id == 2
    for text in SAMPLES:
        ids = loaded.encode(text)
        assert loaded.decode(ids) == text and 1 not in ids
        assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == ids
        assert theirs(text, split_special_tokens=True).input_ids == ids
        assert theirs.decode(ids) == text
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == loaded.fingerprint and again.pad_id == 2


def test_companions_name_the_special_tokens_and_are_kept(byte_level, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_bytes((byte_level / "tokenizer.json").read_bytes())
    config = {"eos_token": {"content": "<|endoftext|>"}, "pad_token": None, "chat_template": "x"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(source)
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (None, 0, None)
    loaded.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == config


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece_with_the_usual_prefix(tmp_path, texts, kind):
    """LLaMA's settings: a space goes before every text."""
    transformers = pytest.importorskip("transformers")
    lines = [line for text in texts for line in text.split("\n") if line][:300]
    raw = sentencepiece_model(
        lines, model_type=kind, vocab_size=2000, character_coverage=0.99, byte_fallback=True,
        hard_vocab_limit=False, normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    (tmp_path / "any.name").write_bytes(raw)
    loaded = load_tokenizer(tmp_path / "any.name")
    reference = sentencepiece.SentencePieceProcessor(model_proto=raw)
    assert loaded.pad_id is None and (loaded.bos_id, loaded.eos_id) == (1, 2)
    loaded.save(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    samples = [s for s in SAMPLES if "</s>" not in s]  # see text/convert.py for unigram models
    for text in [*samples, "  two spaces", "the end", *texts[::20]]:
        ids = loaded.encode(text)
        assert loaded.decode(ids) == text
        if "▁" not in text:
            assert ids == reference.encode(text)
        options = {"add_special_tokens": False, "split_special_tokens": True}
        assert theirs.encode(text, **options) == ids
        assert theirs.decode(ids) == text


def test_sentencepiece_that_normalises(tmp_path, texts):
    """T5's settings: NFKC and no runs of spaces; lossy by its own rule, and the same ids."""
    transformers = pytest.importorskip("transformers")
    lines = [line for text in texts[:6] for line in text.split(". ")]
    raw = sentencepiece_model(lines, model_type="unigram", vocab_size=500)
    (tmp_path / "spiece.model").write_bytes(raw)
    loaded = load_tokenizer(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_proto=raw)
    loaded.save(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ["  The  ｆｕｌｌ ﬁve  ", "the people", ""]:
        assert loaded.encode(text) == reference.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == reference.encode(text)
        assert loaded.decode(reference.encode(text)) == reference.decode(reference.encode(text))


def test_added_tokens_win_over_the_sentencepiece_file(trained, tmp_path):
    trained[0].save(tmp_path)
    grown = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    grown.add_special_tokens(["<|im_start|>"])
    grown.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).vocab_size == trained[0].vocab_size + 1


@pytest.mark.parametrize(
    "content",
    [b"", b"plain text, no model", b"\x00\xff" * 40, b"{", b'{"a": 1}', b"[" * 100_000, b"{" * 9999,
     b'{"model": {"type": "BPE", "vocab": {"a": 99999999999999999999}, "merges": []}}',
     b'{"model": {"type": "BPE", "vocab": {"a": 900000000}, "merges": []}}',
     b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}'],
)  # fmt: skip
def test_foreign_and_damaged_files(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match="file"):
        load_tokenizer(tmp_path / "file")


def test_truncated_models(trained, tmp_path):
    for name in ("tokenizer.model", "tokenizer.json"):
        raw = (trained[1] / name).read_bytes()
        (tmp_path / name).write_bytes(raw[: len(raw) // 2])
        with pytest.raises(DataError, match=name):
            load_tokenizer(tmp_path / name)


def test_word_models_are_refused(tmp_path, texts):
    raw = sentencepiece_model(texts, model_type="char", vocab_size=3000, hard_vocab_limit=False)
    (tmp_path / "tokenizer.model").write_bytes(raw)
    with pytest.raises(DataError, match="CHAR"):
        load_tokenizer(tmp_path)


def test_missing_and_empty(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(DataError, match="No tokenizer"):
        load_tokenizer(tmp_path)


def test_absurdly_large(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "MAX_FILE_BYTES", 10)
    (tmp_path / "tokenizer.json").write_bytes(b"{" + b" " * 20)
    with pytest.raises(DataError, match="bytes"):
        load_tokenizer(tmp_path)
