"""Rules for Chinese, which has no blanks between words and signs of its own.

Their thresholds were chosen on Tang and Song poetry, classical prose and translated manual pages,
so that of each under one document in a hundred is dropped: see docs/data.md for the figures.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import ClassVar

from t5x_llm.core.errors import check_number
from t5x_llm.data.clean.characters import CHINESE_PAUSES, CHINESE_STOPS, CLOSING, HAN
from t5x_llm.data.clean.document import Answer, Document, Drop
from t5x_llm.data.clean.quality import FineWebQuality, Fractions, GopherRepetition, check_ratios
from t5x_llm.data.clean.sentences import has_sentences, split_sentences
from t5x_llm.data.clean.wrapping import paragraphs

# Frequent words of one character, modern and classical, simplified and traditional.
FUNCTION_WORDS = "的是在了和不有我他这這中人上大为為个個之以也而其于於者所与與無无何如来來此一"
_HAN = re.compile(f"[{HAN}]")
_CLAUSE = re.compile(r"[^\w]+")
_DIGIT = re.compile(r"\d")
# Signs other than those of prose.
_SYMBOL = re.compile(
    r"[^\w\s。，、；：？！…—～·“”‘’「」『』（）《》〈〉【】〔〕,.;:?!'\"()\[\]%/‐-]"
)
_RUN = re.compile(r"(\S)\1{9,}")
_BULLETS = tuple("-*•·●○■□◆◇▪▶►★☆※✦➤→")
_ELLIPSES = ("…", "...", "。。。")
LINE_ENDS = CHINESE_STOPS + "…；：" + CLOSING + ".!?;:"
# Lines of a page about the page. Matched in lower case.
_POLICY = re.compile(
    "javascript|cookie|隐私政策|隱私政策|隐私条款|服务条款|服務條款|使用条款|使用條款|用户协议|用戶協議"
    "|版权所有|版權所有|未经许可|未經許可|未经授权|转载请注明|轉載請註明|免责声明|免責聲明"
)


@dataclasses.dataclass(frozen=True)
class ChineseQuality:
    """Gopher's rules of quality, adapted to Chinese.

    Attributes:
      min_characters, max_characters: of Han. Classical poems have 20 to 60.
      min_han: share of Han among all but blank space; manual pages quote much English.
      max_symbols: share of signs that are not those of prose.
      max_digits: share of digits.
      max_bullet_lines, max_ellipsis_lines: shares of the lines.
      min_function_words: how many different frequent words of one character must occur, but no
        more than one to forty characters.
      min_clause, max_clause: mean characters between signs and blanks: lists of keywords have
        short ones, text without punctuation long ones.
      max_runs: share of the text in one character repeated ten times and more.
    """

    min_characters: int = 50
    max_characters: int = 200_000
    min_han: float = 0.3
    max_symbols: float = 0.1
    max_digits: float = 0.2
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_function_words: int = 3
    min_clause: float = 2.5
    max_clause: float = 60
    max_runs: float = 0.05

    def __post_init__(self) -> None:
        for field in ("min_characters", "max_characters", "min_function_words"):
            check_number(f"ChineseQuality.{field}", getattr(self, field), low=0, integer=True)
        check_ratios(self, "min_han", "max_symbols", "max_digits", "max_bullet_lines")
        check_ratios(self, "max_ellipsis_lines", "min_clause", "max_clause", "max_runs")

    @property
    def name(self) -> str:
        return "chinese quality"

    def open(self) -> Callable[[Document], Answer]:
        return self._judge

    def _judge(self, document: Document) -> Answer:
        if not document.concerns("zh"):
            return document
        text = document.text
        han = len(_HAN.findall(text))
        if han < max(1, self.min_characters):
            return Drop("too few characters", str(han))
        if han > self.max_characters:
            return Drop("too many characters", str(han))
        size = len(text) - text.count(" ") - text.count("\n") - text.count("\u3000")
        found = (
            ("too little Han", han / size, self.min_han, None),
            ("too many symbols", len(_SYMBOL.findall(text)) / size, None, self.max_symbols),
            ("too many digits", len(_DIGIT.findall(text)) / size, None, self.max_digits),
            ("runs of one character", _runs(text) / size, None, self.max_runs),
        )
        for reason, value, low, high in found:
            if (low is not None and value < low) or (high is not None and value > high):
                return Drop(reason, f"{value:.1%}")
        return self._judge_lines(document, text, han)

    def _judge_lines(self, document: Document, text: str, han: int) -> Answer:
        lines = [line for line in map(str.strip, text.splitlines()) if line]
        bullets = sum(line.startswith(_BULLETS) for line in lines) / len(lines)
        if bullets > self.max_bullet_lines:
            return Drop("too many bullet lines", f"{bullets:.1%}")
        ellipses = sum(line.endswith(_ELLIPSES) for line in lines) / len(lines)
        if ellipses > self.max_ellipsis_lines:
            return Drop("too many lines end in an ellipsis", f"{ellipses:.1%}")
        common = sum(word in text for word in FUNCTION_WORDS)
        if common < min(self.min_function_words, han // 40):
            return Drop("too few function words", str(common))
        clauses = [clause for clause in _CLAUSE.split(text) if clause]
        mean = sum(map(len, clauses)) / max(1, len(clauses))
        if mean < self.min_clause:
            return Drop("clauses too short", f"{mean:.1f}")
        if mean > self.max_clause:
            return Drop("clauses too long", f"{mean:.1f}")
        return document


def _runs(text: str) -> int:
    return sum(len(match.group()) for match in _RUN.finditer(text))


@dataclasses.dataclass(frozen=True)
class ChineseRepetition(GopherRepetition):
    """Gopher's rules against repetition, on characters; a word of Chinese has one to two.

    The most frequent n-gram counts where it occurs four times, and without blanks: of a poem of
    twenty characters any seven are a third, and songs have refrains. Manuals say like things in
    like words, so that of n-grams that were there before more is allowed than of English.
    """

    language: str = "zh"
    top_n_grams: Fractions = ((3, 0.25), (5, 0.25), (7, 0.25))
    repeated_n_grams: Fractions = (
        *((9, 0.40), (11, 0.36), (13, 0.32)),
        *((15, 0.29), (17, 0.27), (19, 0.25)),
    )
    least: ClassVar[int] = 4
    blank: ClassVar[int] = 0


@dataclasses.dataclass(frozen=True)
class ChineseFineWeb(FineWebQuality):
    """FineWeb's rules: a line of 10 characters is short; closing quotes and brackets end lines."""

    language: str = "zh"
    min_line_ends: float = 0.12
    max_short_lines: float = 0.67
    short_line: int = 10
    max_repeated: float = 0.1
    max_new_lines: float = 0.2
    line_ends: str = LINE_ENDS


