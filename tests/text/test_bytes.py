"""The byte tokenizer: UTF-8 itself, here and in transformers."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_llm.text import load_tokenizer
from t5x_llm.text.bytes import END, byte_tokenizer

TOKENIZER = byte_tokenizer()
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=150, deadline=None)
@given(ANY)
def test_ids_are_the_bytes(text):
    ids = TOKENIZER.encode(text)
    assert bytes(ids) == text.encode()
    assert TOKENIZER.decode(ids) == text


def test_every_byte_has_its_number_and_half_a_character_is_told():
    assert sorted(TOKENIZER.encode("".join(map(chr, range(128))))) == list(range(128))
    assert TOKENIZER.decode([0xE6, 0x98, 0xA5]) == "春"
    assert TOKENIZER.decode([0xE6, 0x98]) == "\ufffd"
    assert bytes(TOKENIZER.encode(END)) == END.encode()  # text that spells a special token


def test_special_ids():
    found = TOKENIZER.vocab_size, TOKENIZER.eos_id, TOKENIZER.pad_id, TOKENIZER.bos_id
    assert found == (257, 256, 256, None) and not TOKENIZER.add_bos
    assert TOKENIZER.decode([104, 105, 256]) == "hi"


def test_it_is_found_by_name_and_saved_like_any_other(tmp_path):
    named = load_tokenizer("bytes")
    named.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == named.fingerprint == TOKENIZER.fingerprint
    assert (again.eos_id, again.pad_id, again.bos_id) == (256, 256, None)


def test_transformers_reads_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    TOKENIZER.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "hi 春天\n"
    assert theirs(text).input_ids == list(text.encode())
    assert theirs.eos_token_id == 256 and theirs.decode(list(text.encode())) == text
