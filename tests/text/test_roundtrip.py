"""No character is lost, and ids are those of SentencePiece and of transformers."""

import json

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_llm.core.errors import DataError
from t5x_llm.text import TokenizerTraining, load_tokenizer, train_tokenizer
from t5x_llm.text.tokenizer import STRETCH

CASES = [
    "",
    " ",
    "hello world",
    "  a b  \n\n\tx  ",
    "我们的2024年12月。\n床前明月光，疑是地上霜。",
    "中文 mixed 文字 with English，标点。",
    "😀👨‍👩‍👧 \ue000\ufeff\uffff\ufffd",
    "a▁b ▁ ▁▁",
    "x\0y\x01\r\n\x7f\x85\u2028\u3000",
    "<0x0A> <0x41> <unk> ⁇",
    "\n\n  \n" * 5,
    "-" * 37 + " " * 41,
    "don 't do n't . hello , ok ? I 'm",
]
# Short alphabets make repeats and overlaps, where the order of merges shows.
TIGHT = st.text(st.sampled_from("ab -\n中▁1the"), max_size=60)
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="session")
def reference(trained):
    return sentencepiece.SentencePieceProcessor(model_file=str(trained[1] / "tokenizer.model"))


@pytest.fixture(scope="session")
def hugging_face(trained, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("hf")
    trained[0].save(directory)
    # A config beside it, as in an exported model: transformers looks at its model_type too.
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return transformers.AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("text", CASES)
def test_hard_cases(trained, hugging_face, reference, text):
    tokenizer = trained[0]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert hugging_face.encode(text, add_special_tokens=False, split_special_tokens=True) == ids
    assert hugging_face.decode(ids) == text
    if "▁" not in text:
        assert reference.encode(text) == ids


@settings(max_examples=150, deadline=None)
@given(text=ANY | TIGHT)
def test_any_text(trained, hugging_face, reference, text):
    tokenizer = trained[0]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert hugging_face.encode(text, add_special_tokens=False, split_special_tokens=True) == ids
    assert hugging_face.decode(ids) == text
    if "▁" not in text:
        assert reference.encode(text) == ids


def test_shipped_text(trained, hugging_face, texts):
    tokenizer = trained[0]
    encoded = tokenizer.encode_batch(texts, threads=2)
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    assert hugging_face(texts, add_special_tokens=False)["input_ids"] == encoded


def test_transformers_puts_bos_in_front_and_knows_the_special_tokens(trained, hugging_face):
    tokenizer = trained[0]
    assert hugging_face("床前").input_ids == [tokenizer.bos_id, *tokenizer.encode("床前")]
    for name in ("bos", "eos", "pad", "unk"):
        token = getattr(hugging_face, f"{name}_token_id")
        assert token == getattr(tokenizer, f"{name}_id") is not None
    assert len(hugging_face) == tokenizer.vocab_size
    assert len({tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id}) == 4


def test_special_tokens_in_the_text_are_text(trained):
    tokenizer = trained[0]
    ids = tokenizer.encode("a</s><s><pad>")
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids)
    assert tokenizer.decode(ids) == "a</s><s><pad>"


def test_special_and_padding_ids_have_no_text(trained):
    tokenizer = trained[0]
    ids = [tokenizer.bos_id, *tokenizer.encode("a b"), tokenizer.eos_id, tokenizer.vocab_size + 7]
    assert tokenizer.decode(ids) == "a b"
    with pytest.raises(DataError, match="negative"):
        tokenizer.decode([-1])


def test_a_long_text_is_cut_and_joined(trained):
    text = ("线 line\n" * 9 + "x" * 50) * (STRETCH // 50)
    assert len(text) > 2 * STRETCH
    ids = trained[0].encode(text)
    assert trained[0].decode(ids) == text


def test_half_a_surrogate_pair_is_refused(trained):
    with pytest.raises(DataError, match="surrogate"):
        trained[0].encode("a\ud800")


def test_reload_is_the_same(trained):
    tokenizer, directory = trained
    for path in (directory, directory / "tokenizer.model"):
        again = load_tokenizer(path)
        assert again.fingerprint == tokenizer.fingerprint
        assert again.encode("床前 明月") == tokenizer.encode("床前 明月")
    through_json = load_tokenizer(directory / "tokenizer.json")
    assert through_json.encode("床前 明月") == tokenizer.encode("床前 明月")
    assert through_json.vocab_size == tokenizer.vocab_size
    for name in ("bos_id", "eos_id", "pad_id", "unk_id"):
        assert getattr(through_json, name) == getattr(tokenizer, name)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_names_of_tokens_are_text_even_where_their_characters_are_rare(tmp_path, texts, kind):
    transformers = pytest.importorskip("transformers")
    speeches = [t for t in texts[:20] if "<" not in t]
    config = TokenizerTraining(vocab_size=500, kind=kind)
    tokenizer = train_tokenizer(config, speeches, tmp_path, progress=False)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("</s><s><pad><unk>", "<0x41> <0xFF><0x0A>", "x~</s>~{<0x41>}"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == ids
