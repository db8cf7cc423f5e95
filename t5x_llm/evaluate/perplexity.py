"""Loss, perplexity and bits per byte of held-out documents, each read in full.

A document longer than T tokens is cut into windows of T; every token but the first of the document
(which is begin-of-text, where the tokenizer has one) is predicted exactly once, end-of-text
included. Context does not reach across windows, so the first tokens of a window are predicted from
little: figures at a smaller T are pessimistic and compare only with the same T.

    loss = sum of nats / predicted tokens
    perplexity = exp(loss)
    bits per byte = sum of nats / ln 2 / UTF-8 bytes of the documents

Bits per byte does not depend on the tokenizer and compares with a compressor's. Of conversations
the tokens that ``Chat.loss`` names are measured, the assistant's, and the bytes are those of them.

Under another objective than next-token prediction every document is corrupted as in training, in
pieces that fit a row, the same way each time (keyed by source and document); the loss is that of
what is then predicted, and there are no bits per byte, as not all of the text is.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data.batch import Batch
from t5x_llm.data.row_objective import RowObjective
from t5x_llm.infer.mesh_scope import MeshScope
from t5x_llm.infer.score import Request, Scorer, pack
from t5x_llm.models.model import Model
from t5x_llm.parallel import Rules, check_divisible, global_batch, replicated, use
from t5x_llm.train.hooks import Results


class Documents(Protocol):
    """Documents with begin and end tokens as trained on; ``data.store.Split`` is one.

    Attributes:
      tokens: of all documents together.
    """

    tokens: int

    def __len__(self) -> int:
        """Documents."""

    def document(self, index: int) -> np.ndarray:
        """[n] token ids of one document."""

    def document_bytes(self, index: int) -> int:
        """UTF-8 bytes of its text."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out documents of one source.

    Attributes:
      name: of the source.
      documents: see ``Documents``.
      language: sources of one language are also summed up under it; "" for none.
      measured: of a document's index, which of its tokens [n] are measured (1, else 0); None where
        all are.
    """

    name: str
    documents: Documents
    language: str = ""
    measured: Callable[[int], np.ndarray] | None = None


def windows(document: np.ndarray, length: int) -> Iterator[Request]:
    """Yields windows of at most ``length`` inputs, that predict the document but its first token.

    What a window predicts follows its first token.
    """
    for start in range(0, len(document) - 1, length):
        yield Request(document[start : start + 1], document[start + 1 : start + length + 1])


@dataclasses.dataclass
class _Sums:
    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0
    documents: int = 0

    def measures(self, per_byte: bool = True) -> dict[str, float]:
        if not self.tokens:
            return {"documents": self.documents, "tokens": 0, "bytes": self.bytes}
        loss = self.nats / self.tokens
        bits = self.nats / math.log(2) / max(self.bytes, 1)
        return {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            **({"bits_per_byte": bits} if per_byte else {}),
            "tokens": self.tokens,
            "bytes": self.bytes,
            "documents": self.documents,
        }


class Evaluator:
    """Evaluates parameters of one model on one mesh; compiles once.

    Args:
      model: the model.
      mesh: the mesh that the parameters lie on.
      rules: its rules.
      length: T, tokens of a window.
      batch_size: rows evaluated at once; the mesh must divide it.
      objective: what documents are made into, for ``length``; None for next-token prediction.

    Raises:
      ConfigError: if the mesh does not divide the batch, or T is too long for the model.
    """

    def __init__(
        self,
        model: Model,
        mesh: Mesh,
        rules: Rules,
        length: int,
        batch_size: int = 8,
        objective: RowObjective | None = None,
    ):
        check_divisible(mesh, rules, "batch", "Evaluation.batch_size", batch_size)
        if model.max_length is not None and length > model.max_length:
            raise ConfigError(
                "sequence_length",
                length,
                f"at most {model.max_length}, the positions this model has learned",
            )
        self.mesh, self.rules, self.length, self.batch_size = mesh, rules, length, batch_size
        self.objective = objective
        if objective is None:
            self._scorer = Scorer(model, length, batch_size, MeshScope(mesh, rules))
            return

        def nats(params: Any, batch: Batch) -> jax.Array:
            with use(mesh, rules):
                _, aux = model.loss(params, batch, 0.0)
                return jnp.sum(aux["nll"], axis=-1)

        self._nats = jax.jit(nats, out_shardings=replicated(mesh))

    def __call__(
        self,
        params: Any,
        held_out: Sequence[HeldOut],
        limit: int | None = None,
        progress: bool | None = None,
    ) -> Results:
        """Evaluates; the same input gives the same figures.

        Args:
          params: on the mesh.
          held_out: by source.
          limit: of every source only the first documents that together reach so many tokens; None
            for all.
          progress: shows a bar; by default if the work is long and stderr is a terminal.

        Returns:
          {source: measures}, then {language: measures} where a language has several sources, then
          ``all`` where there are several sources. Measures: loss, perplexity, bits_per_byte
          (without an objective), tokens (predicted), bytes, documents.

        Raises:
          DataError: if there is not one held-out document.
        """
        sums = {source.name: _Sums() for source in held_out}
        total = sum(_tokens(source, limit) for source in held_out)
        bar = _bar(total, progress)
        if self.objective is None:
            self._score(params, held_out, sums, limit, bar)
        else:
            self._denoise(params, held_out, sums, limit, bar)
        bar.close()
        if not any(s.documents for s in sums.values()):
            raise DataError(
                "There is no held-out document in "
                f"{', '.join(sums) or 'any source'}. Hold out more: Source.validation_fraction."
            )
        return _results(held_out, sums, per_byte=self.objective is None)

    def _score(
        self,
        params: Any,
        held_out: Sequence[HeldOut],
        sums: dict[str, _Sums],
        limit: int | None,
        bar: Any,
    ) -> None:
        """Adds up next-token prediction, window by window."""
        names: dict[int, tuple[str, np.ndarray | None]] = {}
        count = itertools.count()

        def requests() -> Iterator[Request]:
            for source in held_out:
                for i, document in _read(source, sums[source.name], limit, bar):
                    chosen = source.measured(i)[1:] if source.measured is not None else None
                    predicted = max(len(document) - 1, 0)
                    sums[source.name].tokens += predicted if chosen is None else int(chosen.sum())
                    for window in windows(document, self.length):
                        own = None
                        if chosen is not None:
                            size = len(window.continuation)
                            own, chosen = chosen[:size], chosen[size:]
                        names[next(count)] = source.name, own
                        yield window

        for number, score in self._scorer(params, requests()):
            name, own = names.pop(number)
            if own is None:
                sums[name].nats -= score.total
            else:
                sums[name].nats -= float(np.sum(score.log_probs * own, dtype=np.float64))

    def _denoise(
        self,
        params: Any,
        held_out: Sequence[HeldOut],
        sums: dict[str, _Sums],
        limit: int | None,
        bar: Any,
    ) -> None:
        """Adds up another objective, row by row; a row holds one source alone."""
        pending: collections.deque[tuple[jax.Array, list[str]]] = collections.deque()

        def collect(lag: int) -> None:
            while len(pending) > lag:
                nats, names = pending.popleft()
                for value, name in zip(np.asarray(nats, np.float64), names, strict=False):
                    sums[name].nats += float(value)

        rows: list[list[Any]] = []
        names: list[str] = []
        for name, row in self._rows(held_out, sums, limit, bar):
            rows.append(row)
            names.append(name)
            if len(rows) == self.batch_size:
                pending.append((self._run(params, rows), names))
                rows, names = [], []
                collect(2)
        if rows:
            pending.append((self._run(params, rows), names))
        collect(0)

    def _rows(
        self, held_out: Sequence[HeldOut], sums: dict[str, _Sums], limit: int | None, bar: Any
    ) -> Iterator[tuple[str, list[Any]]]:
        """(source, row); counts what it reads."""
        goal = self.objective
        assert goal is not None
        for source in held_out:
            count = sums[source.name]
            digest = hashlib.sha256(source.name.encode()).digest()
            seed = int.from_bytes(digest[:8], "little")

            def segments(
                source: HeldOut = source, count: _Sums = count, seed: int = seed
            ) -> Iterator[Any]:
                for i, document in _read(source, count, limit, bar):
                    for segment in goal.segments(document, seed, i):
                        count.tokens += int(segment["loss_mask"].sum())
                        yield segment

            for row in pack(segments(), goal.length, goal.segment_places):
                yield source.name, row

    def _run(self, params: Any, rows: Sequence[list[Any]]) -> jax.Array:
        size, goal = self.batch_size, self.objective
        assert goal is not None
        batch = goal.batch(goal.fill(rows, size), np.zeros(size, np.int32))
        placed = global_batch(
            lambda part: jax.tree.map(lambda x: x[part], batch),
            self.batch_size,
            self.mesh,
            self.rules,
        )
        return self._nats(params, placed)


def _read(
    source: HeldOut, count: _Sums, limit: int | None, bar: Any
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (number, tokens) of documents until ``limit``; counts documents and bytes."""
    read = 0
    for i in range(len(source.documents)):
        if limit is not None and read >= limit:
            return
        document = np.asarray(source.documents.document(i))
        read += max(len(document) - 1, 0)
        count.bytes += int(source.documents.document_bytes(i))
        count.documents += 1
        bar.update(len(document))
        yield i, document