@dataclasses.dataclass(frozen=True)
class ChineseC4:
    """C4's rules: lines are dropped first, then documents.

    A paragraph that is wrapped at a fixed width is judged as one line, and stays as it is.

    Attributes:
      min_sentences: of the lines that are left.
      min_line: characters; shorter lines go.
      end_of_sentence: whether lines that end with none of ``line_ends`` go: titles do, too.
      line_ends: signs; poems also end their lines with a comma.
      curly_brackets: whether documents with one are dropped, being code.
      policies: whether lines about cookies, terms and copyright go.
    """

    min_sentences: int = 3
    min_line: int = 5
    end_of_sentence: bool = True
    line_ends: str = LINE_ENDS + CHINESE_PAUSES
    curly_brackets: bool = True
    policies: bool = True

    def __post_init__(self) -> None:
        check_number("ChineseC4.min_sentences", self.min_sentences, low=0, integer=True)
        check_number("ChineseC4.min_line", self.min_line, low=0, integer=True)

    @property
    def name(self) -> str:
        return "c4 zh"

    def open(self) -> Callable[[Document], Answer]:
        return self._judge

    def _judge(self, document: Document) -> Answer:
        if not document.concerns("zh"):
            return document
        text = document.text
        if self.curly_brackets and ("{" in text or "｛" in text):
            return Drop("curly brackets")
        if "lorem ipsum" in text.lower():
            return Drop("lorem ipsum")
        kept = [
            line
            for line, paragraph in paragraphs(text)
            if not paragraph.strip() or self._stays(paragraph.strip())
        ]
        if not has_sentences(filter(str.strip, kept), self.min_sentences):
            sentences = sum(len(split_sentences(line)) for line in kept)
            return Drop("too few sentences", str(sentences))
        found = "\n".join(kept).strip("\n")
        return document if found == text else document.with_text(found)

    def _stays(self, line: str) -> bool:
        if len(line) < self.min_line:
            return False
        if self.end_of_sentence and not line.endswith(tuple(self.line_ends)):
            return False
        return not (self.policies and _POLICY.search(line.lower()))
