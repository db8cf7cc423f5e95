"""A task whose model is frozen and whose adapters are trained."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from t5x_llm.models.base_storage import abstract_stored, store, stored_axes
from t5x_llm.models.model import Model, Params, Training
from t5x_llm.nn.adapters import roots
from t5x_llm.optim.rank_allocation import masked_ranks
from t5x_llm.train.task import Measures, Sums, TrainTask


@dataclasses.dataclass(frozen=True)
class AdapterTask(TrainTask):
    """Task of training the adapters of another task's model, and nothing else of it.

    Parameters have the roots of ``nn.adapters.roots``: ``base`` is the model, stored as
    ``storage`` says and never changed; ``adapter`` is trained, in float32; ``initial`` is what some
    adapters keep of their start. Optimizer state and checkpoints are without the base.

    Attributes:
      inner: the task, whose parameters are those of ``model``.
      model: the model with adapters.
      storage: storage of the base, one of ``models.base_storage.STORAGE``.
    """

    inner: TrainTask
    model: Model
    storage: str = "bfloat16"

    @property
    def trained(self) -> Any:
        """Returns True for the adapters alone."""
        parts = self.abstract_params()
        frozen = jax.tree.map(lambda _: False, parts)
        return frozen | {roots.ADAPTER: jax.tree.map(lambda _: True, parts[roots.ADAPTER])}

    @property
    def measures(self) -> Measures:
        """Returns those of the inner task."""
        return self.inner.measures

    def init(self, key: jax.Array) -> Any:
        """Makes a fresh model with fresh adapters."""
        return self.around(self.model.bare.init(key), key)

    def around(self, base: Params, key: jax.Array) -> Any:
        """Makes the roots of a model with fresh adapters on it.

        Args:
          base: the model's own parameters.
          key: as for ``init``.
        """
        fresh = self.model.adapted(base, key)
        return {roots.BASE: store(base, self.model, self.storage)} | fresh

    def abstract_params(self) -> Any:
        """Returns the roots as ``jax.ShapeDtypeStruct``."""
        parts = roots.split(self.model.abstract_params())
        return parts | {roots.BASE: abstract_stored(self.model, self.storage)}

    def logical_axes(self) -> Any:
        """Returns the roots with each parameter's tuple of logical axis names."""
        parts = roots.split(self.model.logical_axes())
        return parts | {roots.BASE: stored_axes(self.model, self.storage)}

    def abstract_batch(self, rows: int) -> Any:
        """Returns the inner task's."""
        return self.inner.abstract_batch(rows)

    def batch_axes(self) -> Any:
        """Returns the inner task's."""
        return self.inner.batch_axes()

    def training(self, step: jax.Array) -> Training | None:
        """Returns the inner task's."""
        return self.inner.training(step)

    def total(self, batch: Any) -> jax.Array:
        """Returns the inner task's."""
        return self.inner.total(batch)

    def loss(self, params: Any, batch: Any, training: Training | None) -> tuple[jax.Array, Sums]:
        """Computes the inner task's loss of the model with its adapters.

        What the adapters add to a mean loss is the sum ``adapter_penalty``.
        """
        value, sums = self.inner.loss(roots.merge(params), batch, training)
        adapter = self.model.adapter
        penalty = None if adapter is None else adapter.penalty(params[roots.ADAPTER])
        if penalty is None:
            return value, sums
        penalty = penalty * self.inner.total(batch)
        return value + penalty, sums | {"adapter_penalty": penalty}

    def settled(self, trained: Any, opt_state: Any) -> Any:
        """Returns the trained part, of AdaLoRA without the triplets that have no place."""
        return masked_ranks(trained, opt_state)

    def saved(self, params: Any) -> Any:
        """Returns the roots without the base."""
        return {name: part for name, part in params.items() if name != roots.BASE}

    def restored(self, saved: Params, params: Any) -> Any:
        """Returns the roots of a checkpoint, with the base of ``params``."""
        return {roots.BASE: params[roots.BASE]} | saved

    def model_params(self, params: Any) -> Any:
        """Returns the tree of the model with adapters."""
        return roots.merge(params)
