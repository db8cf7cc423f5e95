"""Gopher, C4 and FineWeb: datatrove's own decisions, kept; and the rules for Chinese."""

import random

import pytest
from datatrove.data import Document as Theirs
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from injected import curly, digits, inject, keywords, measure, repeated, shipped, symbols

from t5x_llm.core.errors import ConfigError
from t5x_llm.data.clean.chinese import (
    ChineseC4,
    ChineseFineWeb,
    ChineseQuality,
    ChineseRepetition,
)
from t5x_llm.data.clean.document import Document, Drop
from t5x_llm.data.clean.quality import (
    _REASONS,
    C4Quality,
    FineWebQuality,
    GopherQuality,
    GopherRepetition,
)
from t5x_llm.data.clean.sentences import has_sentences, sentence_spans
from t5x_llm.data.clean.splitting import BLANKS, splitter, words

EN = [curly(t) for t in shipped("en_sotu", 30)]
ZH = shipped("zh_poetry", 60)
MAN = shipped("zh_manpages", 30)
PAIRS = [
    (GopherQuality, GopherQualityFilter),
    (GopherRepetition, GopherRepetitionFilter),
    (C4Quality, C4QualityFilter),
    (FineWebQuality, FineWebQualityFilter),
]


def answer(step, text, **meta):
    return step.open()(Document("a/b#0", text, meta))


def decisions(ours, theirs, texts):
    """(kept, text or reason) of each, ours and datatrove's with its own defaults."""
    # Gopher's paper counts the words that blank space parts.
    counted = BLANKS if ours is GopherQuality else "en"
    step, other = ours().open(), theirs(language=splitter(counted))
    for text in texts:
        mine, given_ = step(Document("a", text)), Theirs(text=text, id="a")
        result = other.filter(given_)
        kept, reason = (result, "") if isinstance(result, bool) else result
        yield (
            (True, mine.text) if isinstance(mine, Document) else (False, mine.reason),
            (kept, given_.text if kept else _REASONS.get(reason, reason.replace("_", " "))),
        )


