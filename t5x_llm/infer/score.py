"""Log-probabilities of given continuations: what evaluation, and whoever compares texts, asks for.

A request is a context and a continuation; its scores are those of the continuation's tokens, each
predicted from the context and the tokens before it. Requests share rows where the model allows it
(segments do not see each other), so a sum is one of a request, never one of a row.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from t5x_llm.core.errors import ConfigError
from t5x_llm.data.batch import Batch
from t5x_llm.infer.mesh_scope import MeshScope
from t5x_llm.models.model import Model
from t5x_llm.parallel import Rules, check_divisible, constrain, global_batch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32

_OPEN_ROWS = 32
_BUCKET = 32
W = TypeVar("W")


class Request(NamedTuple):
    """A text of which the end is scored.

    Attributes:
      context: token ids before it, at least one (an encoder-decoder's encoder reads them).
      continuation: token ids that are scored; without any the scores are empty.
    """

    context: Sequence[int]
    continuation: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Score:
    """The scores of one request.

    Attributes:
      log_probs: [len(continuation)] float32, natural logarithms of the tokens' probabilities.
      greedy: [len(continuation)] bool, where the token is the likeliest one.
    """

    log_probs: Float32[np.ndarray, " T"]
    greedy: Bool[np.ndarray, " T"]

    @property
    def total(self) -> float:
        """Log-probability of the whole continuation, summed in float64."""
        return float(np.sum(self.log_probs, dtype=np.float64))


@dataclasses.dataclass(frozen=True)
class _Segment:
    """A request as part of a row: the ``first`` targets are not scored."""

    index: int
    tokens: np.ndarray
    targets: np.ndarray
    first: int
    read: np.ndarray | None  # by an encoder


def pack(windows: Iterable[W], length: int, places: Callable[[W], int]) -> Iterator[list[W]]:
    """Puts windows together in rows of at most ``length`` places, first fit over a few rows.

    ``places`` tells how many a window takes.
    """
    rows: list[list[W]] = []
    room: list[int] = []
    for window in windows:
        size = places(window)
        at = next((i for i, free in enumerate(room) if free >= size), None)
        if at is None:
            if len(rows) == _OPEN_ROWS:
                fullest = min(range(len(room)), key=room.__getitem__)
                yield rows.pop(fullest)
                room.pop(fullest)
            rows.append([])
            room.append(length)
            at = len(rows) - 1
        rows[at].append(window)
        room[at] -= size
    yield from rows


@functools.partial(jax.jit, static_argnames=("model", "scope"))
def _log_probs(
    model: Model, scope: MeshScope, params: Any, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    with scope.current():
        found, best = model.log_probs(params, batch)
        return constrain(found, (None, None)), constrain(best, (None, None))


class Scorer:
    """Scores requests by one compiled program, batch by batch.

    Args:
      model: the model.
      length: T, the most tokens that are read of a request (of either side of an encoder-decoder).
      batch_size: rows computed at once; the mesh must divide it.
      scope: where it runs.

    Raises:
      ConfigError: the mesh does not divide the batch, T is too long for the model, or the model is
        an encoder.
    """

    def __init__(
        self,
        model: Model,
        length: int,
        batch_size: int = 8,
        scope: MeshScope | None = None,
    ):
        self.scope = scope or MeshScope()
        mesh, rules = self.scope.mesh, self.scope.rules
        if mesh is not None and rules is not None:
            check_divisible(mesh, rules, "batch", "batch_size", batch_size)
        if model.max_length is not None and length > model.max_length:
            raise ConfigError(
                "length",
                length,
                f"at most {model.max_length}, the positions this model has learned",
            )
        if model.config.kind == "encoder":
            raise ConfigError("model", "an encoder", "a decoder or an encoder-decoder")
        self.model, self.length, self.batch_size = model, length, batch_size
        self._reads = model.config.kind == "encoder_decoder"

    def __call__(self, params: Any, requests: Iterable[Request]) -> Iterator[tuple[int, Score]]:
        """Yields (number of the request, its score), each once, in the order they are ready.

        Args:
          params: on the mesh of the scope, if it has one.
          requests: read as needed, a few batches ahead.

        Raises:
          ConfigError: a request is longer than T, or has no context.
        """
        segments = (self._segment(i, request) for i, request in enumerate(requests))
        pending: collections.deque[tuple[Any, list[list[_Segment]]]] = collections.deque()
        rows: list[list[_Segment]] = []
        for row in pack(segments, self.length, self._places):
            rows.append(row)
            if len(rows) == self.batch_size:
                pending.append((self._run(params, rows), rows))
                rows = []
                if len(pending) > 2:
                    yield from _collect(*pending.popleft())
        if rows:
            pending.append((self._run(params, rows), rows))
        while pending:
            yield from _collect(*pending.popleft())

    def _places(self, segment: _Segment) -> int:
        """Tokens of a row that a request takes; an encoder reads one request a row."""
        return self.length if self._reads else len(segment.tokens)

    def _segment(self, index: int, request: Request) -> _Segment:
        context, scored = (np.asarray(x, np.int32).reshape(-1) for x in request)
        if self._reads:
            start = np.asarray([self.model.config.start], np.int32)
            tokens = np.concatenate([start, scored[:-1]])[: len(scored)]
            segment = _Segment(index, tokens, scored, 0, context)
        elif len(scored) == 0:
            return _Segment(index, scored, scored, 0, None)
        else:
            ids = np.concatenate([context, scored])
            segment = _Segment(index, ids[:-1], ids[1:], len(context) - 1, None)
        if len(context) == 0:
            raise ConfigError(
                f"requests[{index}]",
                "no context",
                "a context of at least one token",
                "The first token of a text is predicted from begin-of-text.",
            )
        size = max(len(segment.tokens), len(context) if self._reads else 0)
        if size > self.length:
            raise ConfigError(
                f"requests[{index}]",
                f"{size} tokens to read",
                f"at most length = {self.length}",
                "Shorten its context.",
            )
        return segment

    def _run(self, params: Any, rows: list[list[_Segment]]) -> Any:
        batch, place = _batch(rows, self.batch_size, self.length), self.scope
        if place.mesh is not None and place.rules is not None:
            batch = global_batch(
                lambda part: jax.tree.map(lambda x: x[part], batch),
                self.batch_size,
                place.mesh,
                place.rules,
            )
        return _log_probs(self.model, place, params, batch)


def _batch(rows: list[list[_Segment]], size: int, length: int) -> Batch:
    """Rows as a Batch of NumPy arrays [size, length]; rows that are missing are padding."""
    tokens, targets, positions, segments, *read = np.zeros((7, size, length), np.int32)
    mask = np.zeros((size, length), np.float32)
    encoded = False
    for i, row in enumerate(rows):
        at = 0
        for number, segment in enumerate(row, start=1):
            here = slice(at, at + len(segment.tokens))
            tokens[i, here], targets[i, here] = segment.tokens, segment.targets
            positions[i, here] = np.arange(len(segment.tokens))
            segments[i, here] = number
            mask[i, at + segment.first : here.stop] = 1.0
            at = here.stop
            if segment.read is not None:
                encoded, count = True, len(segment.read)
                read[0][i, :count], read[1][i, :count] = segment.read, number
                read[2][i, :count] = np.arange(count)
    names = ("encoder_tokens", "encoder_segment_ids", "encoder_positions")
    extra = dict(zip(names, read, strict=True)) if encoded else {}
    source = np.zeros(size, np.int32)
    return Batch(tokens, targets, positions, segments, mask, source, extra)


def _collect(
    found: tuple[jax.Array, jax.Array], rows: list[list[_Segment]]
) -> Iterator[tuple[int, Score]]:
    log_probs, best = (np.asarray(x) for x in found)
    for i, row in enumerate(rows):
        at = 0
        for segment in row:
            end = at + len(segment.tokens)
            scored = slice(at + segment.first, end)
            yield segment.index, Score(log_probs[i, scored].copy(), best[i, scored].copy())
            at = end


def score(
    model: Model,
    params: Any,
    requests: Sequence[Request],
    *,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    batch_size: int = 8,
    length: int | None = None,
) -> list[Score]:
    """Scores continuations of contexts.

    Args:
      model: its policy's compute dtype is used; log-probabilities are float32.
      params: parameter tree; on ``mesh``, laid out by ``rules``, if there is one.
      requests: pairs of token ids, see ``Request``.
      mesh: runs on all its devices; None for the default device.
      rules: of the mesh.
      batch_size: rows computed at once; the mesh must divide it.
      length: the most tokens read of a request; by default as many as the longest needs.

    Returns:
      The score of each request, in order.

    Raises:
      ConfigError: see ``Scorer``.
    """
    requests = [Request(*request) for request in requests]
    if length is None:
        answers = model.config.kind == "encoder_decoder"
        longest = max(
            (max(map(len, r)) if answers else sum(map(len, r)) - 1 for r in requests), default=1
        )
        length = -(-max(longest, 1) // _BUCKET) * _BUCKET
        if model.max_length is not None:
            length = min(length, model.max_length)
    scorer = Scorer(model, length, batch_size, MeshScope(mesh, rules))
    found = dict(scorer(params, requests))
    return [found[i] for i in range(len(requests))]
