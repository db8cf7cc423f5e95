"""Records: documents on their way into a token store, and the split each belongs to."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from t5x_llm.data.store import SPLITS


@dataclasses.dataclass(frozen=True)
class Record:
    """One document on its way into a token store.

    Attributes:
      content: its text, or token ids [n] made elsewhere.
      file, line: the file it was read from (index into the source's files) and the line or record
        in it, from 1.
      mask: [n] uint8 for token ids, 1 where a token is to be predicted; None for all. Of a
        conversation the codes of ``instruct.chat_config``.
      score: the number that a curriculum orders documents by, if the source has any.
      key: SHA-256 that decides split and order in place of the content's; b"" for the content's.
      size: UTF-8 bytes of what is measured of token ids that are a whole document, with begin and
        end tokens of their own; None for ids that get those, and whose text is measured.
    """

    content: str | np.ndarray
    file: int
    line: int
    mask: np.ndarray | None = None
    score: float | None = None
    key: bytes = b""
    size: int | None = None

    def digest(self) -> bytes:
        """Returns the SHA-256 of the content, which decides split and order; or the key."""
        if self.key:
            return self.key
        if isinstance(self.content, str):
            return hashlib.sha256(self.content.encode()).digest()
        return hashlib.sha256(self.content.astype("<i8").tobytes()).digest()


def split_of(digest: bytes, held_out: float) -> str:
    """Returns ``validation`` for a share ``held_out`` of all digests, else ``train``."""
    return SPLITS[int.from_bytes(digest[:8], "big") < held_out * 2.0**64]
