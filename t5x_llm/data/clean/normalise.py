"""Normalisation of text that can be written in several ways."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from t5x_llm.core.errors import check_choice, check_number
from t5x_llm.data.clean.characters import HANGUL, KANA
from t5x_llm.data.clean.document import Answer, Document, Drop

FORMS = ("NFC", "NFKC", "none")
SCRIPTS = ("as is", "simplified", "traditional")
# NFKC would make these ASCII; in Chinese they are the usual signs.
_CHINESE_SIGNS = "，！？：；（）％～－｛｝［］＂＇．＃＆＊＋＝＠／＼＜＞｜＾＿｀＄￥…⋯‥"
_KEPT = re.compile(f"[{re.escape(_CHINESE_SIGNS)}]+")
# Controls, zero-width signs, marks of direction, byte order marks, soft hyphens, private letters.
# U+200C and U+200D stay: scripts of India and Persia need them, as do emoji.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u2064\u2066-\u2069\ufeff\ufff9-\ufffb\ue000-\uf8ff]"
)
_LINES = re.compile("\r\n?|[\x85\u2028\u2029]")
_BLANKS = re.compile(
    "[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f]{2,}|[\u00a0\u1680\u2000-\u200a\u202f\u205f]"
)
_TRAILING = re.compile("[ \t\u3000]+(?=\n|$)")
_NOT_CHINESE = re.compile(f"[{KANA}{HANGUL}]")


@dataclasses.dataclass(frozen=True)
class Normalise:
    """Normalises Unicode form, invisible characters, blank space, and Chinese script.

    Attributes:
      form: ``NFC`` composes letters and their marks and changes no letter that is seen; ``NFKC``
        also replaces compatibility forms: ligatures, full-width letters and digits, circled
        numbers; ``none`` leaves all.
      keep_chinese_signs: NFKC leaves full-width punctuation, which it would make half-width.
      script: ``simplified`` or ``traditional`` converts Chinese text by opencc's phrases; text with
        kana or hangul is left.
      indent: whether blank space at the start of lines is kept, as code needs it.
      blank_lines: most empty lines in a row.
    """

    form: str = "NFC"
    keep_chinese_signs: bool = True
    script: str = "as is"
    indent: bool = True
    blank_lines: int = 1

    def __post_init__(self) -> None:
        check_choice("Normalise.form", self.form, FORMS)
        check_choice("Normalise.script", self.script, SCRIPTS)
        check_number("Normalise.blank_lines", self.blank_lines, low=0, integer=True)

    @property
    def name(self) -> str:
        return "normalise"

    def open(self) -> Callable[[Document], Answer]:
        convert = self._converter()
        most = self.blank_lines + 1
        too_many = re.compile("\n{" + str(most + 1) + ",}")

        def step(document: Document) -> Answer:
            text = _LINES.sub("\n", _INVISIBLE.sub("", document.text))
            text = self._composed(text)
            text = _blanks(text, self.indent)
            text = too_many.sub("\n" * most, text).strip("\n \t\u3000" if not self.indent else "\n")
            if convert is not None and document.concerns("zh") and not _NOT_CHINESE.search(text):
                text = convert(text)
            if not text.strip():
                return Drop("empty")
            return document if text == document.text else document.with_text(text)

        return step

    def _composed(self, text: str) -> str:
        form: Any = self.form
        if form == "none" or text.isascii() or unicodedata.is_normalized(form, text):
            return text
        if self.form == "NFC" or not self.keep_chinese_signs:
            return unicodedata.normalize(form, text)
        parts, start = [], 0
        for match in _KEPT.finditer(text):
            parts += [unicodedata.normalize("NFKC", text[start : match.start()]), match.group()]
            start = match.end()
        return "".join([*parts, unicodedata.normalize("NFKC", text[start:])])

    def _converter(self) -> Callable[[str], str] | None:
        if self.script == "as is":
            return None
        import opencc

        return opencc.OpenCC("t2s" if self.script == "simplified" else "s2t").convert


def _blanks(text: str, indent: bool) -> str:
    """Makes runs of blanks one space; those at the start of a line stay if wanted."""

    def one(match: re.Match[str]) -> str:
        at = match.start()
        start = at == 0 or text[at - 1] == "\n"
        if start:
            return match.group() if indent else ""
        return " "

    text = _TRAILING.sub("", _BLANKS.sub(one, text))
    return text if indent else re.sub("\n[ \t\u3000]+", "\n", text)