def evaluate(
    model: Model,
    params: Any,
    held_out: Sequence[HeldOut],
    mesh: Mesh,
    rules: Rules,
    length: int,
    batch_size: int = 8,
    limit: int | None = None,
    objective: RowObjective | None = None,
) -> Results:
    """One evaluation; see ``Evaluator``."""
    run = Evaluator(model, mesh, rules, length, batch_size, objective)
    return run(params, held_out, limit)


def _results(held_out: Sequence[HeldOut], sums: dict[str, _Sums], per_byte: bool) -> Results:
    results = {name: s.measures(per_byte) for name, s in sums.items()}
    groups: dict[str, list[str]] = {}
    for source in held_out:
        if source.language:
            groups.setdefault(source.language, []).append(source.name)
    if len(held_out) > 1:
        groups["all"] = [source.name for source in held_out]
    for group, names in groups.items():
        if group in results or (len(names) < 2):
            continue
        parts = [sums[name] for name in names]
        results[group] = _Sums(
            math.fsum(p.nats for p in parts),
            sum(p.tokens for p in parts),
            sum(p.bytes for p in parts),
            sum(p.documents for p in parts),
        ).measures(per_byte)
    return results


def _tokens(source: HeldOut, limit: int | None) -> int:
    """About how many tokens will be read, for the bar."""
    size = source.documents.tokens
    return size if limit is None else min(size, limit)


def _bar(total: int, progress: bool | None) -> Any:
    from tqdm import tqdm

    shown = sys.stderr.isatty() if progress is None else progress
    return tqdm(
        total=total or None,
        desc="evaluating",
        unit="tok",
        unit_scale=True,
        delay=2,
        leave=False,
        disable=not shown or jax.process_index() != 0,
    )
