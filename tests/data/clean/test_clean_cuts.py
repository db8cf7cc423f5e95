"""Markup, boilerplate, personal data, phrase lists: properties, bad input, and injected faults."""

import pytest
from clocks import no_hang
from hypothesis import given, settings
from hypothesis import strategies as st
from injected import SPAM, Case, boilerplate, curly, inject, markup, measure, pii, shipped

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data.clean.boilerplate import Boilerplate, TemplateLines, find_template_lines
from t5x_llm.data.clean.document import Document, Drop
from t5x_llm.data.clean.markup import StripMarkup
from t5x_llm.data.clean.pii import KINDS, MaskPii, is_card, is_chinese_id, is_public_ip
from t5x_llm.data.clean.words import PhraseList

EN = [curly(t) for t in shipped("en_sotu", 40)]
ZH = shipped("zh_poetry", 40)
MAN = shipped("zh_manpages", 40)


def answer(step, text, **meta):
    return step.open()(Document("a/b#0", text, meta))


def test_markup_is_taken_out():
    found = measure(StripMarkup(), inject(EN + ZH + MAN, markup), EN + ZH + MAN)
    assert found.precision == 1.0 and found.recall >= 0.99, found


@pytest.mark.parametrize(
    "text",
    [
        "if a < b and c > d",
        "List<int> x",
        "mail <me@example.com>",
        "a <- b -> c",
        "<3 you",
        "3 <p 4",
    ],
)
def test_what_is_no_markup_stays(text):
    document = Document("a", text)
    assert StripMarkup().open()(document) is document


def test_markup_drops_what_is_nothing_else():
    assert answer(StripMarkup(), "<div><p></p></div>" * 9).reason == "mostly markup"
    assert answer(StripMarkup(max_share=1.0), "<div><p></p></div>").reason == "nothing but markup"
    text = "a<br>b<script>x = '<p>'</script><STYLE>p {}</STYLE> c <!-- d\n --> e"
    assert answer(StripMarkup(max_share=1.0), text).text.split() == ["a", "b", "c", "e"]


@pytest.mark.parametrize("language, texts", [("en", EN), ("zh", ZH + MAN)])
def test_boilerplate_is_cut(language, texts):
    found = measure(Boilerplate(), inject(texts, boilerplate(language)), texts)
    assert found.precision >= 0.98 and found.recall >= 0.98, found


@pytest.mark.parametrize(
    "text",
    [
        "He said that cookies are baked at home, and that every privacy policy he had read since "
        "the year 1999 was written by people who eat none; click here, he said, means nothing.",
        "The home menu lists what to search.",
        "我们首页的设计已经完成，请大家登录之后提出意见。",
        "The next page of history was written in 1848.",
        "这篇文章的来源已经无从考证，作者也没有留下姓名。",
    ],
)  # fmt: skip
def test_prose_about_pages_stays(text):
    document = Document("a", text)
    assert Boilerplate().open()(document) is document


def test_boilerplate_counts_and_drops():
    text = "Sign in\nA line of prose that stays where it is.\n© 2020 Someone\n"
    kept = answer(Boilerplate(), text)
    assert kept.text == "A line of prose that stays where it is." and kept.meta["lines"] == {
        "cut": 2
    }
    assert answer(Boilerplate(), "Sign in\nHome\nSearch").reason == "mostly boilerplate"
    own = Boilerplate(languages=(), patterns=("^prose$",))
    assert answer(own, "Sign in\nprose\nmore").text == "Sign in\nmore"


def test_lines_of_a_template_are_found_and_cut(tmp_path):
    pages = [
        f"Site of {'abc'[i % 3] * 9}\nPage {i} of 90\ntext {'x' * i} one\nFooter" for i in range(20)
    ]
    lines = find_template_lines(pages, min_share=0.5)
    assert lines == ["Footer", "Page 0 of 0"]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    step = TemplateLines(str(tmp_path / "lines.txt"))
    assert answer(step, pages[7]).text == "Site of bbbbbbbbb\ntext xxxxxxx one"
    (tmp_path / "bad").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        TemplateLines(str(tmp_path / "bad")).open()


@pytest.mark.parametrize("kind", KINDS)
def test_personal_data_is_masked(kind):
    found = measure(MaskPii(), inject(EN + ZH, pii(kind)), EN + ZH)
    assert found.precision == 1.0 and found.recall >= 0.99, found


