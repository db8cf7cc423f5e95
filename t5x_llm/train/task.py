"""Task of a run: a loss, the batch that it reads, and the sums that it reports.

The step, the loop and its hooks know names and weights of sums, and no loss. Language modelling is
one task; whatever trains on other batches, or has more roots in its parameter tree than one model,
is another.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from t5x_llm.core.rng import named_key
from t5x_llm.data.batch import Batch
from t5x_llm.data.row_objective import RowObjective
from t5x_llm.models.model import Model, Params, Training
from t5x_llm.optim import Piecewise
from t5x_llm.optim.freezing import merge_frozen, select_trained

Sums = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Measures:
    """Rules by which the sums of a task become figures.

    A sum is averaged over another one, its weight. Sums that are weights are counts: they are
    reported as totals since the run began.

    Attributes:
      unit: the count that the loss is a mean over, such as ``tokens``.
      weights: {sum: its weight}; a sum that is neither here nor a count is averaged over ``unit``.
      labels: {vector sum: names of its entries}.
    """

    unit: str
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def counts(self) -> frozenset[str]:
        """Returns the sums that others are averaged over."""
        return frozenset((self.unit, *self.weights.values()))

    def weight(self, name: str) -> str | None:
        """Returns the count that ``name`` is averaged over; None for a count."""
        return None if name in self.counts else self.weights.get(name, self.unit)

    def is_mean(self, name: str) -> bool:
        """Returns True if the step divides ``name``, as it does scalars that ``unit`` weighs."""
        return self.weight(name) == self.unit and name not in self.labels


class TrainTask(abc.ABC):
    """Task that a step learns.

    Parameters may be a tree of several roots (a policy, a value head, adapters beside a base), each
    with dtypes of its own. What is frozen has no gradient and no optimizer state.

    Attributes:
      trained: tree of bool like the parameters, False for what is frozen; None trains all.
    """

    trained: Any = None

    @property
    @abc.abstractmethod
    def measures(self) -> Measures:
        """Returns the rules by which the sums of ``loss`` become figures."""

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Any:
        """Makes fresh parameters."""

    @abc.abstractmethod
    def abstract_params(self) -> Any:
        """Returns the tree of ``init`` as ``jax.ShapeDtypeStruct``."""

    @abc.abstractmethod
    def logical_axes(self) -> Any:
        """Returns the tree of ``init`` with each parameter's tuple of logical axis names."""

    @abc.abstractmethod
    def abstract_batch(self, rows: int) -> Any:
        """Returns a batch of ``rows`` rows as a tree of ``jax.ShapeDtypeStruct``, rows first."""

    @abc.abstractmethod
    def total(self, batch: Any) -> jax.Array:
        """Computes the float32 scalar, above 0, that the loss of a whole batch is divided by."""

    @abc.abstractmethod
    def loss(self, params: Any, batch: Any, training: Training | None) -> tuple[jax.Array, Sums]:
        """Computes the summed loss of a batch or a part of one.

        Args:
          params: the whole tree.
          batch: all rows, or those of a microbatch.
          training: from ``training``, with the key of the microbatch.

        Returns:
          (float32 scalar to differentiate, sums by name). One is called ``loss``, by which spikes
          are detected, and one is called as ``measures.unit``.
        """

    def batch_axes(self) -> Any:
        """Returns the tree of ``abstract_batch`` with each array's tuple of logical axis names."""
        return jax.tree.map(
            lambda x: ("batch", "length", *[None] * x.ndim)[: x.ndim], self.abstract_batch(1)
        )

    def training(self, step: jax.Array) -> Training | None:
        """Returns the inputs of the loss of step ``step`` (int32 scalar) besides its batch."""
        return None

    def settled(self, trained: Any, opt_state: Any) -> Any:
        """Returns the trained part as an update leaves it; as the optimizer made it here.

        Args:
          trained: the trained part with the update added.
          opt_state: state of the optimizer after the update.
        """
        return trained

    def saved(self, params: Any) -> Any:
        """Returns the part of a tree like the parameters that checkpoints hold; all of it here."""
        return params

    def restored(self, saved: Params, params: Any) -> Any:
        """Returns the whole tree of what a checkpoint holds, and of ``params`` for the rest."""
        return saved

    def model_params(self, params: Any) -> Any:
        """Returns the tree of the model that is evaluated and sampled; all of it here."""
        return params

    def trained_part(self, tree: Any) -> Any:
        """Returns the trained part of a tree like the parameters, with None for what is frozen."""
        return tree if self.trained is None else select_trained(self.trained, tree)

    def merged(self, trained: Any, params: Any) -> Any:
        """Returns the whole tree of a trained part, and of ``params`` for the rest."""
        return trained if self.trained is None else merge_frozen(trained, params)


