"""Rows of labelled documents: of each the label, at the last token that is read of it."""

from __future__ import annotations

import dataclasses

import numpy as np

from t5x_llm.core.errors import DataError
from t5x_llm.data.batch import Batch
from t5x_llm.data.catalog import Opened
from t5x_llm.data.positions import DataState
from t5x_llm.data.stream import Stream


@dataclasses.dataclass(frozen=True)
class LabelledStream:
    """Rows of a stream whose documents have scores, which are the labels.

    The place of a label follows from the stored lengths; no token is taken for padding. A document
    longer than a row is read by its beginning, and the pieces of its rest have no label.

    Attributes:
      stream: the rows, packed ``whole`` or ``similar``.
    """

    stream: Stream

    def at(self, state: DataState) -> LabelledStream:
        """Returns the same rows with the history and the skips of ``state``."""
        return LabelledStream(self.stream.at(state))

    def batch(self, position: int, size: int, rows: slice | None = None) -> Batch:
        """Returns a ``Batch`` with ``labels`` [B, T] float32 and 1 in the mask where one is."""
        plain = self.stream.batch(position, size, rows)
        wanted = np.arange(size)[rows if rows is not None else slice(None)]
        labels = np.zeros(plain.shape, np.float32)
        mask = np.zeros(plain.shape, np.float32)
        for row, index in enumerate(wanted.tolist()):
            for piece in self.stream.pieces(position + index):
                if piece.start == 0:
                    last = piece.column + piece.stop - 1
                    split = self.stream.readers[piece.source].split
                    labels[row, last], mask[row, last] = split.scores[piece.document], 1.0
        return dataclasses.replace(plain, loss_mask=mask, extra={"labels": labels})


def check_labelled(opened: Opened) -> None:
    """Raises DataError unless documents end with a token that is no part of their text.

    Training reads a document without its last token, which is a target only.
    """
    if opened.tokenizer.eos_id is None:
        raise DataError(
            f"The tokenizer {opened.tokenizer_path} has no end token, so that the last word of a "
            "document would not be scored. Choose another Data.tokenizer."
        )