def test_numbers_with_check_digits():
    # Card numbers that their companies publish for tests; the example of GB 11643-1999.
    published = ("4111 1111 1111 1111", "5555555555554444", "378282246310005", "6011111111111117")
    assert all(map(is_card, published)) and not is_card("4111111111111112")
    assert not is_card("0000000000000000")
    assert is_chinese_id("11010519491231002X") and is_chinese_id("440524188001010014")
    assert not is_chinese_id("110105194912310021") and not is_chinese_id("x" * 18)
    assert is_public_ip("8.8.8.8") and not is_public_ip("10.0.0.1") and not is_public_ip("x")


@pytest.mark.parametrize(
    "text",
    [
        "pi is 3.14159265358979323846", "in 1999-2000 and 2001-2002", "10 20 30 40 50 60 70 80",
        "at 12:30:45 on 2021-10-12 13:44:11", "ISBN 978-7-111-12345-6", "version 1.2.3.4",
        "版本1.0.0.1", "a@b", "user@localhost", "192.168.1.1", "::1", "110105194912310021",
        "4111111111111112",
        "sum 1,234,567,890.00", "std::vector<a::b>", "订单号20210101123456789012",
    ],
)  # fmt: skip
def test_other_numbers_stay(text):
    document = Document("a", text)
    assert MaskPii().open()(document) is document


def test_masks_are_counted_and_masked_text_stays():
    text = "a.b@c.org，13812345678、8.8.8.8; +1 212 555 0199"
    for style in ("placeholder", "constant"):
        step = MaskPii(style=style).open()
        once = step(Document("a", text))
        assert once.meta["masked"] == {"email": 1, "ip": 1, "phone": 2}
        assert step(once) is once
    assert answer(MaskPii(), "QQ：13812345678@qq.com。").text == "QQ：<email>。"
    assert answer(MaskPii(kinds="email"), text).text == text.replace("a.b@c.org", "<email>")


@given(st.text(alphabet="0123456789+-. @:()a好xX", max_size=80))
@settings(max_examples=150, deadline=None)
def test_masking_takes_any_text_and_is_done_after_once(text):
    step = MaskPii().open()
    once = step(Document("a", text))
    assert step(once).text == once.text


def test_spam_is_dropped_and_prose_is_not():
    found = measure(PhraseList(), [Case(Document("a", t), None) for t in SPAM], EN + ZH + MAN)
    assert found.precision == found.recall == 1.0


def test_phrases_of_a_file(tmp_path):
    (tmp_path / "own.txt").write_text("# mine\nbad word\n坏词\nbadly\n", encoding="utf-8")
    step = PhraseList(
        lists=(), files=str(tmp_path / "own.txt"), least=1, per_thousand=0, title="own"
    )
    assert answer(step, "a Bad\n WORD here").detail == "bad word"
    assert answer(step, "这是坏词吗").reason == "listed phrases"
    assert isinstance(answer(step, "a bad wording"), Document)
    counted = answer(PhraseList(lists=(), files=str(tmp_path / "own.txt"), drop=False), "badly")
    assert counted.meta["phrases"] == {"found": 1}


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda: StripMarkup(max_share=2), "StripMarkup.max_share"),
        (lambda: Boilerplate(languages="fr"), "Boilerplate.languages"),
        (lambda: Boilerplate(patterns="("), "Boilerplate.patterns"),
        (lambda: TemplateLines("/nowhere"), "TemplateLines.file"),
        (lambda: MaskPii(kinds="name"), "MaskPii.kinds"),
        (lambda: MaskPii(kinds=()), "MaskPii.kinds"),
        (lambda: MaskPii(style="stars"), "MaskPii.style"),
        (lambda: PhraseList(lists="spam_fr"), "PhraseList.lists"),
        (lambda: PhraseList(files="/nowhere"), "PhraseList.files"),
        (lambda: PhraseList(lists=()), "PhraseList.files"),
    ],
)
def test_bad_values_are_named(make, field):
    with pytest.raises(ConfigError, match=field):
        make()


def test_no_text_takes_long():
    """Work quadratic in the length would take a minute or more."""
    long = 100_000
    texts = (
        "1" * long, "1-" * long, "a" * long, "a@" * long, "a." * long, "@a." * long, "<p " * long,
        "<" * long, "<!--" * long, "<script>" * long, "home|" * long, ":" * long, "a:" * long,
        "+1 (2) " * long, "点击" * long, "1.1.1." * long, "free " * long, "(" * long,
    )  # fmt: skip
    for step in (StripMarkup(), Boilerplate(), MaskPii(), PhraseList()):
        apply = step.open()
        for text in texts:
            with no_hang(30):
                assert isinstance(apply(Document("a", text)), Document | Drop)
