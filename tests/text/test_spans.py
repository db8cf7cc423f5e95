"""Tokens with the characters that they stand for."""

import pytest
from chat_cases import byte_level, merging, prefixing, with_specials
from hypothesis import example, given, settings
from hypothesis import strategies as st

from t5x_llm.core.errors import DataError
from t5x_llm.text import load_tokenizer

TEXTS = (
    "Hello there.\n\n  Two  spaces, é and 中文 👍.\n",
    " leading",
    "\n\nYes\r\n",
    "a",
    " ",
)
MAKERS = {"bytes": byte_level, "merging": merging, "prefixing": prefixing}


def check(tokenizer, text):
    ids, spans = tokenizer.encode_spans(text, False)
    assert ids == tokenizer.encode(text)
    covered = set()
    for (a, b), (c, d) in zip(spans, [*spans[1:], (len(text),) * 2], strict=True):
        assert 0 <= a <= b <= len(text) and a <= c and (b <= c or (a, b) == (c, d))
        covered |= set(range(a, b))
    assert covered == set(range(len(text)))


@pytest.mark.parametrize("kind", MAKERS)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
@example(text="el")
@settings(max_examples=40, deadline=None)
def test_ids_are_those_of_encode_and_spans_cover_the_text(kind, text):
    check(MAKERS[kind](), text)


def test_sentencepiece_and_its_tokenizer_json_agree(trained, tmp_path):
    pieces = with_specials(trained[0])
    pieces.save(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    whole = load_tokenizer(tmp_path)
    for text in TEXTS:
        check(pieces, text)
        spelled = f"<s>{text}<|im_end|>\n{text}</s>"
        for start in (True, False):
            found = pieces.encode_spans(spelled, True, start)
            assert found == whole.encode_spans(spelled, True, start)
        assert [pieces.piece(i) for i in found[0] if i in pieces.special] == [
            "<s>", "<|im_end|>", "</s>",
        ]  # fmt: skip


def test_special_tokens_only_where_asked_for():
    tokenizer = byte_level()
    ids, spans = tokenizer.encode_spans("é<s>", True)
    assert ids[-1] == tokenizer.bos_id and spans == [(0, 1), (0, 1), (1, 4)]
    assert len(tokenizer.encode_spans("é<s>", False)[0]) == 5
    assert tokenizer.encode_spans("", True) == ([], [])


def test_a_text_in_the_middle_gets_no_space_in_front():
    tokenizer = prefixing()
    first, _ = tokenizer.encode_spans("The model", True)
    middle, spans = tokenizer.encode_spans("The model", True, False)
    assert tokenizer.piece(first[0]).startswith("▁")
    assert not tokenizer.piece(middle[0]).startswith("▁") and spans[0][0] == 0
    assert tokenizer.decode([*first, *middle]) == "The modelThe model"


def test_half_a_surrogate_pair():
    with pytest.raises(DataError, match="character 1"):
        byte_level().encode_spans("a\ud800", True)
