"""A task whose model is frozen and whose adapters are trained."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from t5x_llm.core.dtypes import Policy
from t5x_llm.models.model import Model, Params, Training
from t5x_llm.nn.adapters import roots
from t5x_llm.train.task import Measures, Sums, TrainTask


@dataclasses.dataclass(frozen=True)
class AdapterTask(TrainTask):
    """Task of training the adapters of another task's model, and nothing else of it.

    Parameters have the roots of ``nn.adapters.roots``: ``base`` is the model, in its own dtype and
    never changed; ``adapter`` is trained, in float32; ``initial`` is what some adapters keep of
    their start. Optimizer state and checkpoints are without the base.

    Attributes:
      inner: the task, whose parameters are those of ``model``.
      model: the model with adapters.
      base_dtype: dtype of the base's parameters.
    """

    inner: TrainTask
    model: Model
    base_dtype: str = "bfloat16"

    @property
    def trained(self) -> Any:
        """Returns True for the adapters alone."""
        parts = roots.split(self.model.abstract_params())
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
        dtype = Policy(self.base_dtype).param_dtype
        fresh = self.model.adapted(base, key)
        return {roots.BASE: jax.tree.map(lambda x: x.astype(dtype), base)} | fresh

    def abstract_params(self) -> Any:
        """Returns the roots as ``jax.ShapeDtypeStruct``."""
        dtype = Policy(self.base_dtype).param_dtype
        parts = roots.split(self.model.abstract_params())
        parts[roots.BASE] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, dtype), parts[roots.BASE]
        )
        return parts

    def logical_axes(self) -> Any:
        """Returns the roots with each parameter's tuple of logical axis names."""
        return roots.split(self.model.logical_axes())

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

    def saved(self, params: Any) -> Any:
        """Returns the roots without the base."""
        return {name: part for name, part in params.items() if name != roots.BASE}

    def restored(self, saved: Params, params: Any) -> Any:
        """Returns the roots of a checkpoint, with the base of ``params``."""
        return {roots.BASE: params[roots.BASE]} | saved

    def model_params(self, params: Any) -> Any:
        """Returns the tree of the model with adapters."""
        return roots.merge(params)
