"""Task of a linear head on a decoder's last token of each document: classes, or a number."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t5x_llm.core.errors import ConfigError
from t5x_llm.core.rng import fold_name
from t5x_llm.data.batch import Batch
from t5x_llm.models.model import Model, Params, Training
from t5x_llm.train.task import Measures, Sums, TrainTask

SCORE = "score"
LABELS = "labels"  # of ``Batch.extra``
_STD = 0.02  # transformers' initializer_range


@dataclasses.dataclass(frozen=True)
class Classification:
    """Task of telling the class of a document, of which each has one.

    Attributes:
      labels: names of the classes, as the data and the exported config have them; the field that
        ``Source.score`` names holds one of these.
    """

    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        known = all(isinstance(label, str) and label for label in self.labels)
        if not known or len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
            raise ConfigError(
                "Classification.labels", self.labels, "two names of classes or more, each once"
            )

    @property
    def outputs(self) -> int:
        """Returns the outputs of the head, one a class."""
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Regression:
    """Task of predicting the number in the field that ``Source.score`` names.

    Attributes:
      label: name of the number in the exported config.
    """

    label: str = "score"

    @property
    def labels(self) -> tuple[str, ...]:
        """Returns the name of the number alone."""
        return (self.label,)

    @property
    def outputs(self) -> int:
        """Returns the outputs of the head: one."""
        return 1


Scoring = Classification | Regression


def without_head(tree: Params) -> Params:
    """Returns a model's tree without its head over the vocabulary, which scores do not need."""
    return {name: part for name, part in tree.items() if name not in ("head", "head_bias")}


def fresh_score(key: jax.Array, width: int, outputs: int) -> Params:
    """Makes a fresh head: kernel [D, outputs] float32, normal with deviation 0.02, no bias."""
    return {"kernel": _STD * jax.random.normal(fold_name(key, SCORE), (width, outputs))}


def token_scores(model: Model, params: Params, batch: Any) -> jax.Array:
    """Computes the scores that the head gives at each token: [B, T, outputs] float32.

    Args:
      model: the decoder.
      params: its tree with ``score`` in it; the head over the vocabulary may be absent.
      batch: tokens, positions and segment ids [B, T].
    """
    body = {name: part for name, part in params.items() if name != SCORE}
    hidden, _ = model.apply(
        body, batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids
    )
    kernel = params[SCORE]["kernel"].astype(jnp.float32)
    return jnp.einsum("btd,do->bto", hidden.astype(jnp.float32), kernel)


@dataclasses.dataclass(frozen=True)
class ScoringTask(TrainTask):
    """Task of scoring documents, each at the last token that the model reads of it.

    Parameters are the model's without its head over the vocabulary, and ``score`` beside them.

    Attributes:
      model: the decoder.
      scoring: what the scores mean.
      length: ``Loop.sequence_length``.
      sources: names, as ``Batch.source`` indexes them.
      label_smoothing: share of a class's probability that is spread evenly over all classes.
      trained: see ``TrainTask``.
    """

    model: Model
    scoring: Scoring
    length: int
    sources: tuple[str, ...]
    label_smoothing: float = 0.0
    trained: Any = None

    @property
    def measures(self) -> Measures:
        """Returns means over documents, and the loss of each source over its own."""
        by_source = ("loss_by_source", "examples_by_source")
        return Measures(
            "examples", {by_source[0]: by_source[1]}, dict.fromkeys(by_source, self.sources)
        )

    def init(self, key: jax.Array) -> Any:
        """Makes a fresh model with a fresh head."""
        return self.around(self.model.init(key), key)

    def around(self, params: Params, key: jax.Array) -> Any:
        """Makes the parameters of a model with a fresh head; ``key`` as for ``init``."""
        dtype = self.model.policy.param_dtype
        head = fresh_score(key, self.model.config.d_model, self.scoring.outputs)
        return without_head(params) | {SCORE: jax.tree.map(lambda x: x.astype(dtype), head)}

    def abstract_params(self) -> Any:
        """Returns the tree of ``init`` as ``jax.ShapeDtypeStruct``."""
        shape = (self.model.config.d_model, self.scoring.outputs)
        kernel = jax.ShapeDtypeStruct(shape, self.model.policy.param_dtype)
        return without_head(self.model.abstract_params()) | {SCORE: {"kernel": kernel}}

    def logical_axes(self) -> Any:
        """Returns the tree of ``init`` with each parameter's tuple of logical axis names."""
        return without_head(self.model.logical_axes()) | {SCORE: {"kernel": ("embed", None)}}

    def abstract_batch(self, rows: int) -> Batch:
        """Returns a ``Batch`` with ``labels`` [rows, T] float32 at the last tokens of documents."""
        ids = jax.ShapeDtypeStruct((rows, self.length), jnp.int32)
        numbers = jax.ShapeDtypeStruct(ids.shape, jnp.float32)
        source = jax.ShapeDtypeStruct((rows,), jnp.int32)
        return Batch(ids, ids, ids, ids, numbers, source, {LABELS: numbers})

    def total(self, batch: Batch) -> jax.Array:
        """Counts the documents of the batch."""
        return jnp.maximum(jnp.sum(batch.loss_mask), 1.0)

    def loss(self, params: Any, batch: Batch, training: Training | None) -> tuple[jax.Array, Sums]:
        """Computes the cross entropy of the classes, or the squared error of the number.

        Returns:
          (float32 scalar, sums: loss without smoothing, of classes accuracy and, with smoothing,
          what it adds; examples; loss_by_source and examples_by_source, each [sources]).
        """
        scores = token_scores(self.model, params, batch)
        labels, mask = batch.extra[LABELS], batch.loss_mask
        sums: Sums = {}
        if isinstance(self.scoring, Regression):
            each = mask * jnp.square(scores[..., 0] - labels)
            value = jnp.sum(each)
        else:
            classes = labels.astype(jnp.int32)
            each = mask * optax.softmax_cross_entropy_with_integer_labels(scores, classes)
            value = jnp.sum(each)
            sums["accuracy"] = jnp.sum(mask * (jnp.argmax(scores, -1) == classes))
            if self.label_smoothing:
                log_probs = jax.nn.log_softmax(scores)
                found = jnp.take_along_axis(log_probs, classes[..., None], -1)[..., 0]
                added = mask * (found - jnp.mean(log_probs, -1))
                sums["smoothing"] = self.label_smoothing * jnp.sum(added)
                value = value + sums["smoothing"]
        rows, documents = jnp.sum(each, -1), jnp.sum(mask, -1)
        count = len(self.sources)
        return value, {
            "loss": jnp.sum(rows),
            **sums,
            "examples": jnp.sum(documents),
            "loss_by_source": jax.ops.segment_sum(rows, batch.source, count),
            "examples_by_source": jax.ops.segment_sum(documents, batch.source, count),
        }
