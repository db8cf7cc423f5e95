"""Objectives of the stream: plans of rows, and rows of corrupted segments.

An objective with several denoisers gives each a fixed share of a source's rows; each goes through
all of the source's text in an order of its own (``shuffled``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import DTypeLike

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data.batch import Batch
from t5x_llm.data.bins import PLAIN, Order, make_plan
from t5x_llm.data.corruption import Arrays, Draw, noise_counts
from t5x_llm.data.denoisers import Denoiser, SpanCorruption, make_denoisers
from t5x_llm.data.denoising import Denoising, SpecialIds, planned_ids, special_ids
from t5x_llm.data.packing import Packing, Reading, Spans, read_spans
from t5x_llm.data.store import Split
from t5x_llm.text import Tokenizer

FIELDS = ("tokens", "targets", "positions", "segment_ids", "loss_mask")
ENCODER = ("encoder_tokens", "encoder_segment_ids", "encoder_positions")


@dataclasses.dataclass(frozen=True)
class RowObjective:
    """Objective by which a stream makes rows of corrupted segments.

    Attributes:
      name: value of ``Denoising.objective``.
      denoisers: denoisers by name.
      rates: share of a source's rows that each denoiser gets.
      length: T of the row.
      encoder_length: S of the encoder's side; 0 without one.
      extra: dtypes of ``Batch.extra`` by name.
      frame: begin and end tokens of a stored document, (0 or 1, 0 or 1).
      identity: text of the configuration and the ids, for the stream's fingerprint.
    """

    name: str
    denoisers: dict[str, Denoiser]
    rates: dict[str, float]
    length: int
    encoder_length: int
    extra: dict[str, DTypeLike]
    frame: tuple[int, int]
    identity: str

    def table(self, denoiser: Denoiser) -> np.ndarray:
        """Returns the places [longest + 1] of T that a piece of n tokens takes on both sides."""
        n = np.arange(max(2 * (self.length + self.encoder_length), 2) + 1)
        row, encoder = denoiser.places(n)
        if self.encoder_length:
            row = np.maximum(row, -(-encoder * self.length // self.encoder_length))
        row[0] = 0
        return row[: int(np.searchsorted(row, self.length, side="right"))]

    def plan(self, denoiser: Denoiser, packing: str, split: Split, order: Order = PLAIN) -> Packing:
        """Returns the plan by which one denoiser reads a split.

        Raises:
          ConfigError: documents joined in the store, but read in another order.
        """
        places = self.table(denoiser)
        if denoiser.whole_documents and packing == "concat" and places[1] > 1:
            raise ConfigError(
                "Data.packing", packing, f"'whole' or 'similar', as {self.name} adds marks to each "
                "document of a row",
            )  # fmt: skip
        if denoiser.whole_documents:
            reading = Reading(0, int(denoiser.ahead), places)
        elif packing != "concat":
            reading = Reading(*self.frame, places)
        elif not order.curriculum:
            reading = Reading(0, 0, places)
        else:
            raise ConfigError(
                "Data.packing", packing, f"'whole' or 'similar', as {self.name} joins documents "
                "that follow each other in the store, and a curriculum reads them in another order",
            )  # fmt: skip
        return make_plan(packing, split, self.length, reading, order)

    def rows(
        self,
        denoiser: Denoiser,
        packing: str,
        split: Split,
        spans: Spans,
        rows: int,
        seed: int,
        ordinals: Sequence[int],
    ) -> Arrays:
        """Returns the arrays of a batch but ``source``, including those of ``extra``.

        Args:
          denoiser: one of ``denoisers``.
          packing: name of the plan that gave ``spans``.
          split: split that is read.
          spans: spans of the rows.
          rows: number of rows.
          seed: seed of the random numbers.
          ordinals: [rows] places in the source's sequence, which key the random numbers.
        """
        if packing == "concat" and not denoiser.whole_documents:
            spans = _joined(spans)
        flat, base = read_spans(split, spans)
        stop = spans.start + spans.length
        if denoiser.ahead:
            stop = np.minimum(stop + 1, spans.stop)
        first = np.searchsorted(spans.row, spans.row, side="left")
        segments: list[list[Arrays]] = [[] for _ in range(rows)]
        for i, row in enumerate(spans.row.tolist()):
            text = flat[base[i] : base[i] + stop[i] - spans.start[i]]
            segments[row].append(denoiser(text, Draw(seed, int(ordinals[row]), i - int(first[i]))))
        return self.fill(segments, rows)

    def fill(self, segments: Sequence[Sequence[Arrays]], rows: int) -> Arrays:
        """Puts segments side by side in ``rows`` rows; rows that are missing are padding."""
        length, encoder = self.length, self.encoder_length
        dtypes: dict[str, DTypeLike] = (
            dict.fromkeys(FIELDS, np.int32) | {"loss_mask": np.float32} | self.extra
        )
        arrays = {
            name: np.zeros((rows, encoder if name in ENCODER else length), dtype)
            for name, dtype in dtypes.items()
        }
        for i, row in enumerate(segments):
            column = place = 0
            filled = (segment for segment in row if len(segment["tokens"]))
            for number, segment in enumerate(filled, start=1):
                size = len(segment["tokens"])
                here = slice(column, column + size)
                arrays["positions"][i, here] = np.arange(size)
                arrays["segment_ids"][i, here] = number
                for name, values in segment.items():
                    if name in arrays and name not in ENCODER:
                        arrays[name][i, here] = values
                column = here.stop
                if encoder:
                    inputs = segment["encoder_tokens"]
                    there = slice(place, place + len(inputs))
                    arrays["encoder_tokens"][i, there] = inputs
                    arrays["encoder_segment_ids"][i, there] = number
                    arrays["encoder_positions"][i, there] = np.arange(len(inputs))
                    place = there.stop
        return arrays

    def segment_places(self, segment: Arrays) -> int:
        """Returns the places of T that a segment takes on both sides."""
        row = len(segment["tokens"])
        if not self.encoder_length:
            return row
        encoder = len(segment["encoder_tokens"])
        return max(row, -(-encoder * self.length // self.encoder_length))

    def batch(self, arrays: Arrays, source: np.ndarray) -> Batch:
        """Returns the batch of arrays that ``rows`` or ``fill`` made."""
        extra = {name: arrays[name] for name in self.extra}
        return Batch(**{name: arrays[name] for name in FIELDS}, source=source, extra=extra)

    def abstract_batch(self, rows: int) -> Batch:
        """Returns shapes and dtypes of a batch of ``rows`` rows, as jax.ShapeDtypeStruct."""
        import jax

        made = self.batch(self.fill((), rows), np.zeros(rows, np.int32))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made)

    def segments(self, document: np.ndarray, seed: int, index: int) -> Iterator[Arrays]:
        """Yields the segments of a held-out document [n], made by one denoiser drawn for it.

        Args:
          document: token ids with begin and end tokens.
          seed: seed of the random numbers.
          index: number of the document.
        """
        names = [name for name, rate in self.rates.items() if rate > 0]
        shares = np.cumsum([self.rates[name] for name in names])
        at = np.searchsorted(shares / shares[-1], Draw(seed, index).uniform(1)[0], side="right")
        denoiser = self.denoisers[names[int(at)]]
        longest = len(self.table(denoiser)) - 1
        lead, trail = (0, 0) if denoiser.whole_documents else self.frame
        text = document[lead : len(document) - trail]
        ahead = int(denoiser.ahead)
        for number, begin in enumerate(range(0, len(text) - ahead, longest), start=1):
            piece = text[begin : begin + longest + ahead]
            yield denoiser(piece, Draw(seed, index, number))


def make_row_objective(config: Denoising, tokenizer: Tokenizer, length: int) -> RowObjective | None:
    """Returns the objective that ``config`` describes; None for ``lm``.

    Args:
      config: the objective.
      tokenizer: tokenizer that has the ids it needs.
      length: ``Loop.sequence_length``: T, or of an encoder-decoder the encoder's length.

    Raises:
      ConfigError: the tokenizer lacks an id, or there are fewer sentinels than spans.
    """
    return (
        None if config.objective == "lm" else _make(config, special_ids(config, tokenizer), length)
    )


def planned_objective(config: Denoising, length: int) -> RowObjective | None:
    """Makes what ``make_row_objective`` does before there is a tokenizer: shapes hold, ids do not.

    Raises:
      ConfigError: a row of ``length`` is too short.
    """
    return None if config.objective == "lm" else _make(config, planned_ids(config, length), length)


def _make(config: Denoising, ids: SpecialIds, length: int) -> RowObjective:
    denoisers, rates = make_denoisers(config, ids)
    target = config.target_length or length
    if config.objective == "span_corruption" and config.target_length is None:
        target = _target_length(config, denoisers["spans"], length)
    both = config.encoder_decoder
    extra: dict[str, DTypeLike] = {}
    if both:
        extra = dict.fromkeys(ENCODER, np.int32)
    elif config.objective not in ("mlm", "fim"):
        extra = {"prefix": np.bool_}
        if config.objective == "blank_filling":
            extra["block_positions"] = np.int32
    made = RowObjective(
        name=config.objective,
        denoisers=denoisers,
        rates=rates,
        length=target if both else length,
        encoder_length=length if both else 0,
        extra=extra,
        frame=(ids.lead, ids.trail),
        identity=f"{config.text()} {dataclasses.replace(ids, specials=frozenset())}"
        + "".join(f" {mark}" for mark in ids.fim),
    )
    for denoiser in denoisers.values():
        _check_room(made, denoiser, length)
    return made


def _target_length(config: Denoising, denoiser: Denoiser, length: int) -> int:
    """Returns the tokens of the targets of the longest text whose inputs fit in ``length``.

    The rule is that of t5's ``random_spans_helper``.
    """
    n = np.arange(2, int(length / (1 - config.density)) + 3)
    targets, inputs = denoiser.places(n)
    fits = int(np.searchsorted(inputs, length, side="right"))
    if not fits:
        raise ConfigError(
            "Loop.sequence_length", length, f"at least {int(inputs[0])} for span corruption"
        )
    found = int(targets[fits - 1])
    # As t5: one less where that makes both lengths equal.
    return found - 1 if config.density == 0.5 and found > length else found


def _check_room(made: RowObjective, denoiser: Denoiser, length: int) -> None:
    longest = len(made.table(denoiser)) - 1
    if longest < 2:
        raise ConfigError(
            "Loop.sequence_length", length, f"room for a text of two tokens under {made.name}"
        )
    if isinstance(denoiser, SpanCorruption):
        spans = int(noise_counts(longest, denoiser.density, denoiser.mean_span)[1])
        if spans > len(denoiser.sentinels):
            raise ConfigError(
                "Denoising.sentinels", len(denoiser.sentinels),
                f"at least {spans} sentinels for pieces of {longest} tokens at a density of "
                f"{denoiser.density:g} and spans of {denoiser.mean_span:g}",
                "Reserve more (TokenizerTraining.extra_ids), give so many ids at the end of the "
                "vocabulary, or shorten Loop.sequence_length.",
            )  # fmt: skip


def check_unmasked(name: str, split: Split, made: RowObjective) -> None:
    """Raises DataError if the store has a loss mask of its own."""
    if split.masked:
        raise DataError(
            f"Source {name!r} has a loss mask of its own, which Denoising.objective = "
            f"{made.name!r} cannot follow. Use 'lm' for it."
        )


def _joined(spans: Spans) -> Spans:
    """Joins the pieces of each row, which follow each other in the store, into one."""
    first = np.flatnonzero(np.diff(spans.row, prepend=-1))
    length = np.add.reduceat(spans.length, first) if len(first) else spans.length
    start = spans.start[first]
    return Spans(spans.row[first], start, length, start + length)
