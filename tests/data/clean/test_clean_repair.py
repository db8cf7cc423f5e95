"""Encoding, normal form, language, sentences: properties, bad input, and injected faults."""

import unicodedata

import ftfy
import opencc
import pytest
from clocks import no_hang
from hypothesis import given, settings
from hypothesis import strategies as st
from injected import (
    FOREIGN,
    Case,
    curly,
    entities,
    foreign_paragraph,
    inject,
    lossy,
    measure,
    read_as,
    shipped,
)

from t5x_llm.core.errors import ConfigError
from t5x_llm.data.clean.document import Document, Drop
from t5x_llm.data.clean.encoding import FixEncoding
from t5x_llm.data.clean.language import Language, identifier
from t5x_llm.data.clean.normalise import Normalise
from t5x_llm.data.clean.sentences import sentence_spans, split_sentences

EN = [curly(t) for t in shipped("en_sotu", 30)]
ZH = shipped("zh_poetry", 40)
MAN = shipped("zh_manpages", 30)


def cleaned(step, text, **meta):
    return step.open()(Document("a/b#0", text, meta))


@pytest.mark.parametrize(
    "texts, codec, written, recall",
    [
        (EN, "sloppy-windows-1252", "utf-8", 1.0),
        (EN, "latin-1", "utf-8", 1.0),
        (ZH + MAN, "latin-1", "utf-8", 1.0),
        (ZH + MAN, "gbk", "utf-8", 0.97),
        (ZH + MAN, "latin-1", "gbk", 0.95),
    ],
)
def test_mojibake_is_undone_and_nothing_else_is_touched(texts, codec, written, recall):
    found = measure(FixEncoding(), inject(texts, read_as(codec, written)), EN + ZH + MAN)
    assert found.precision == 1.0 and found.recall >= recall, found


def test_entities_are_undone_and_lost_bytes_drop_a_document():
    assert measure(FixEncoding(), inject(EN + ZH, entities), EN + ZH).recall == 1.0
    found = measure(FixEncoding(), inject(ZH + MAN, lossy), EN + ZH + MAN)
    assert found.precision == found.recall == 1.0


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
@settings(max_examples=100, deadline=None)
def test_where_ftfy_is_not_asked_it_would_change_nothing(text):
    from t5x_llm.data.clean import encoding

    if encoding._UNUSUAL.search(text) or encoding._ENTITY.search(text):
        return
    config = ftfy.TextFixerConfig(
        fix_latin_ligatures=False, fix_character_width=False, uncurl_quotes=False,
        fix_line_breaks=True, normalization=None,
    )  # fmt: skip
    assert ftfy.fix_text(text, config) == text


@given(st.text(max_size=80))
@settings(max_examples=80, deadline=None)
def test_repair_and_normal_form_take_any_text_and_are_done_after_once(text):
    for step in (FixEncoding(max_lost=1.0), Normalise(), Normalise(form="NFKC", indent=False)):
        apply = step.open()
        once = apply(Document("a", text))
        if not isinstance(once, Drop) and step.name == "normalise":
            again = apply(once)
            assert isinstance(again, Document) and again.text == once.text


def test_normal_form():
    step = Normalise(form="NFKC")
    assert cleaned(step, "ｆｕｌｌ１２，好！（是）ﬁ②").text == "full12，好！（是）fi2"
    assert cleaned(Normalise(form="NFKC", keep_chinese_signs=False), "好！").text == "好!"
    assert cleaned(Normalise(), "e\u0301ﬁ１").text == "éﬁ１"
    text = "a\r\nb\u200b\ufeffc\x00\x07  d\u00a0e   \n\n\n\n\nf\u2028g\u00adh"
    assert cleaned(Normalise(), text).text == "a\nbc d e\n\nf\ngh"
    assert cleaned(Normalise(), "def f():\n    return  1").text == "def f():\n    return 1"
    assert cleaned(Normalise(indent=False), "  a\n    b").text == "a\nb"
    assert cleaned(Normalise(), "\u200b \n").reason == "empty"
    emoji = "👩\u200d👧 می\u200cخواهم"  # joiners are part of these
    assert cleaned(Normalise(), emoji).text == emoji