def dirty():
    rng = random.Random(0)
    for fault in (repeated, symbols, keywords, digits):
        for case in inject(EN[:6] + ZH[:6], fault):
            yield case.document.text
    for text in EN[:5]:
        found = words(text, "en")
        for n in (1, 2, 3, 5, 8, 20):  # repetition of every degree
            part = found[: 60 * n]
            yield " ".join(part + rng.sample(part, len(part) // 2) + part[: len(part) // n])


@pytest.mark.parametrize("ours, theirs", PAIRS)
def test_decisions_are_datatroves(ours, theirs):
    found = list(decisions(ours, theirs, [*EN[:10], *ZH[:10], *dirty()]))
    assert all(mine == other for mine, other in found)
    kept = sum(mine[0] for mine, _ in found)
    assert 0 < kept < len(found)  # both answers occur


PARTS = [
    "a",
    "bb",
    "c",
    "dd. ",
    "e\n",
    "ff\n\n",
    "g!",
    "[1] [2] [3]",
    "the",
    "to",
    "-",
    "...\n",
    "é",
]


@pytest.mark.parametrize("ours, theirs", PAIRS)
@given(st.lists(st.sampled_from(PARTS), max_size=60), st.sampled_from([PARTS[:7], PARTS]))
@settings(max_examples=60, deadline=None)
def test_decisions_are_datatroves_for_any_text(ours, theirs, parts, allowed):
    text = " ".join(p for p in parts if p in allowed)
    for mine, other in decisions(ours, theirs, [text] if text.strip() else []):
        assert mine == other


def test_sentences_are_counted_no_further_than_asked():
    for text in (*EN[:5], *ZH[:5], "", " ", "One. Two? Mr. X said so. \n\n e.g. this"):
        count = sum(len(sentence_spans(line)) for line in text.split("\n"))
        for least in (0, 1, count - 1, count, count + 1):
            assert has_sentences(text.split("\n"), max(0, least)) == (count >= least)


@given(st.text(max_size=80))
@settings(max_examples=60, deadline=None)
def test_rules_take_any_text(text):
    for kind in (
        *(GopherQuality, GopherRepetition, C4Quality, FineWebQuality),
        *(ChineseQuality, ChineseRepetition, ChineseC4, ChineseFineWeb),
    ):
        assert isinstance(answer(kind(), text), Document | Drop)


def test_words():
    assert words("It's 5.5% of U.S.A. — well-known!", "en") == [
        *("It's", "5.5", "%", "of", "U.S.A", ".", "—", "well", "-", "known", "!"),
    ]
    assert words("你好，world 2。", "zh") == ["你", "好", "，", "world", "2", "。"]


def test_a_rule_leaves_documents_of_the_other_language():
    for step, language in ((GopherQuality(), "zh"), (ChineseQuality(), "en"), (C4Quality(), "zh")):
        document = Document("a", "x", {"language": language})
        assert step.open()(document) is document


@pytest.mark.parametrize(
    "step, texts, fault, precision, recall",
    [
        (GopherRepetition(), EN, repeated, 0.97, 1.0),
        (GopherQuality(), EN, symbols, 0.97, 1.0),
        (GopherQuality(), EN, digits, 0.97, 1.0),
        (FineWebQuality(), EN, keywords, 0.95, 1.0),
        (ChineseRepetition(), ZH, repeated, 0.99, 1.0),
        (ChineseRepetition(), MAN, repeated, 0.94, 1.0),
        (ChineseQuality(min_characters=16), ZH, symbols, 0.94, 1.0),
        (ChineseQuality(min_characters=16), ZH, digits, 0.94, 1.0),
        (ChineseQuality(min_han=0.2), MAN, symbols, 0.95, 1.0),
        (ChineseFineWeb(), MAN, keywords, 0.94, 1.0),
    ],
)
def test_injected_faults_are_found(step, texts, fault, precision, recall):
    language = "en" if texts is EN else "zh"
    found = measure(step, inject(texts, fault, language), texts, language)
    assert found.precision >= precision and found.recall >= recall, found


PROSE = "今天的天气很好，我们在公园里散步，看见了许多人。孩子们在草地上玩，大人坐在树下说话。" * 2


@pytest.mark.parametrize(
    "text, reason",
    [
        ("太短了。", "too few characters"),
        (PROSE + "the quick brown fox jumps over the lazy dog " * 9, "too little Han"),
        (PROSE + "★◆■◆★" * 20, "too many symbols"),
        (PROSE + "0123456789" * 8, "too many digits"),
        (PROSE + "哈" * 60, "runs of one character"),
        ("• " + "\n• ".join(PROSE.split("，")), "too many bullet lines"),
        (PROSE.replace("。", "……\n"), "too many lines end in an ellipsis"),
        (
            " ".join("苹果 手机 电脑 价格 优惠 新款 折扣 包邮 正品 数码".split() * 6),
            "function words",
        ),
        (PROSE.translate(str.maketrans("", "", "，。")) * 2, "clauses too long"),
        (
            "，".join("我你他在有不是了的这中人大上一为也以之其"[i % 20] for i in range(90)),
            "too short",
        ),
    ],
)
def test_each_rule_of_chinese_quality(text, reason):
    step = ChineseQuality(max_clause=50)
    assert isinstance(answer(step, PROSE), Document)
    assert reason in answer(step, text).reason


def test_c4_of_chinese():
    text = f"首页 新闻 体育\n{PROSE}\n未经许可，不得转载本文。\n更多\n他说：“走吧。”"
    assert answer(ChineseC4(), text).text == f"{PROSE}\n他说：“走吧。”"
    assert answer(ChineseC4(), PROSE + "function(){}").reason == "curly brackets"
    assert answer(ChineseC4(), "只有一句话而已。").reason == "too few sentences"
    assert answer(ChineseC4(min_sentences=1), "只有一句话而已。").text == "只有一句话而已。"


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda: GopherQuality(language="fr"), "GopherQuality.language"),
        (lambda: GopherQuality(min_words=0), "GopherQuality.min_words"),
        (lambda: GopherQuality(max_words=3), "GopherQuality.max_words"),
        (lambda: GopherRepetition(top_n_grams=(2, 0.2)), "GopherRepetition.top_n_grams"),
        (lambda: ChineseRepetition(repeated_n_grams=((5, 2),)), "ChineseRepetition.repeated"),
        (lambda: C4Quality(language="zh"), "C4Quality.language"),
        (lambda: FineWebQuality(max_repeated=-1), "FineWebQuality.max_repeated"),
        (lambda: ChineseQuality(min_characters=1.5), "ChineseQuality.min_characters"),
        (lambda: ChineseC4(min_line=-1), "ChineseC4.min_line"),
    ],
)
def test_bad_values_are_named(make, field):
    with pytest.raises(ConfigError, match=field):
        make()
