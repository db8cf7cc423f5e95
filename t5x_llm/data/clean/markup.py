"""Removal of HTML's markup from text that was taken for plain."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from t5x_llm.core.errors import check_number
from t5x_llm.data.clean.document import Answer, Document, Drop

_NAMES = (
    "a|abbr|article|aside|b|blockquote|body|br|button|center|cite|code|col|dd|del|div|dl|dt|em|"
    "embed|fieldset|figcaption|figure|font|footer|form|frame|h[1-6]|head|header|hr|html|i|iframe|"
    "img|input|ins|label|li|link|main|map|meta|nav|noscript|object|ol|option|p|param|pre|section|"
    "select|small|source|span|strike|strong|sub|sup|svg|table|tbody|td|textarea|tfoot|th|thead|"
    "title|tr|tt|u|ul|video"
)
# Whole elements that hold no text; comments; then tags, whose attributes name no other tag.
_BLOCK = re.compile(r"<(script|style)\b[^<>]*>.*?</\1\s*>|<!--.*?-->|<!DOCTYPE[^<>]*>", re.S | re.I)
_TAG = re.compile(rf"</?(?:{_NAMES})(?:\s[^<>]{{0,2000}})?/?>", re.I)
_LINE = re.compile(
    r"</?(?:p|br|div|li|tr|h[1-6]|table|ul|ol|dl|dt|dd|hr|blockquote|section|article)\b[^<>]*>",
    re.I,
)


@dataclasses.dataclass(frozen=True)
class StripMarkup:
    """Takes out tags, scripts, styles and comments of HTML, by the names of HTML's elements.

    A page that is HTML as a whole belongs to the reader, which finds its main text; this is for
    plain text with tags in it. ``a < b > c``, ``List<int>`` and ``<me@example.com>`` stay.

    Attributes:
      max_share: of the characters that may be markup; a document with more is dropped.
    """

    max_share: float = 0.8

    def __post_init__(self) -> None:
        check_number("StripMarkup.max_share", self.max_share, low=0, high=1)

    @property
    def name(self) -> str:
        return "markup"

    def open(self) -> Callable[[Document], Answer]:
        return self._strip

    def _strip(self, document: Document) -> Answer:
        text = document.text
        if "<" not in text or ">" not in text:
            return document
        found, blocks = _BLOCK.subn("\n", text) if "</" in text or "<!" in text else (text, 0)
        found = _LINE.sub("\n", found)
        found, tags = _TAG.subn("", found)
        if found == text:
            return document
        share = 1 - len(found.strip()) / len(text)
        if share > self.max_share:
            return Drop("mostly markup", f"{share:.1%}")
        found = re.sub(r"\n\s*\n\s*\n+", "\n\n", found).strip("\n")
        if not found.strip():
            return Drop("nothing but markup")
        return document.with_text(found)
