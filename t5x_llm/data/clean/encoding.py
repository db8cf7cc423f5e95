"""Repair of text that was decoded wrongly."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from t5x_llm.core.errors import check_number
from t5x_llm.data.clean.characters import HAN, KANA
from t5x_llm.data.clean.document import Answer, Document, Drop

# What is left of text that lost bytes: the replacement character, and what UTF-8 replacement
# characters and the fills of memory look like when they are read as GBK.
_LOST = re.compile("\ufffd|锟斤拷|烫烫烫|屯屯屯|锘縷")
# Letters that the bytes of GBK make when they are read as Latin-1 or Windows-1252.
_LATIN = re.compile(r"[\u00a0-\u00ff\u0152-\u0192\u02c6-\u2122]{4,}")
_FOREIGN = re.compile("[^\x00-\x7f\ufffd]{3,}")
# What ftfy may change contains one of these; Chinese, ASCII and typographic marks are left alone.
_UNUSUAL = re.compile(rf"[^\t\n\x20-\x7e{HAN}{KANA}\u3001-\u303f\uff01-\uff65“”‘’—–…·•]")
_ENTITY = re.compile(r"&[#\w]")


@dataclasses.dataclass(frozen=True)
class FixEncoding:
    """Repairs mojibake, and drops what cannot be repaired.

    ftfy undoes UTF-8 read as Latin-1, Windows code pages and the like, and unescapes HTML entities
    of texts without tags; it leaves quotes, ligatures and full-width forms as they are. Two more
    happen to Chinese: UTF-8 read as GBK, undone where a line turns into valid UTF-8, and GBK read
    as Latin-1, undone where a run turns into common Chinese characters.

    Attributes:
      max_lost: share of characters that may be marks of lost bytes, such as U+FFFD.
    """

    max_lost: float = 0.005

    def __post_init__(self) -> None:
        check_number("FixEncoding.max_lost", self.max_lost, low=0, high=1)

    @property
    def name(self) -> str:
        return "encoding"

    def open(self) -> Callable[[Document], Answer]:
        import ftfy

        # Meant: wrong decoding and what no text contains. Not meant: other ways of writing.
        config = ftfy.TextFixerConfig(
            fix_latin_ligatures=False,
            fix_character_width=False,
            uncurl_quotes=False,
            fix_line_breaks=True,
            normalization=None,
            explain=False,
        )

        def step(document: Document) -> Answer:
            text = document.text
            if _UNUSUAL.search(text) is not None or _ENTITY.search(text) is not None:
                text = _LATIN.sub(_from_latin, ftfy.fix_text(text, config))
            elif text.isascii():
                return document
            text = _FOREIGN.sub(_from_gbk, text)
            lost = _lost(text)
            if lost > self.max_lost:
                return Drop("lost bytes", f"{lost:.1%} of its characters", {"lost": lost})
            return document if text == document.text else document.with_text(text)

        return step


def _lost(text: str) -> float:
    if text.isascii():
        return 0.0
    return sum(len(match) for match in _LOST.findall(text)) / max(1, len(text))


def _from_gbk(match: re.Match[str]) -> str:
    """UTF-8 read as GBK becomes what it was; other runs stay.

    True GBK is hardly ever valid UTF-8 of Chinese: that takes rare characters in every third place.
    """
    run = match.group()
    try:
        if not 0xE2 <= run[0].encode("gbk")[0] <= 0xEF:  # no sign of Chinese begins otherwise
            return run
        raw = run.encode("gbk")
    except UnicodeError:
        return run
    for end in (len(raw), len(raw) - 1, len(raw) - 2):  # bytes of the last one may be lost
        try:
            found = raw[:end].decode("utf-8")
        except UnicodeError:
            continue
        return found if _is_chinese(found) else run
    return run


def _from_latin(match: re.Match[str]) -> str:
    """GBK read as Latin-1 or Windows-1252 becomes Chinese; other runs stay."""
    run = match.group()
    for codec in ("latin-1", "cp1252"):
        try:
            found = run.encode(codec).decode("gb18030")
        except UnicodeError:
            continue
        if _is_common(found):
            return found
    return run


def _is_chinese(text: str) -> bool:
    return all(
        "\u3000" <= c <= "\u9fff" or "\uff00" <= c <= "\uffef" or c in "…—“”‘’·" for c in text
    )


def _is_common(text: str) -> bool:
    """Whether all are characters of GB 2312's first level or Chinese marks."""
    for char in text:
        try:
            code = char.encode("gb2312")
        except UnicodeError:
            return False
        if len(code) != 2 or not (0xB0 <= code[0] <= 0xD7 or 0xA1 <= code[0] <= 0xA3):
            return False
    return True
