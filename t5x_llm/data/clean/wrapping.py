"""Paragraphs that are wrapped at a fixed width, as books, mails, RFCs and manuals are.

Rules on lines mean paragraphs: most pages of the web have one a line. Of a wrapped paragraph they
would see lines that break off in the middle of a sentence, so they are given its lines as one.
"""

from __future__ import annotations

import functools
import re
import statistics
import unicodedata
from collections.abc import Iterator, Sequence

from t5x_llm.data.clean.characters import HAN, KANA

# Columns of the widest line of wrapped text: verse is narrower, and no terminal is wider.
_NARROWEST, _WIDEST = 45, 140
_FULL = 0.75  # of the width that a line takes, together with the word that begins the next
_ENOUGH = 0.75  # of the line breaks inside one paragraph are of full lines
_COMMON = 0.3  # of all line breaks are inside such paragraphs
_RUNNING = 0.5  # of their full lines end inside a sentence and go on with no capital letter
_QUOTE = re.compile(r"(?:[>|] ?)+")
# What begins a line of its own: items of lists, headings, tables, rules, fields of a form.
_ITEM = re.compile(
    r"[-*+•·●○■□◆▪–]\s|\(?(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{2,5})[.)]\s|[A-Z]?\d{0,3}(?:\.\d{1,3})+\.?\s"
    r"|（?[一二三四五六七八九十]{1,3}[、）]|第\s?[\d一二三四五六七八九十百]+\s?[章节條条]"
)
_OWN = re.compile(r"#{1,6}\s|\||[-=_*~+#]{3,}|@\w|\.[A-Z]{2}\b|```|<[/!a-z]")
_WIDE = re.compile(rf"[{HAN}{KANA}\u3000-\u303f\uff01-\uff60\u2018-\u201d…—]")
_ENDS = re.compile(r"[.!?:;。！？：；…][\"'”’)\]」』）》*_]*$")


def join_wrapped(text: str) -> str:
    """Returns the text with every wrapped paragraph on one line; other texts as they are.

    English lines are joined by a blank, Chinese ones by nothing; the sign of quotation in mails,
    ``>``, stays at the start of the paragraph alone.
    """
    lines = logical_lines(text)
    return text if lines is None else "\n".join(_joined(line) for line in lines)


def paragraphs(text: str) -> Iterator[tuple[str, str]]:
    """Yields each line, or wrapped paragraph, as it stands and as one line.

    Joined by line feeds, what stands there is the text.
    """
    lines = logical_lines(text)
    if lines is None:
        yield from ((line, line) for line in text.split("\n"))
    else:
        yield from (("\n".join(line), _joined(line)) for line in lines)


@functools.lru_cache(maxsize=2)  # several steps in a row ask for the same text
def logical_lines(text: str) -> Sequence[Sequence[str]] | None:
    """Returns the lines of a text, those of a wrapped paragraph together; None if none is wrapped.

    A text is wrapped if many lines inside its paragraphs are nearly as wide as the widest, and end
    inside sentences. Lines that are not full, items of lists, headings, tables, and lines indented
    more than the one before stand for themselves, so that verse, lists and code stay as they are.
    """
    if "\n" not in text:
        return None
    lines = text.split("\n")
    runs = [run for run in _runs(lines) if run]
    widths = [_width(lines[at - 1]) for run in runs for at in run]
    if not widths:
        return None
    width = _common_width([each for each in widths if each <= _WIDEST] or [0])
    if width < _NARROWEST:
        return None
    joins: set[int] = set()
    for run in runs:
        joins |= _full_lines(lines, run, width)
    if len(joins) < _COMMON * len(widths) or not joins:
        return None
    if sum(_runs_on(lines[at - 1], lines[at]) for at in joins) < _RUNNING * len(joins):
        return None
    found: list[list[str]] = []
    for at, line in enumerate(lines):
        if at in joins:
            found[-1].append(line)
        else:
            found.append([line])
    return found


def _runs(lines: Sequence[str]) -> Iterator[list[int]]:
    """Yields, for each paragraph, the lines that may go on the one before them."""
    run: list[int] = []
    for at in range(1, len(lines)):
        if _may_join(lines, at):
            run.append(at)
        elif run:
            yield run
            run = []
    yield run


def _full_lines(lines: Sequence[str], run: Sequence[int], width: float) -> set[int]:
    """Returns the lines that go on a full one, if nearly all of a paragraph's are full."""
    full = set()
    ended = 0
    for at in run:
        own = _width(lines[at - 1])
        if own <= 1.3 * width and own + 1 + _first(lines[at]) >= _FULL * width:
            full.add(at)
            capital = _start(lines[at]).isupper()
            ended += capital and _ENDS.search(lines[at - 1].rstrip()) is not None
    return full if len(full) >= _ENOUGH * len(run) and ended <= 0.5 * len(full) else set()


def _may_join(lines: Sequence[str], at: int) -> bool:
    """Returns whether line ``at`` may go on a paragraph that the line before it is part of."""
    (mark, before), (own, line) = _unquoted(lines[at - 1]), _unquoted(lines[at])
    if mark.split() != own.split():
        return False
    plain, start = before.lstrip(), line.lstrip()
    if not plain or not start or _OWN.match(plain) or _OWN.match(start) or _ITEM.match(start):
        return False
    if before.endswith(("  ", "\\")) and not before.endswith("   "):  # Markdown's line breaks
        return False
    deeper = len(line) - len(start) - (len(before) - len(plain))
    if deeper < 0 and at > 1 and lines[at - 2].strip():  # only a first line is indented more
        return False
    item = _ITEM.match(plain)
    return deeper <= (item.end() + 2 if item else 0)


def _unquoted(line: str) -> tuple[str, str]:
    found = _QUOTE.match(line) if line[:1] in ">|" else None
    return (found.group(), line[found.end() :]) if found else ("", line)


def _width(line: str) -> int:
    """Returns the columns of a line; wide characters take two."""
    return len(line) if line.isascii() else len(line) + len(_WIDE.findall(line))


def _common_width(widths: list[int]) -> float:
    """Returns the width that the widest tenth of the lines begins with."""
    return widths[0] if len(widths) == 1 else statistics.quantiles(widths, n=10)[-1]


def _first(line: str) -> int:
    """Returns the columns of the first word of a line; of Chinese, its first character."""
    line = _unquoted(line)[1].lstrip()
    word = line.split(maxsplit=1)[0]
    return 2 if _WIDE.match(word) else min(_width(word), 20)


def _runs_on(before: str, line: str) -> bool:
    """Returns whether a sentence seems to go on from a line to the next, with a small letter."""
    start = _start(line)
    return start.isalpha() and not start.isupper() and not _ENDS.search(before.rstrip())


def _start(line: str) -> str:
    """Returns the first character of a line, behind blanks and what opens before a word."""
    return _unquoted(line)[1].lstrip("\"'“‘(（[「『 \t\u3000*_")[:1]


def _joined(lines: Sequence[str]) -> str:
    text = lines[0]
    for line in lines[1:]:
        text, line = text.rstrip(), _unquoted(line)[1].strip()
        hyphen = text.endswith("-") and text[-2:-1].isalpha() and line[:1].islower()
        wide = _is_wide(text[-1:]) and _is_wide(line[:1])
        text += line if hyphen or wide else f" {line}"
    return text


def _is_wide(char: str) -> bool:
    return bool(char) and unicodedata.east_asian_width(char) in "WF"
