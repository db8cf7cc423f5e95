"""Pages: no word of a sentence is lost or set on a line of its own; charsets are those declared."""

import io
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from t5x_llm.data.clean.clean_config import Input, Limits
from t5x_llm.data.clean.document import Document
from t5x_llm.data.clean.read.charset import codec_of, decode_page
from t5x_llm.data.clean.read.extract import extract
from t5x_llm.data.clean.read.records import read
from t5x_llm.data.formats import Format
from t5x_llm.data.reading import Stretch

FILL = (
    "<p>A paragraph that is long enough to be taken for what a reader came for, and that says a "
    "thing or two about the river and the mill.</p>"
)
# Names by which extractors take an element for navigation, advertisement or decoration.
NAMES = (
    "menuitem nav button share social tags bar author byline timestamp related embedded widget "
    "meta sidebar footer ad-unit cookie comment hidden-print"
).split()
TAGS = (
    "span a b strong i em u s code kbd samp var tt q cite dfn abbr small big mark sub sup font "
    "time data label button output ins del bdi nobr x-part literal"
).split()
BLOCKS = ("p", "li", "dd", "blockquote", "td", "h2", "figcaption")
CLOSED = {"li": "ul", "dd": "dl", "td": "table", "figcaption": "div"}


def page(body, head=""):
    article = f"<article>{FILL}{body}{FILL}</article>"
    return f"<html><head>{head}<title>t</title></head><body>{article}</body></html>"


def wrapped(block, inside):
    inner = f"<{block}>{inside}</{block}>"
    if block == "td":
        inner = f"<tr>{inner}<td>beside it</td></tr>"
    return f"<{CLOSED[block]}>{inner}</{CLOSED[block]}>" if block in CLOSED else inner


@pytest.mark.parametrize("tag", TAGS)
def test_no_inline_element_is_lost_or_breaks_a_line(tag):
    said = f'Open <{tag} class="menuitem" id="nav">Tools</{tag}>, then close it again.'
    said += f" 选择「<{tag} class='menu'>工具 - 宏</{tag}>」，然后确定。"
    want = "Open Tools, then close it again. 选择「工具 - 宏」，然后确定。"
    found = extract(page(f"<p>{said}</p>"))
    assert want in re.sub("[“”]", "", found) if tag == "q" else want in found


WORDS = st.sampled_from(["one", "two", "three", "工具", "宏", "4", "five-six"])
PIECE = st.tuples(WORDS, st.sampled_from(["", *TAGS]), st.sampled_from(NAMES), WORDS)


@settings(max_examples=40, deadline=None)
@given(st.lists(PIECE, min_size=2, max_size=8), st.sampled_from(BLOCKS[:5]), st.booleans())
def test_a_sentence_of_any_elements_is_whole(pieces, block, nested):
    inside, want = "", ""
    for plain, tag, name, word in pieces:
        part = f"<i class='x'>{word}</i>" if nested else word
        inside += f"{plain} " + (f"<{tag} class='{name}'>{part}</{tag}>" if tag else word) + ", "
        want += f"{plain} {word}, "
    # Not kept yet: a short paragraph with several links, which the extractor takes for a menu.
    assume(sum(tag == "a" for _, tag, _, _ in pieces) < 2 or len(want) >= 100)
    text = re.sub("[“”]", "", extract(page(wrapped(block, f"Begin {inside} end."))))
    assert f"Begin {want.strip()} end." in " ".join(text.split())


def test_what_is_no_part_of_a_sentence_still_goes():
    found = extract(page(
        "<nav><ul><li><a href='/'>Home</a></li></ul></nav><div class='share-buttons'>"
        "<span class='share'>Share</span> <span class='tweet'>Tweet</span></div>"
        "<p>Seen<span style='display: none'>not seen</span> by <span aria-hidden='true'>☞</span>"
        "all<script>var x = 1;</script>, <ruby>漢<rt>kan</rt></ruby> too.</p>"
        "<p>It is <math alttext='x^2'><mi>x</mi><mn>2</mn></math> here, <q>so</q> he said.</p>"
    ))  # fmt: skip
    assert "Seen by all, 漢 too." in found and "It is x^2 here, “so” he said." in found
    assert not any(word in found for word in ("Home", "Tweet", "not seen", "var x", "kan"))


def crawl(tmp_path, *records):
    path = tmp_path / "a.warc"
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=False)
        for body, kind in records:
            head = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
            made = writer.create_warc_record("http://x.org/", "response", io.BytesIO(body),
                                             http_headers=head)  # fmt: skip
            writer.write_record(made)
    stretch = Stretch(0, str(path), 0, path.stat().st_size, 1)
    return list(read(Input("s", str(path)), Limits(), stretch, "a.warc", Format("warc")))


SPOKEN = {
    "GBK": "江边的老木匠每天清晨推开窗户，看一看对岸的山。朱镕基和陶喆都喜欢这本书。",
    "gb2312": "镕喆囧堃，名字里的字不在 GB 2312 里。",
    "big5": "江邊的老木匠每天清晨推開窗戶，看一看對岸的山。",
    "Shift_JIS": "川辺の古い工房では、毎朝、大工が窓を開けて向こう岸の山を眺める。",
    "EUC-KR": "강가의 늙은 목수는 매일 아침 창문을 열고 건너편 산을 바라보았다.",
    "windows-1251": "Старый плотник каждое утро открывал окно и смотрел на горы.",
    "ISO-8859-1": "Der Tischler öffnete früh das Fenster; “Späne” für den Ofen – daß’s brennt.",
    "iso-2022-jp": "川辺の古い工房では、毎朝、大工が窓を開ける。",
    "utf-8": "江边的老木匠, früh, каждое.",
}
WIDER = {"gb2312": "gb18030", "ISO-8859-1": "cp1252"}


@pytest.mark.parametrize("charset", SPOKEN)
def test_charsets_of_header_and_page(tmp_path, charset):
    text = SPOKEN[charset]
    raw = text.encode(WIDER.get(charset, charset))
    meta = f'<meta http-equiv="Content-Type" content="text/html; charset={charset}">'
    bodies = {
        "header": (page(f"<p>{text}</p>").encode(WIDER.get(charset, charset)),
                   f'text/html; charset="{charset}"'),
        "meta": (page(f"<p>{text}</p>", meta).encode(WIDER.get(charset, charset)), "text/html"),
        "plain": (raw, f"text/plain;charset={charset.lower()}"),
    }  # fmt: skip
    for found in crawl(tmp_path, *bodies.values()):
        assert isinstance(found, Document) and text in found.text


def test_a_charset_is_believed_only_if_the_bytes_fit():
    assert decode_page("早晨 früh".encode(), "iso-8859-1") == "早晨 früh"
    assert decode_page("早晨的窗户".encode("gbk"), "gbk") == "早晨的窗户"
    assert decode_page("\ufeff早晨".encode("utf-16"), "gbk") == "早晨"
    damaged = ("早晨的窗户" * 200).encode("gbk") + b"\xff\xff"
    assert decode_page(damaged, "gbk").startswith("早晨的窗户" * 200)
    for name in ("rot13", "base64", "idna", "unicode_escape", "utf-7", "nothing", "", "\0"):
        assert codec_of(name) == ""
