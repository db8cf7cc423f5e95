"""Prints a conversation with what is trained in it."""

from __future__ import annotations

import os
import sys
from itertools import groupby
from typing import TextIO

from t5x_llm.text.chat.encoding import EARLIER, LAST, NEVER, PROMPT, Encoded

# Escape sequences of terminals by code: dim red, plain, cyan, bold green.
_COLOURS = {NEVER: "\x1b[2;31m", PROMPT: "", EARLIER: "\x1b[36m", LAST: "\x1b[1;32m"}
_RESET = "\x1b[0m"
# Where there is no colour.
_MARKS = {NEVER: ("⟨-", "-⟩"), PROMPT: ("", ""), EARLIER: ("⟦", "⟧"), LAST: ("⟪", "⟫")}
_WORDS = {NEVER: "never trained", PROMPT: "prompt", EARLIER: "earlier turn", LAST: "last turn"}


def show(encoded: Encoded, colour: bool | None = None) -> str:
    """Returns the text of a conversation with the tokens coloured by their code.

    Args:
      encoded: the conversation.
      colour: whether to colour by escape sequences, or to put marks around; None: colour where
        the output is a terminal and NO_COLOR is not set.
    """
    text = encoded.rendered.text
    parts = []
    at = 0
    for code, tokens in groupby(range(len(encoded.ids)), lambda k: int(encoded.codes[k])):
        end = max(int(encoded.spans[k, 1]) for k in tokens)
        parts.append(_dressed(visible(text[at:end]), code, coloured(colour)))
        at = max(at, end)
    return "".join(parts) + visible(text[at:])


def legend(encoded: Encoded, colour: bool | None = None) -> str:
    """Returns a line that says how many tokens have which code, each in its colour."""
    return ", ".join(
        _dressed(f"{word} {int((encoded.codes == code).sum())}", code, coloured(colour))
        for code, word in _WORDS.items()
    )


def coloured(colour: bool | None, stream: TextIO | None = None) -> bool:
    """Returns ``colour``; where it is None, whether ``stream`` (stdout if None) shows colours."""
    if colour is not None:
        return colour
    return (stream or sys.stdout).isatty() and "NO_COLOR" not in os.environ


def _dressed(text: str, code: int, colour: bool) -> str:
    if not colour:
        begin, end = _MARKS[code]
        return f"{begin}{text}{end}"
    return f"{_COLOURS[code]}{text}{_RESET}" if _COLOURS[code] else text


def visible(text: str) -> str:
    """Returns ``text`` without control characters, which could move a terminal's cursor."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)
