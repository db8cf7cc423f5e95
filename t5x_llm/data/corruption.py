"""Corruption of text: functions of a segment's tokens and of random numbers keyed by its place.

The functions take arrays and know of no rows or batches (``denoisers`` does). All random numbers
come from a ``Draw``, so that the same place in the stream is corrupted in the same way in every
process, and the next epoch, which has other places, is corrupted anew.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

Arrays = dict[str, np.ndarray]


class Draw:
    """Random numbers of one segment, from raw Philox output: the same in every version of NumPy.

    Args:
      seed: seed of the source.
      ordinal: number of the row among the rows that the source gives.
      segment: number of the segment in the row.
    """

    def __init__(self, seed: int, ordinal: int, segment: int = 0):
        self._bits = np.random.Philox(
            key=np.array([seed, ordinal], np.uint64),
            counter=np.array([0, 0, 0, segment], np.uint64),
        )

    def uniform(self, count: int) -> np.ndarray:
        """Draws [count] float64 in [0, 1)."""
        return (self._bits.random_raw(count) >> np.uint64(11)) * 2.0**-53

    def below(self, limit: int, count: int) -> np.ndarray:
        """Draws [count] int64 in [0, limit)."""
        return (self.uniform(count) * limit).astype(np.int64)

    def order(self, count: int) -> np.ndarray:
        """Draws a permutation [count]."""
        return np.argsort(self._bits.random_raw(count), kind="stable")

    def parts(self, items: int, count: int) -> np.ndarray:
        """Draws [count] positive lengths that add up to ``items``, all lists equally likely."""
        cuts = np.sort(self.order(items - 1)[: count - 1]) + 1
        return np.diff(np.concatenate([[0], cuts, [items]]))


def noise_counts(
    length: ArrayLike, density: float, mean_span: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of noise tokens and of noise spans in a text of ``length`` tokens.

    They are those of t5's ``random_spans_noise_mask``, rounded in float32 and half to even. A
    single token stays as it is.

    Args:
      length: [...] integers.
      density: share of the tokens that are noise.
      mean_span: mean tokens of a span.
    """
    length = np.asarray(length, np.int64)
    longer = np.maximum(length, 2)
    noise = np.rint(longer.astype(np.float32) * np.float32(density)).astype(np.int64)
    noise = np.clip(noise, 1, longer - 1)
    spans = np.rint(noise.astype(np.float32) / np.float32(mean_span)).astype(np.int64)
    # t5 leaves the upper bound out: there, many short spans at a high density do not fit.
    spans = np.clip(spans, 1, np.minimum(noise, longer - noise))
    return np.where(length < 2, 0, noise), np.where(length < 2, 0, spans)


def random_spans_mask(length: int, density: float, mean_span: float, draw: Draw) -> np.ndarray:
    """Draws the noise mask [length] bool of T5 (arXiv 1910.10683, section 3.1.4).

    Kept and noise spans alternate, a kept one first; all such masks with the ``noise_counts`` are
    equally likely.
    """
    noise, spans = (int(x) for x in noise_counts(length, density, mean_span))
    if not spans:
        return np.zeros(length, bool)
    lengths = np.empty(2 * spans, np.int64)
    lengths[1::2] = draw.parts(noise, spans)
    lengths[::2] = draw.parts(length - noise, spans)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def poisson_spans_mask(length: int, density: float, mean_span: float, draw: Draw) -> np.ndarray:
    """Draws a mask [length] bool of spans of Poisson lengths (GLM, arXiv 2103.10360, section 2.1).

    GLM draws lengths until the density is reached. Here the ``noise_counts`` are fixed, so that
    rows can be packed, and the lengths (less one, as none is empty) are Poisson given their sum. At
    least one token is between two spans.
    """
    noise, spans = (int(x) for x in noise_counts(length, density, mean_span))
    if not spans:
        return np.zeros(length, bool)
    extra = np.bincount(draw.below(spans, noise - spans), minlength=spans)
    kept = draw.parts(length - noise + 2, spans + 1)  # two tokens more: the ends may be empty
    kept[0] -= 1
    kept[-1] -= 1
    lengths = np.empty(2 * spans + 1, np.int64)
    lengths[::2], lengths[1::2] = kept, extra + 1
    return np.repeat(np.arange(2 * spans + 1) % 2 == 1, lengths)


