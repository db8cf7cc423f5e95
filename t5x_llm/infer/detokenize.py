"""Turning a growing list of tokens into text, without half characters or half stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t5x_llm.text import Tokenizer


_INCOMPLETE = "\ufffd"  # what a decoder shows for the first bytes of a longer character


class Detokenizer:
    """Text of a completion, token by token.

    A token may end inside a UTF-8 character, and some decoders treat the first token of a text
    specially. So each new piece is the difference of two decodings that start at the same earlier
    token, and is held back while its last character is incomplete.

    Args:
      tokenizer: decodes.
      prompt: tokens before the completion; the last few give the decoder its context.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]):
        self._tokenizer = tokenizer
        self._ids = list(prompt[-8:])
        self._start, self._done = 0, len(self._ids)

    def _pending(self) -> str:
        known = self._tokenizer.decode(self._ids[self._start : self._done])
        return self._tokenizer.decode(self._ids[self._start :])[len(known) :]

    def push(self, token: int) -> str:
        """The text that ``token`` completes; empty while a character is unfinished."""
        self._ids.append(token)
        text = self._pending()
        if text.endswith(_INCOMPLETE) or not text:
            return ""
        self._start, self._done = self._done, len(self._ids)
        return text

    def flush(self) -> str:
        """Returns what is left at the end, without the incomplete character."""
        text = self._pending().rstrip(_INCOMPLETE)
        self._start = self._done = len(self._ids)
        return text


def first_stop(text: str, stops: Sequence[str], start: int = 0) -> int | None:
    """Returns where the earliest stop string begins at or after ``start``, or None."""
    found = [at for at in (text.find(stop, start) for stop in stops) if at >= 0]
    return min(found, default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that may grow into a stop string."""
    return max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
    )
