"""Repair of text that was decoded wrongly."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable

from t5x_llm.core.errors import check_number
from t5x_llm.data.clean.characters import HAN, KANA
from t5x_llm.data.clean.document import Answer, Document, Drop

# What is left of text that lost bytes: the replacement character, and what UTF-8 replacement
# characters and the fills of memory look like when they are read as GBK.
_LOST = re.compile("\ufffd|锟斤拷|烫烫烫|屯屯屯|锘縷")
_HIGH = re.compile("[\x80-\uffff]")
# Runs of signs beyond ASCII that begin as UTF-8 of Chinese read as GBK does: with bytes E2 to EF.
_LEADS = "".join(
    sign
    for pair in itertools.product(range(0xE2, 0xF0), range(0x40, 0xFF))
    if not (sign := bytes(pair).decode("gbk", "ignore")).isascii()
)
_FOREIGN = re.compile(rf"(?<![^\x00-\x7f\ufffd])[{_LEADS}][^\x00-\x7f\ufffd]+")
# What ftfy may change contains one of these; Chinese, ASCII and typographic marks are left alone.
_UNUSUAL = re.compile(rf"[^\t\n\x20-\x7e{HAN}{KANA}\u3001-\u303f\uff01-\uff65“”‘’—–…·•]")
_ENTITY = re.compile(r"&[#\w]")


@dataclasses.dataclass(frozen=True)
class FixEncoding:
    """Repairs mojibake, and drops what cannot be repaired.

    ftfy undoes UTF-8 read as Latin-1, Windows code pages and the like, and unescapes HTML entities
    of texts without tags; it leaves quotes, ligatures and full-width forms as they are. Two more
    happen to Chinese: UTF-8 read as GBK, undone where a run turns into valid UTF-8, and GBK read as
    Latin-1, undone where lines turn into common Chinese characters.

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
                text = ftfy.fix_text(_from_latin(text), config)
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
    """Restores UTF-8 that was read as GBK; other runs stay.

    True GBK is hardly ever valid UTF-8 of Chinese: that takes rare characters in every third place.
    """
    run = match.group()
    try:
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


def _from_latin(text: str) -> str:
    """Restores Chinese from GBK that was read as Latin-1 or Windows-1252; other texts stay.

    Half of a line's letters must be foreign and their bytes no UTF-8; most of the signs that such
    lines become must be punctuation and frequent characters, GB 2312's first level, which ends at
    D7. A text that was read wrongly was so in all its lines.
    """
    lines = text.split("\n")
    found: dict[int, str] = {}
    sure, foreign, common = 0, 0, 0
    for at, line in enumerate(lines):
        high = len(_HIGH.findall(line))
        if high < 2 or (read := _as_gbk(line)) is None:
            continue
        found[at] = read
        if 2 * high >= len(line):
            signs = [char.encode("gb18030") for char in read if char > "\x7f"]
            sure += high
            foreign += len(signs)
            common += sum(len(c) == 2 and c[1] >= 0xA1 and 0xA1 <= c[0] <= 0xD7 for c in signs)
    if sure < 4 or common < 0.6 * foreign:
        return text
    return "\n".join(found.get(at, line) for at, line in enumerate(lines))


def _as_gbk(line: str) -> str | None:
    for codec in ("latin-1", "sloppy-windows-1252"):
        try:
            raw = line.encode(codec)
            return None if _is_utf8(raw) else raw.decode("gb18030")
        except UnicodeError:
            continue
    return None


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeError:
        return False
    return True


def _is_chinese(text: str) -> bool:
    """Returns whether all signs are of Chinese text; the last may be ASCII, cut off a sign."""
    if text[-1:].isascii():
        text = text[:-1]
    return bool(text) and all(
        "\u2010" <= c <= "\u22ff"
        or "\u3000" <= c <= "\u9fff"
        or "\uff00" <= c <= "\uffef"
        or c == "·"
        for c in text
    )
