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
      mask: [n] uint8 for token ids, 1 where a token is to be predicted; None for all.
      score: the number that a curriculum orders documents by, if the source has any.
    """

    content: str | np.ndarray
    file: int
    line: int
    mask: np.ndarray | None = None
    score: float | None = None

    def digest(self) -> bytes:
        """Returns the SHA-256 of the content, which decides split and order."""
        if isinstance(self.content, str):
            return hashlib.sha256(self.content.encode()).digest()
        return hashlib.sha256(self.content.astype("<i8").tobytes()).digest()


def split_of(digest: bytes, held_out: float) -> str:
    """Returns ``validation`` for a share ``held_out`` of all digests, else ``train``."""
    return SPLITS[int.from_bytes(digest[:8], "big") < held_out * 2.0**64]
