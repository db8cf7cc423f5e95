"""One batch of packed rows, as a training step takes it."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import jax
import numpy as np

Array: TypeAlias = np.ndarray | jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of packed segments; NumPy on the host, ``jax.Array`` on the mesh.

    A segment is a document or a piece of one; some objectives (``Denoising``) make a segment of a
    block of joined documents. What the fields hold by ``Denoising.objective``:

    ``lm``: tokens and those that follow them. ``extra`` is empty.

    ``mlm`` (BERT): ``tokens`` are corrupted, ``targets`` the originals at the same places (nothing
    is shifted), ``loss_mask`` is 1 at the chosen places alone. ``extra`` is empty; the model looks
    both ways.

    ``fim``: as ``lm``, with three marks more in a segment whose middle was moved to its end.

    Encoder-decoder (``span_corruption``; ``prefix_lm``, ``ul2`` of that form): the fields below are
    the decoder's, [B, T] with T = the objective's target length; of each segment ``tokens`` are the
    start token and then ``targets`` but the last, which is the end token; ``positions`` count from
    0 in every segment; ``loss_mask`` is 1 on all targets. ``extra`` has ``encoder_tokens``,
    ``encoder_segment_ids`` and ``encoder_positions``, [B, S] with S = ``Loop.sequence_length``; a
    segment has the same number on both sides (1, 2, ...; 0 is padding), and cross attention
    matches equal ones.

    Decoder with a prefix (``prefix_lm``, ``ul2``): a segment is inputs, then outputs, shifted as
    for ``lm``; ``extra["prefix"]`` is True on the inputs, which all of the segment may see;
    ``loss_mask`` is 1 from the last input on, which predicts the first output.

    ``blank_filling`` (GLM): a segment is part A, the text with masks in place of spans, then part
    B, its spans, each with its start token before it. ``extra["prefix"]`` is True on part A;
    ``positions`` count from 0 in part A and are that of the span's mask in part B (so they do not
    tell the order of tokens: causality goes by place in the row); ``extra["block_positions"]`` are
    0 in part A and 1, 2, ... within each span of part B. ``targets`` in part B are the span's
    tokens, then the end token; ``loss_mask`` is 1 on part B alone.

    Attributes:
      tokens: [B, T] int32, what the model reads; 0 where ``segment_ids`` is 0.
      targets: [B, T] int32, the token that follows each one in its segment; 0 where none does.
      positions: [B, T] int32, from 0 in every segment; 0 on padding.
      segment_ids: [B, T] int32, 1, 2, ... along a row, one a segment; 0 is padding.
      loss_mask: [B, T] float32, 1 where the target counts: 0 on padding, where the next token
        belongs to another document, where the store's own mask says so, and where the objective
        predicts nothing.
      source: [B] int32, index into the stream's ``sources``.
      extra: further rows by name; the same names in every batch of a run, none for ``lm``:
        ``prefix`` [B, T] bool, False on padding; ``block_positions`` [B, T] int32, 0 on padding;
        ``encoder_tokens``, ``encoder_segment_ids``, ``encoder_positions`` [B, S] int32, 0 on
        padding. ``Model.loss`` gives them to the architecture by these names.
    """

    tokens: Array
    targets: Array
    positions: Array
    segment_ids: Array
    loss_mask: Array
    source: Array
    extra: dict[str, Array] = dataclasses.field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (B, T)."""
        return self.tokens.shape
