"""HTML of chat pages, as ShareGPT collected it, turned into the Markdown that a model wrote."""

from __future__ import annotations

import re
from html.parser import HTMLParser

# A turn is HTML if it begins with one of these elements and ends with the end of one.
_BLOCKS = "p|div|pre|ol|ul|h[1-6]|table|blockquote|span|br"
_BEGINS = re.compile(rf"\s*<(?:{_BLOCKS})(?:\s[^<>]*)?/?>", re.I)
_ENDS = re.compile(rf"(?:</(?:{_BLOCKS})>|<br\s*/?>)\s*$", re.I)
_LANGUAGE = re.compile(r"\blanguage-([\w+#.-]+)")
_INLINE = {"strong": "**", "b": "**", "em": "*", "i": "*"}
_PARAGRAPHS = ("p", "div", "ul", "ol", "table", "blockquote")
_DROPPED = ("button", "script", "style", "svg")


def is_html(text: str) -> bool:
    """Returns True for a turn that is HTML as a whole; code with tags inside of text is none."""
    return bool(_BEGINS.match(text)) and bool(_ENDS.search(text))


def to_markdown(html: str) -> str:
    """Returns Markdown of a turn in HTML.

    Code blocks keep their spaces and get the language that their class names; buttons ("Copy code")
    are left out, lists are numbered again, and tables become rows between bars.
    """
    writer = _Writer()
    writer.feed(html)
    writer.close()
    text = "".join(writer.parts)
    parts = re.split(r"(```.*?\n```)", text, flags=re.S)
    for i in range(0, len(parts), 2):  # what is no code block
        parts[i] = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", parts[i]))
    return "".join(parts).strip()


class _Writer(HTMLParser):
    """Writes Markdown while HTML is read."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._lists: list[int | None] = []  # the last number of each open list; None for bullets
        self._links: list[str] = []
        self._dropped = 0
        self._block: list[str] | None = None  # text of the open code block
        self._in_code = False
        self._language = ""
        self._cells = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in _DROPPED:
            self._dropped += 1
        elif tag == "pre":
            self._block, self._language, self._in_code = [], "", False
        elif tag == "code":
            self._in_code = True
            if self._block is None:
                self.parts.append("`")
            else:
                self._block.clear()  # what stood before the code is its title bar
                found = _LANGUAGE.search(given.get("class", ""))
                self._language = found.group(1) if found else ""
        elif self._block is None:
            self._start_text(tag, given)

    def _start_text(self, tag: str, given: dict[str, str]) -> None:
        if tag in _PARAGRAPHS and not self._lists:
            self.parts.append("\n\n")
        if tag in ("ul", "ol"):
            start = given.get("start", "")
            first = int(start) - 1 if start.isdecimal() and len(start) < 9 else 0
            self._lists.append(first if tag == "ol" else None)
        elif tag == "li":
            self._item()
        elif tag == "br":
            self.parts.append("\n")
        elif tag == "hr":
            self.parts.append("\n\n---\n\n")
        elif tag in _INLINE:
            self.parts.append(_INLINE[tag])
        elif tag == "blockquote":
            self.parts.append("> ")
        elif tag == "a":
            self._links.append(given.get("href", ""))
            self.parts.append("[")
        elif tag == "tr":
            self._cells = 0
            self.parts.append("\n|")
        elif tag in ("td", "th"):
            self.parts.append(" ")
        elif re.fullmatch("h[1-6]", tag):
            self.parts.append("\n\n" + "#" * int(tag[1]) + " ")

    def _item(self) -> None:
        mark = "- "
        if self._lists and (number := self._lists[-1]) is not None:
            self._lists[-1] = number + 1
            mark = f"{number + 1}. "
        self.parts.append("\n" + "    " * (len(self._lists) - 1) + mark)

    def handle_endtag(self, tag: str) -> None:
        if tag in _DROPPED:
            self._dropped = max(self._dropped - 1, 0)
        elif tag == "pre" and self._block is not None:
            code = "".join(self._block).rstrip("\n")
            self.parts.append(f"\n\n```{self._language}\n{code}\n```\n\n")
            self._block = None
        elif tag == "code":
            if self._block is None and self._in_code:
                self.parts.append("`")
            self._in_code = False
        elif self._block is None:
            self._end_text(tag)

    def _end_text(self, tag: str) -> None:
        if tag in ("ul", "ol") and self._lists:
            self._lists.pop()
        if tag in _INLINE:
            self.parts.append(_INLINE[tag])
        elif tag in _PARAGRAPHS and not self._lists:
            self.parts.append("\n\n")
        elif tag == "a" and self._links:
            self.parts.append(f"]({self._links.pop()})")
        elif tag in ("td", "th"):
            self._cells += 1
            self.parts.append(" |")
        elif tag == "thead":
            self.parts.append("\n|" + " --- |" * self._cells)

    def handle_data(self, data: str) -> None:
        if self._dropped:
            return
        if self._block is not None:
            self._block.append(data)
        elif self._in_code:
            self.parts.append(data)
        else:
            text = re.sub(r"\s+", " ", data)
            open_line = not self.parts or self.parts[-1].endswith("\n")
            self.parts.append(text.lstrip() if open_line else text)
