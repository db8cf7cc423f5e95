"""Sentences of English and Chinese text, by rule."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from t5x_llm.data.clean.characters import CLOSING, HAN

# After these a full stop ends no sentence. Titles, months, and what stands before a number or name.
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev hon gen col capt lt sgt maj sen rep gov pres st mt ft "
    "jan feb mar apr jun jul aug sep sept oct nov dec "
    "no nos vol vols fig figs eq eqs sec ch art pp ed eds cf vs viz al e.g i.e u.s "
    "inc ltd co corp dept univ assn bros est approx".split()
)
_CLOSING = re.escape(CLOSING)
# A break: Chinese marks wherever they stand; others before blank space; an empty line.
_END = re.compile(
    rf"[。！？…]+[{_CLOSING}]*|[.!?]+[{_CLOSING}]*(?=\s|$|[{HAN}])|(?<=[{HAN}”」』])[;；]|\n\s*\n"
)
_LAST_WORD = re.compile(r"[^\W\d_][\w.]*$")
_NEXT = re.compile(r"\s*[\"'“‘「『（(\[]*(\w)?")


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Returns (start, end) of each sentence; together they cover the text and its blanks.

    A full stop ends no sentence after an abbreviation or an initial, nor where a small letter
    follows. Chinese full stops, question and exclamation marks, ellipses and semicolons do, with
    the quotes and brackets that close after them; so does an empty line.
    """
    return list(_spans(text))


def has_sentences(lines: Iterable[str], least: int) -> bool:
    """Returns whether lines have ``least`` sentences in all; the rest is not looked at."""
    found = (span for line in lines for span in _spans(line))
    return sum(1 for _ in itertools.islice(found, least)) == least


def _spans(text: str) -> Iterator[tuple[int, int]]:
    start, last = 0, None
    for match in _END.finditer(text):
        if not _ends(text, start, match):
            continue
        end = match.end()
        while end < len(text) and text[end].isspace():
            end += 1
        if end > start and text[start:end].strip():
            if last is not None:
                yield last
            last, start = (start, end), end
    if start < len(text) and (last is None or text[start:].strip()):
        if last is not None:
            yield last
        last = (start, len(text))
    if last is not None:
        yield last[0], len(text)


def split_sentences(text: str) -> list[str]:
    """Returns the sentences of a text, stripped; see ``sentence_spans``."""
    found = (text[start:end].strip() for start, end in sentence_spans(text))
    return [sentence for sentence in found if sentence]


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    mark = match.group()[0]
    if mark in "。！？;；\n":
        return True
    follows = _NEXT.match(text, match.end())
    letter = follows.group(1) if follows else None
    small = letter is not None and letter.islower()
    if mark in "!?":  # "Why?" she asked.
        return not (small and match.group()[-1] in CLOSING)
    if small:
        return False
    if mark == "…" or match.group().startswith(".."):
        return True
    word = _LAST_WORD.search(text, max(start, match.start() - 24), match.start())
    if word is None:
        return True
    last = word.group()
    initial = len(last) == 1 and last.isupper() and last != "I"
    return not (initial or last.lower() in _ABBREVIATIONS)
