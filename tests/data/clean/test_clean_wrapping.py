"""Wrapped paragraphs are one line to every rule; verse, lists and code are what they were."""

import json
import re
import textwrap

import pytest
from injected import SHIPPED, shipped

from t5x_llm.data.clean.boilerplate import Boilerplate
from t5x_llm.data.clean.chinese import ChineseC4, ChineseFineWeb
from t5x_llm.data.clean.document import Document, Drop
from t5x_llm.data.clean.quality import C4Quality, FineWebQuality, GopherQuality
from t5x_llm.data.clean.wrapping import join_wrapped, logical_lines, paragraphs

SPEECHES = [t for t in shipped("en_sotu", 30) if len(t) > 1000]
ZH = "江边的老木匠每天清晨推开窗户，看一看对岸的山。他说手艺是慢慢磨出来的，急不得，也等不得。" * 4


def paragraphs_of(text):
    return [" ".join(p.split()) for p in text.split("\n") if p.strip()]


def wrap(text, width, first="", rest=""):
    return "\n\n".join(
        textwrap.fill(p, width, initial_indent=first, subsequent_indent=rest,
                      break_long_words=False, break_on_hyphens=False)
        for p in paragraphs_of(text)
    )  # fmt: skip


def chinese(text, columns):
    """Lines of at most so many columns, broken between Chinese characters and at blanks."""
    lines, line, size = [], "", 0
    for token in re.findall(r"[\x21-\x7e]+|.", text):
        own = len(token) * (1 if token.isascii() else 2)
        if size + own > columns:
            lines.append(line.rstrip())
            line, size, token = "", 0, token.lstrip()
        line, size = line + token, size + own
    return "\n".join([*lines, line])


@pytest.mark.parametrize("width", [60, 66, 70, 72, 78, 100])
@pytest.mark.parametrize(("first", "rest"), [("", ""), ("    ", ""), ("> ", "> ")])
def test_wrapped_text_is_joined_to_what_it_was(width, first, rest):
    same = sum(
        join_wrapped(wrap(text, width, first, rest))
        == "\n\n".join(f"{first}{p}" for p in paragraphs_of(text))
        for text in SPEECHES
    )
    assert same >= 0.9 * len(SPEECHES)


def test_wrapped_chinese_is_joined_without_blanks():
    assert join_wrapped(chinese(ZH, 70)) == ZH
    mixed = (
        "在 Debian 系统中使用 apt 命令来安装软件包，请先更新列表，然后再安装所需要的软件包。" * 5
    )
    assert join_wrapped(chinese(mixed, 70)) == mixed


VERSE = """Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date;
Sometime too hot the eye of heaven shines, and often dimmed,
And often is his gold complexion dimm'd, and so it is with all;"""
CODE = """def read_part(path: str) -> Iterator[Document]:
    with as_path(path).open("rb") as raw:
        file: Any = raw
        if path.endswith(".zst"):
            source: Any = zstandard.ZstdDecompressor().stream_reader(raw)
        for line in file:
            yield Document(record["id"], record["text"], record["meta"])"""
ITEMS = "\n".join(
    f"- {words} of the garden behind the old house by the river, as it was"
    for words in ("apples and pears", "the plums and the nuts", "all of the flowers", "the wood")
)
TABLE = "\n".join(
    f"| {i} | a cell with many words of text in it, so that it is wide |" for i in range(9)
)


@pytest.mark.parametrize("text", [VERSE, CODE, ITEMS, TABLE, "one\ntwo\nthree", "", "x" * 99])
def test_verse_code_lists_and_tables_are_left(text):
    assert join_wrapped(text) == text


def test_shipped_texts_are_not_taken_for_wrapped():
    for name in ("en_sotu", "zh_poetry"):
        with open(SHIPPED / f"{name}.jsonl", encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file][:200]
        assert not any(logical_lines(text) for text in texts)


def test_nothing_is_lost_between_lines_and_paragraphs():
    for text in (*SPEECHES[:5], wrap(SPEECHES[0], 70), VERSE, CODE):
        assert "\n".join(line for line, _ in paragraphs(text)) == text


def kept(step, text, language):
    return not isinstance(step.open()(Document("a", text, {"language": language})), Drop)


@pytest.mark.parametrize("width", [65, 72, 78])
def test_rules_judge_wrapped_books_as_unwrapped(width):
    for text in SPEECHES[:10]:
        plain, folded = "\n\n".join(paragraphs_of(text)), wrap(text, width)
        for step in (FineWebQuality(), C4Quality(end_of_sentence=False), GopherQuality()):
            assert kept(step, plain, "en") == kept(step, folded, "en")
        lines = C4Quality().open()
        assert lines(Document("a", folded, {})).text == lines(Document("a", plain, {})).text
    assert kept(FineWebQuality(), folded, "en")
    assert kept(ChineseFineWeb(), chinese(ZH, 70), "zh")
    # The last line of a paragraph is short, and part of it.
    folded = chinese(ZH[:73] + "山。", 70)
    assert ChineseC4(min_line=5).open()(Document("a", folded, {})).text == folded


def test_a_wrapped_sentence_about_cookies_is_no_boilerplate():
    said = (
        "The committee met on the first of May and spoke for a long time about the question of "
        "the privacy policy of the company, which had been asked for by the members, and about "
        "whether all rights reserved in the treaty of that year were the same as they had been."
    )
    for width in (60, 66, 70, 76):
        folded = textwrap.fill(f"{said} {said.replace('May', 'June')}", width)
        assert Boilerplate().open()(Document("a", folded, {})).text == folded
    menu = f"{folded}\n\nHome | About Us | Contact | Privacy Policy"
    assert Boilerplate().open()(Document("a", menu, {})).text == folded


def test_words_are_those_between_blanks():
    quoted = " ".join(['"So," he said (once): "it is the end; and - that is all."'] * 12)
    assert kept(GopherQuality(), quoted, "en")
    figures = " ".join(["12.5 of 300 = 4% ; 17,000 in 1999 / the 3 to 4 , 5 with 6"] * 12)
    assert not kept(GopherQuality(), figures, "en")


def test_one_curly_bracket_makes_no_code_where_a_share_is_allowed():
    book = "\n".join(paragraphs_of(SPEECHES[0])) + " {sic} is what the clerk wrote there."
    assert not kept(C4Quality(), book, "en")
    assert kept(C4Quality(max_curly=0.005), book, "en")
    code = "function f(a) { if (a) { return { b: a }; } else { return {}; } }\n" * 30
    assert not kept(C4Quality(max_curly=0.005), code, "en")
