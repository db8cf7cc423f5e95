"""Evaluates the scores of held-out documents while a head of scores is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from t5x_llm.core.errors import DataError
from t5x_llm.data.batch import Batch
from t5x_llm.data.store import Split
from t5x_llm.evaluate.score_metrics import classification, regression
from t5x_llm.models.model import Model
from t5x_llm.parallel import Rules, check_divisible, global_batch, replicated, use
from t5x_llm.train.hooks import Hook, Results
from t5x_llm.train.loop import Trainer
from t5x_llm.train.scoring import Regression, Scoring, token_scores


class DocumentScorer:
    """Scores documents, each in a row of its own, at the last of its tokens; compiles once.

    Args:
      model: the decoder.
      mesh: devices that the parameters lie on.
      rules: its rules.
      length: T; of longer documents the first T tokens are read.
      batch_size: rows at once; the mesh must divide it.
    """

    def __init__(self, model: Model, mesh: Mesh, rules: Rules, length: int, batch_size: int = 8):
        check_divisible(mesh, rules, "batch", "Evaluation.batch_size", batch_size)
        self.mesh, self.rules, self.length, self.batch_size = mesh, rules, length, batch_size

        def last(params: Any, batch: Batch) -> jax.Array:
            with use(mesh, rules):
                scores = token_scores(model, params, batch)
                place = jnp.sum(batch.segment_ids, axis=-1) - 1
                return scores[jnp.arange(scores.shape[0]), place]

        self._last = jax.jit(last, out_shardings=replicated(mesh))

    def __call__(self, params: Any, documents: Sequence[np.ndarray]) -> np.ndarray:
        """Scores token ids.

        Args:
          params: tree of a ``ScoringTask``, on the mesh.
          documents: [n] int32 each, n at least 1.

        Returns:
          [documents, outputs] float32, the same in any order and any batch but for rounding.
        """
        found = []
        for first in range(0, len(documents), self.batch_size):
            some = documents[first : first + self.batch_size]
            batch = self._batch(some)

            def rows(chosen: slice, batch: Batch = batch) -> Any:
                return jax.tree.map(lambda x: x[chosen], batch)

            placed = global_batch(rows, self.batch_size, self.mesh, self.rules)
            found.append(np.asarray(self._last(params, placed))[: len(some)])
        return np.concatenate(found)

    def _batch(self, documents: Sequence[np.ndarray]) -> Batch:
        shape = (self.batch_size, self.length)
        tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        segments[len(documents) :, 0] = 1  # rows that only fill the batch
        for row, ids in enumerate(documents):
            if not len(ids):
                raise DataError("A document without a token cannot be scored.")
            ids = ids[: self.length]
            tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
        positions = np.arange(self.length, dtype=np.int32) * segments
        zeros = np.zeros(shape, np.float32)
        source = np.zeros(self.batch_size, np.int32)
        return Batch(tokens, tokens, positions, segments, zeros, source)


def score_figures(scoring: Scoring, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes the figures of scores [n, outputs] and labels [n]: the loss and the task's own."""
    if isinstance(scoring, Regression):
        found = regression(scores[:, 0], labels)
        return {"loss": found["mse"], **found, "documents": len(labels)}
    wide = scores.astype(np.float64)
    top = wide.max(-1)
    log_z = top + np.log(np.exp(wide - top[:, None]).sum(-1))
    true = labels.astype(np.int64)
    loss = float(np.mean(log_z - wide[np.arange(len(true)), true]))
    return {"loss": loss, **classification(scores, true), "documents": len(labels)}


class ScoringHook(Hook):
    """Evaluates held-out documents every ``Loop.eval_every`` steps, and all at the last step.

    Args:
      scorer: compiled once, used every time.
      scoring: what the scores mean.
      held_out: held-out documents with their labels, by source.
      limit: tokens of each source for evaluations before the last; None for all.
    """

    name = "evaluation"

    def __init__(
        self,
        scorer: DocumentScorer,
        scoring: Scoring,
        held_out: Mapping[str, Split],
        limit: int | None = None,
    ):
        self.scorer, self.scoring, self.limit = scorer, scoring, limit
        self.held_out = dict(held_out)

    def on_dispatch(self, trainer: Trainer) -> None:
        """Evaluates when due, and gives all hooks the results."""
        every = trainer.config.eval_every
        if trainer.last or (every and trainer.step % every == 0):
            with trainer.paused("eval"):
                trainer.evaluated(self.evaluate(trainer.params, trainer.last))

    def evaluate(self, params: Any, full: bool = True) -> Results:
        """Evaluates parameters; {source: figures}, and ``all`` where there are several sources."""
        results: Results = {}
        whole: list[tuple[np.ndarray, np.ndarray]] = []
        for name, split in self.held_out.items():
            documents = list(_inputs(split, None if full else self.limit))
            scores, labels = self.scorer(params, documents), split.scores[: len(documents)]
            whole.append((scores, labels))
            results[name] = score_figures(self.scoring, scores, labels)
        if len(whole) > 1:
            parts = [np.concatenate(x) for x in zip(*whole, strict=True)]
            results["all"] = score_figures(self.scoring, parts[0], parts[1])
        return results


def _inputs(split: Split, limit: int | None) -> Iterator[np.ndarray]:
    """Yields what training reads of documents: all but the last token, which ends the text."""
    read = 0
    for index in range(len(split)):
        if limit is not None and read >= limit:
            return
        ids = split.document(index)
        read += len(ids)
        yield ids[:-1]
