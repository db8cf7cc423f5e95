"""Denoisers: each makes a segment of a piece of text, and says how many places the segment takes.

The places of a piece of n tokens do not depend on what is drawn, so that rows are packed before
they are corrupted and no token is ever cut off.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Protocol

import numpy as np

from t5x_llm.data import corruption
from t5x_llm.data.corruption import Arrays, Draw
from t5x_llm.data.denoising import Denoising, SpecialIds


class Denoiser(Protocol):
    """Makes a segment of a piece of text.

    Attributes:
      whole_documents: pieces keep documents' begin and end tokens, and are never of two documents.
      ahead: a piece also reads the token that follows it in its document.
    """

    whole_documents: ClassVar[bool]
    ahead: ClassVar[bool]

    def places(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the places that a piece of n tokens takes in a row, and on its encoder's side."""
        ...

    def __call__(self, text: np.ndarray, draw: Draw) -> Arrays:
        """Returns the arrays of the segment that ``text`` becomes."""
        ...


@dataclasses.dataclass(frozen=True)
class MaskedTokens:
    """Denoiser of BERT; see ``corruption.mask_tokens``."""

    whole_documents: ClassVar[bool] = True
    ahead: ClassVar[bool] = False
    config: Denoising
    mask: int
    ordinary: np.ndarray  # [V] bool, ids that may be masked and put in
    alternatives: np.ndarray

    def places(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return n, 0 * n

    def __call__(self, text: np.ndarray, draw: Draw) -> Arrays:
        shares = (self.config.mask_share, self.config.random_share)
        tokens, chosen = corruption.mask_tokens(
            text, self.ordinary[text], self.config.density, self.mask, shares, self.alternatives,
            draw,
        )  # fmt: skip
        return {"tokens": tokens, "targets": text, "loss_mask": chosen.astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class PrefixDenoiser:
    """Denoiser that predicts the rest of a document behind a prefix, at least one token."""

    whole_documents: ClassVar[bool] = True
    ahead: ClassVar[bool] = True

    def places(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return n, 0 * n

    def __call__(self, text: np.ndarray, draw: Draw) -> Arrays:
        split = 1 + int(draw.below(max(len(text) - 1, 1), 1)[0])
        return corruption.shifted(text[:split], text[split:])


@dataclasses.dataclass(frozen=True)
class FillInMiddle:
    """Denoiser that moves the middle of a piece to its end and predicts all of it.

    Begin and end tokens of the document stay where they are, so that an end token follows the
    middle of a document's last piece.
    """

    whole_documents: ClassVar[bool] = True
    ahead: ClassVar[bool] = True
    marks: tuple[int, ...]
    suffix_first: float
    begin: int | None
    end: int | None

    def places(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return n + 3, 0 * n

    def __call__(self, text: np.ndarray, draw: Draw) -> Arrays:
        first = int(len(text) > 0 and text[0] == self.begin)
        stop = len(text) - int(len(text) > first and text[-1] == self.end)
        body = corruption.middle_last(text[first:stop], self.marks, self.suffix_first, draw)
        return _predicted(np.concatenate([text[:first], body, text[stop:]]))


@dataclasses.dataclass(frozen=True)
class PlainText:
    """Denoiser that leaves a piece as it is and predicts all of it."""

    whole_documents: ClassVar[bool] = True
    ahead: ClassVar[bool] = True

    def places(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return n, 0 * n

    def __call__(self, text: np.ndarray, draw: Draw) -> Arrays:
        return _predicted(text)


def _predicted(text: np.ndarray) -> Arrays:
    ones = np.ones(max(len(text) - 1, 0), np.float32)
    return {"tokens": text[:-1], "targets": text[1:], "loss_mask": ones}


@dataclasses.dataclass(frozen=True)
class Framed:
    """Denoiser with inputs and targets, in one of two forms, with mode and end tokens."""

    whole_documents: ClassVar[bool] = False
    ahead: ClassVar[bool] = False
    mode: int | None
    start: int | None
    end: int
    encoder_decoder: bool

    def frame(self, inputs: np.ndarray, targets: np.ndarray) -> Arrays:
        """Returns the segment of inputs and targets."""
        head = [] if self.mode is None else [self.mode]
        targets = np.concatenate([targets, [self.end]])
        if self.encoder_decoder:
            assert self.start is not None
            return corruption.encoded(
                np.concatenate([head, inputs, [self.end]]), targets, self.start
            )
        return corruption.shifted(np.concatenate([head, inputs]), targets)

    def framed(self, inputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns ``places`` for inputs and targets of at most these lengths."""
        head = int(self.mode is not None)
        if self.encoder_decoder:
            return targets + 1, head + inputs + 1
        return head + inputs + targets, 0 * targets


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Framed):
    """Denoiser of T5: spans become sentinels, and the targets are the spans."""

    density: float
    mean_span: float
    sentinels: np.ndarray

    def places(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        noise, spans = corruption.noise_counts(n, self.density, self.mean_span)
        return self.framed(n - noise + spans, noise + spans)

    def __call__(self, text: np.ndarray, draw: Draw) -> Arrays:
        mask = corruption.random_spans_mask(len(text), self.density, self.mean_span, draw)
        inputs, targets = (
            corruption.spans_to_sentinels(text, part, self.sentinels) for part in (mask, ~mask)
        )
        # A lone token is kept, so the targets are empty (t5 would put a sentinel for it).
        return self.frame(inputs, targets if mask.any() else targets[:0])


@dataclasses.dataclass(frozen=True)
class SuffixDenoiser(Framed):
    """Denoiser that predicts the end of the text: at most ``share`` of it, at least one token."""

    share: float

    def _longest(self, n: np.ndarray | int) -> np.ndarray:
        n = np.asarray(n)
        return np.maximum(np.minimum(n - 1, np.floor(n * self.share).astype(np.int64)), 1)

    def places(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.encoder_decoder:
            return self.framed(np.maximum(n - 1, 0), self._longest(n))
        return self.framed(n, 0 * n)  # wherever it is split

    def __call__(self, text: np.ndarray, draw: Draw) -> Arrays:
        split = len(text) - 1 - int(draw.below(int(self._longest(len(text))), 1)[0])
        return self.frame(text[:split], text[split:])


@dataclasses.dataclass(frozen=True)
class Blanks:
    """Denoiser of GLM: spans or, with ``mean_span`` None, an end of the text of any length."""

    whole_documents: ClassVar[bool] = False
    ahead: ClassVar[bool] = False
    mask: int
    start: int
    end: int
    density: float
    mean_span: float | None

    def places(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.mean_span is None:
            return n + 2, 0 * n
        return n + 2 * corruption.noise_counts(n, self.density, self.mean_span)[1], 0 * n

    def __call__(self, text: np.ndarray, draw: Draw) -> Arrays:
        if self.mean_span is None:
            gone = 1 + int(draw.below(len(text), 1)[0])
            mask = np.arange(len(text)) >= len(text) - gone
        else:
            mask = corruption.poisson_spans_mask(len(text), self.density, self.mean_span, draw)
        return corruption.blanks(text, mask, self.mask, self.start, self.end, draw)


def make_denoisers(
    config: Denoising, ids: SpecialIds
) -> tuple[dict[str, Denoiser], dict[str, float]]:
    """Returns the denoisers of an objective, and the share of rows of each."""
    goal, sentinels = config.objective, np.array(ids.sentinels, np.int64)
    framed: dict[str, Any] = {"start": ids.start, "end": ids.end}
    framed["encoder_decoder"] = config.encoder_decoder
    if goal == "mlm":
        ordinary = np.ones(ids.vocab_size, bool)
        ordinary[list(ids.specials)] = False
        assert ids.mask is not None
        made = MaskedTokens(config, ids.mask, ordinary, np.flatnonzero(ordinary))
        return {"masks": made}, {"masks": 1.0}
    if goal == "fim":
        middle = FillInMiddle(ids.fim, config.suffix_first, ids.start, ids.end)
        pair: dict[str, Denoiser] = {"fim": middle, "plain": PlainText()}
        return pair, {"fim": config.fim_rate, "plain": 1 - config.fim_rate}
    if goal == "span_corruption":
        spans = SpanCorruption(
            None, **framed, density=config.density, mean_span=config.mean_span, sentinels=sentinels
        )
        return {"spans": spans}, {"spans": 1.0}
    if goal == "prefix_lm":
        whole = (
            SuffixDenoiser(None, **framed, share=1.0)
            if config.encoder_decoder
            else PrefixDenoiser()
        )
        return {"prefix": whole}, {"prefix": 1.0}
    if goal == "blank_filling":
        assert ids.mask is not None and ids.gmask is not None
        assert ids.start_of_piece is not None and ids.end_of_piece is not None
        marks = (ids.start_of_piece, ids.end_of_piece, config.density)
        two: dict[str, Denoiser] = {
            "spans": Blanks(ids.mask, *marks, config.mean_span),
            "end": Blanks(ids.gmask, *marks, None),
        }
        return two, {"spans": 1 - config.long_rate, "end": config.long_rate}
    several: dict[str, Denoiser] = {}
    rates: dict[str, float] = {}
    for mode, mean, density in config.ul2:
        name = f"{mode}_{mean:g}_{density:g}"
        several[name] = SpanCorruption(
            ids.modes.get(mode), **framed, density=density, mean_span=mean, sentinels=sentinels
        )
        rates[name] = (1 - config.suffix_rate) / len(config.ul2)
    several["S"] = SuffixDenoiser(ids.modes.get("S"), **framed, share=config.suffix_share)
    rates["S"] = config.suffix_rate
    return several, rates