def test_chinese_script_is_opencc_and_japanese_is_left():
    traditional = "憂鬱的臺灣烏龜，頭髮發展，乾淨後面"
    assert cleaned(Normalise(script="simplified"), traditional).text == opencc.OpenCC(
        "t2s"
    ).convert(traditional)
    assert cleaned(Normalise(script="traditional"), "头发发展").text == "頭髮發展"
    japanese = "憂鬱な亀は鬱だ"
    assert cleaned(Normalise(script="simplified"), japanese).text == japanese
    korean = "漢字와 한글"
    assert cleaned(Normalise(script="simplified"), korean).text == korean


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
@settings(max_examples=60, deadline=None)
def test_nfc_agrees_with_unicodedata(text):
    composed = unicodedata.normalize("NFC", text)
    a, b = (Normalise().open()(Document("a", t)) for t in (text, composed))
    assert a == b or (isinstance(a, Document) and a.text == b.text)


def test_languages_are_told_apart_without_network(monkeypatch):
    import socket

    def refuse(*_):
        raise AssertionError("a step went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    identify = identifier()
    assert all(identify(t)[0] == "en" for t in EN) and all(identify(t)[0] == "zh" for t in ZH)
    found = [identify(t)[0] for t in FOREIGN]
    assert found == ["fr", "de", "es", "ru", "ja", "ko", "ar", "it"]
    assert identify("12 34 -- !!") == ("", 0.0)


def test_other_languages_are_dropped_and_cut():
    step = Language(threshold=0.3)
    found = measure(step, [Case(Document("a", t * 2), None) for t in FOREIGN], EN + ZH)
    assert found.precision == found.recall == 1.0
    long = [t for t in EN + MAN if len(t) > 900 and t.count("\n") > 2]
    cut = measure(step, inject(long, foreign_paragraph), long)
    assert cut.precision == 1.0 and cut.recall >= 0.95, cut
    kept = cleaned(step, EN[0], kept="yes")
    assert kept.meta["language"] == "en" and kept.meta["language_score"] > 0.5
    assert kept.meta["kept"] == "yes"
    assert cleaned(Language(keep=()), FOREIGN[0]).meta["language"] == "fr"
    assert cleaned(Language(keep="en"), ZH[0]).reason == "another language"
    assert cleaned(Language(threshold=1.0), "One two three, okay").reason == "language unsure"


SENTENCES = {
    "Mr. Smith went to the U.S. in Jan. 1999. He paid $3.50.": 2,
    '"Why?" she asked. "No!" J. R. Tolkien wrote... and wrote.': 3,
    "He lives in Berlin (Germany). It is cold! Is it?": 3,
    "See e.g. Fig. 3 of vol. 2. Version 1.2.3 works.": 2,
    "他说：“你好。”然后走了！真的吗？是……吧。": 5,
    "第一句话；第二句话。第三句（见下文。）结束": 4,
    "I am. You are": 2,
    "中文句子。English follows. 再来一句！": 3,
    "no end at all": 1,
}


@pytest.mark.parametrize("text, count", SENTENCES.items())
def test_sentences_by_hand(text, count):
    assert len(split_sentences(text)) == count, split_sentences(text)


@given(st.text(alphabet="ab C.!?。！？；“”\"' \n1…", max_size=60))
@settings(max_examples=100, deadline=None)
def test_sentences_cover_the_text(text):
    spans = sentence_spans(text)
    assert "".join(text[a:b] for a, b in spans) == text
    assert all(text[a:b].strip() for a, b in spans) or not text.strip()


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda: FixEncoding(max_lost=2), "FixEncoding.max_lost"),
        (lambda: Normalise(form="NFX"), "Normalise.form"),
        (lambda: Normalise(script="simple"), "Normalise.script"),
        (lambda: Language(keep=("English",)), "Language.keep"),
        (lambda: Language(threshold=-1), "Language.threshold"),
    ],
)
def test_bad_values_are_named(make, field):
    with pytest.raises(ConfigError, match=field):
        make()


def test_a_million_characters_in_one_line_take_no_time():
    """Work quadratic in the length would take hours."""
    for text in (
        *("a" * 10**6, "好" * 10**6, "<" * 10**6),
        *("a@" * 10**6, "1 " * 10**6, "&amp" * 10**5),
    ):
        for step in (FixEncoding(), Normalise(), Language(keep=())):
            with no_hang():
                step.open()(Document("a", text))
