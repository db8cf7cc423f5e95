"""What a training step eats."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of packed documents; NumPy on the host, ``jax.Array`` on the mesh.

    Attributes:
      tokens: [B, T] int32, what the model reads; 0 where ``segment_ids`` is 0.
      targets: [B, T] int32, the token that follows each one in its document; 0 where none does.
      positions: [B, T] int32, from 0 in every segment; 0 on padding.
      segment_ids: [B, T] int32, 1, 2, ... along a row, one a document; 0 is padding.
      loss_mask: [B, T] float32, 1 where the target counts: 0 on padding, where the next token
        belongs to another document, and where the store's own mask says so.
      source: [B] int32, index into the stream's ``sources``.
    """

    tokens: Any
    targets: Any
    positions: Any
    segment_ids: Any
    loss_mask: Any
    source: Any

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.tokens.shape