@dataclasses.dataclass(frozen=True)
class LmTask(TrainTask):
    """Task of predicting tokens: the next one, or those that ``objective`` took out.

    Attributes:
      model: the model.
      length: ``Loop.sequence_length``.
      sources: names, as ``Batch.source`` indexes them.
      objective: objective that rows are made for: span corruption, prefix LM, UL2, blank filling,
        masked LM; None for next-token prediction.
      z_loss: weight of mean log(Z)^2 (PaLM, arXiv 2204.02311, section 5).
      embed_gradient: the share of the gradient that reaches the embedding table by way of the
        input, by step (GLM-130B, arXiv 2210.02414, section 3.3); None for the model config's.
      seed: seed of the noise that the model's config may ask for while training.
      trained: see ``TrainTask``.
      label_smoothing: share of each target's probability that is spread evenly over the vocabulary.
    """

    model: Model
    length: int
    sources: tuple[str, ...]
    objective: RowObjective | None = None
    z_loss: float = 0.0
    embed_gradient: Piecewise | None = None
    seed: int = 0
    trained: Any = None
    label_smoothing: float = 0.0

    @property
    def measures(self) -> Measures:
        """Returns means over predicted tokens, and the loss of each source over its own."""
        by_source = ("loss_by_source", "tokens_by_source")
        return Measures(
            "tokens", {by_source[0]: by_source[1]}, dict.fromkeys(by_source, self.sources)
        )

    def init(self, key: jax.Array) -> Any:
        """Makes the model's fresh parameters."""
        return self.model.init(key)

    def abstract_params(self) -> Any:
        """Returns the model's parameters as ``jax.ShapeDtypeStruct``."""
        return self.model.abstract_params()

    def logical_axes(self) -> Any:
        """Returns the model's logical axis names."""
        return self.model.logical_axes()

    def abstract_batch(self, rows: int) -> Batch:
        """Returns a ``Batch`` of ``rows`` rows, with ``extra`` as the objective has it."""
        if self.objective is not None:
            return self.objective.abstract_batch(rows)
        ids = jax.ShapeDtypeStruct((rows, self.length), jnp.int32)
        mask = jax.ShapeDtypeStruct(ids.shape, jnp.float32)
        return Batch(ids, ids, ids, ids, mask, jax.ShapeDtypeStruct((rows,), jnp.int32))

    def training(self, step: jax.Array) -> Training | None:
        """Returns a key for noise and dropout and the embedding's share of gradient.

        It is None if all are off.
        """
        schedule = None if self.embed_gradient is None else self.embed_gradient.build()
        adapter = self.model.adapter
        noisy = getattr(self.model.config, "neftune", None) is not None
        if schedule is None and not noisy and not (adapter is not None and adapter.random):
            return None
        share = None if schedule is None else schedule(step)
        return Training(named_key(self.seed, "noise", step), share)

    def total(self, batch: Batch) -> jax.Array:
        """Sums the weights of the tokens that the batch predicts; 1 where it predicts none."""
        weight = jnp.sum(batch.loss_mask)
        return jnp.where(weight > 0, weight, 1.0)

    def loss(self, params: Any, batch: Batch, training: Training | None) -> tuple[jax.Array, Sums]:
        """Computes the negative log likelihood with its z-loss and the layers' auxiliary losses.

        Returns:
          (float32 scalar, sums: loss in nats without smoothing, so that its exponential stays the
          perplexity, z_loss, smoothing if there is any, tokens (predicted), the layers' own
          measures times the tokens, and loss_by_source and tokens_by_source, each [sources]).
        """
        value, aux = self.model.loss(params, batch, self.z_loss, training, self.label_smoothing)
        nll = jnp.sum(aux.pop("nll"), axis=-1)
        tokens = jnp.sum(batch.loss_mask, axis=-1)
        count = len(self.sources)
        return value, {
            "loss": jnp.sum(nll),
            **aux,
            "tokens": jnp.sum(tokens),
            "loss_by_source": jax.ops.segment_sum(nll, batch.source, count),
            "tokens_by_source": jax.ops.segment_sum(tokens, batch.source, count),
        }


def check_sums(sums: Mapping[str, Any], measures: Measures, taken: Sequence[str]) -> None:
    """Raises ValueError unless a task's sums can be reported beside the step's own metrics."""
    if wrong := sorted(set(sums) & set(taken)):
        raise ValueError(f"a task's sums may not be called {', '.join(wrong)}: the step's own are")
    if missing := sorted({"loss", *measures.counts} - set(sums)):
        raise ValueError(f"a task's sums lack {', '.join(missing)}; there are {', '.join(sums)}")