def span_bounds(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first index of every run of True in ``mask``, and the index after its last."""
    edges = np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def spans_to_sentinels(tokens: np.ndarray, mask: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """Returns ``tokens`` with the i-th run of True replaced by ``sentinels[i]``.

    With the noise mask it makes the inputs, with its complement the targets of span corruption
    (``noise_span_to_unique_sentinel`` and ``nonnoise_span_to_unique_sentinel`` of t5).
    """
    first, _ = span_bounds(mask)
    out = tokens.copy()
    out[first] = sentinels[: len(first)]
    keep = ~mask
    keep[first] = True
    return out[keep]


def mask_tokens(
    tokens: np.ndarray,
    maskable: np.ndarray,
    density: float,
    mask_id: int,
    shares: tuple[float, float],
    alternatives: np.ndarray,
    draw: Draw,
) -> tuple[np.ndarray, np.ndarray]:
    """Masks tokens for masked language modelling (BERT, arXiv 1810.04805, section 3.1).

    Args:
      tokens: [n] the text.
      maskable: [n] bool, tokens that may be chosen.
      density: share of those that is chosen; rounded up or down at random, so that it is so on
        average, without replacement.
      mask_id: the mask.
      shares: of the chosen, those that the mask replaces and those that a random token replaces;
        the others stay as they are, 0.8 and 0.1 in the paper.
      alternatives: the ids from which random tokens are drawn.
      draw: random numbers.

    Returns:
      ([n] corrupted tokens, [n] bool, which were chosen).
    """
    places = np.flatnonzero(maskable)
    count = int(len(places) * density + draw.uniform(1)[0])
    places = places[draw.order(len(places))[:count]]
    chosen = np.zeros(len(tokens), bool)
    chosen[places] = True
    fate = draw.uniform(count)
    other = alternatives[draw.below(len(alternatives), count)]
    by_mask, by_other = shares[0], shares[0] + shares[1]
    out = tokens.copy()
    kept = tokens[places]
    out[places] = np.where(fate < by_mask, mask_id, np.where(fate < by_other, other, kept))
    return out, chosen


def middle_last(
    text: np.ndarray, marks: tuple[int, ...], suffix_first: float, draw: Draw
) -> np.ndarray:
    """Moves the middle of a text to its end (arXiv 2207.14255, section 3).

    Two cuts, all pairs equally likely, make prefix, middle and suffix, of which any may be empty.

    Args:
      text: [n] the tokens.
      marks: those before prefix, suffix and middle.
      suffix_first: share of the texts that become prefix mark, suffix mark, suffix, middle mark,
        prefix, middle (SPM); the others become prefix mark, prefix, suffix mark, suffix, middle
        mark, middle (PSM).
      draw: random numbers.

    Returns:
      [n + 3] tokens.
    """
    first, second = np.sort(draw.below(len(text) + 1, 2))
    before, middle, after = text[:first], text[first:second], text[second:]
    prefix, suffix, hole = ([mark] for mark in marks)
    if draw.uniform(1)[0] < suffix_first:
        return np.concatenate([prefix, suffix, after, hole, before, middle])
    return np.concatenate([prefix, before, suffix, after, hole, middle])


def shifted(inputs: np.ndarray, targets: np.ndarray) -> Arrays:
    """Makes a decoder's segment, which sees all of ``inputs`` [n] and predicts ``targets`` [m].

    Returns:
      tokens, targets, loss_mask, prefix, [n + m - 1]. If there are no inputs the first target is
      read and not predicted.
    """
    text = np.concatenate([inputs, targets])
    place = np.arange(len(text) - 1)
    return {
        "tokens": text[:-1],
        "targets": text[1:],
        "loss_mask": (place >= len(inputs) - 1).astype(np.float32),
        "prefix": place < len(inputs),
    }


def encoded(inputs: np.ndarray, targets: np.ndarray, start_id: int) -> Arrays:
    """Makes an encoder-decoder's segment: tokens, targets, loss_mask [m], encoder_tokens [n]."""
    return {
        "tokens": np.concatenate([[start_id], targets[:-1]]),
        "targets": targets,
        "loss_mask": np.ones(len(targets), np.float32),
        "encoder_tokens": inputs,
    }


def blanks(
    tokens: np.ndarray, mask: np.ndarray, mask_id: int, start_id: int, end_id: int, draw: Draw
) -> Arrays:
    """Makes a segment of autoregressive blank filling (GLM, arXiv 2103.10360, 2.1 and 2.2.3).

    Part A is the text with every span of ``mask`` replaced by ``mask_id``; part B holds the spans
    in random order, each begun by ``start_id`` and predicted up to ``end_id``.

    Returns:
      tokens, targets, loss_mask, prefix (True on part A), positions (of the span's mask in part B)
      and block_positions, [n + 2 spans] each.
    """
    first, stop = span_bounds(mask)
    keep = ~mask
    keep[first] = True
    text = tokens.copy()
    text[first] = mask_id
    a = text[keep]
    where = np.cumsum(keep)[first] - 1  # places of the masks in part A
    order = draw.order(len(first))
    size = (stop - first)[order] + 1
    within = np.arange(int(size.sum())) - np.repeat(np.cumsum(size) - size, size)
    at = np.repeat(first[order], size) + within  # of the token that each place predicts
    last = within == np.repeat(size, size) - 1
    none = np.zeros(len(a), np.int64)
    ahead = tokens[np.minimum(at, len(tokens) - 1)]
    return {
        "tokens": np.concatenate([a, np.where(within == 0, start_id, tokens[at - 1])]),
        "targets": np.concatenate([none, np.where(last, end_id, ahead)]),
        "loss_mask": np.repeat(np.float32([0, 1]), [len(a), len(at)]),
        "prefix": np.repeat([True, False], [len(a), len(at)]),
        "positions": np.concatenate([np.arange(len(a)), np.repeat(where[order], size)]),
        "block_positions": np.concatenate([none, within + 1]),
    }
