"""Parties of a federated run: their data, which nobody else reads, and their local steps."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t5x_llm.data.catalog import open_stores
from t5x_llm.data.positions import DataState
from t5x_llm.evaluate.perplexity import Evaluator
from t5x_llm.nn.adapters import roots
from t5x_llm.run.assembled import Assembled
from t5x_llm.run.config import Run
from t5x_llm.run.data import OpenData, held_out, open_run_stream
from t5x_llm.run.reading import fresh
from t5x_llm.train.feed import StreamFeed
from t5x_llm.train.hooks import Results
from t5x_llm.train.state import TrainState


def party_run(run: Run, number: int) -> Run:
    """Returns a run with the data of one party: its source alone, in a store of its own.

    Args:
      run: with ``Run.federated``.
      number: of the party, in the order of ``Mixture.sources``.
    """
    assert run.data.mixture is not None
    source = run.data.mixture.sources[number]
    mixture = dataclasses.replace(
        run.data.mixture, sources=(source,), rates="proportional", stages=(), replay=None,
        max_examples=None,
    )  # fmt: skip
    where = os.path.join(run.data.store_dir, "parties", source.name)
    data = dataclasses.replace(run.data, mixture=mixture, store_dir=where)
    return dataclasses.replace(run, data=data, federated=None)


@dataclasses.dataclass(frozen=True)
class Party:
    """One party with its data.

    Attributes:
      number: in the order of ``Mixture.sources``.
      name: of its source.
      data: its prepared data.
    """

    number: int
    name: str
    data: OpenData

    @property
    def tokens(self) -> int:
        """Counts the tokens that it trains on."""
        return int(self.data.opened.stores[self.name].train.tokens)


def open_party(run: Run, number: int) -> Party:
    """Opens the prepared data of a party.

    Args:
      run: from ``party_run``.
      number: of the party.

    Raises:
      DataError: it was not prepared.
    """
    opened = open_stores(run.data)
    (name,) = opened.stores
    return Party(number, name, OpenData(opened, open_run_stream(run, opened, fresh(run.loop))))


@dataclasses.dataclass(frozen=True)
class LocalRound:
    """Message of a party about its steps of one round.

    Attributes:
      loss: mean over the tokens that it predicted, in nats.
      tokens: their number.
      grad_norm: mean over the steps.
      learning_rate: of the last step.
      finite: False if its adapter holds a NaN or an infinity.
    """

    loss: float
    tokens: float
    grad_norm: float
    learning_rate: float
    finite: bool


class Trainee:
    """Model on this process's devices, with which its parties train one after the other.

    The optimizer begins each round anew, as averaged factors have other columns than those that its
    moments were of; the learning rate goes on.

    Args:
      assembled: the run on devices of this process alone.
      start: state with the base and any adapter; it is given up.
    """

    def __init__(self, assembled: Assembled, start: TrainState):
        self._assembled, self._task = assembled, assembled.task
        self._params: dict[str, Any] = start.params
        self._step = assembled.make_step(guarded=False)
        shardings = assembled.placement.state
        self._init = jax.jit(assembled.tx.init, out_shardings=shardings.opt_state)
        run = assembled.run
        self._evaluator = Evaluator(
            assembled.model,
            assembled.placement.devices,
            assembled.rules,
            run.loop.sequence_length,
            run.evaluation.batch_size,
            getattr(assembled.task.inner, "objective", None),  # type: ignore[attr-defined]
        )

    def train(self, party: Party, adapter: Any, first: int, steps: int) -> tuple[Any, LocalRound]:
        """Trains a party's copy of an adapter on its data.

        Args:
          party: whose data.
          adapter: NumPy arrays, which stay as they are.
          first: steps of the run before this round.
          steps: steps of the round.

        Returns:
          (its adapter as NumPy arrays, what it says).
        """
        run, placement = self._assembled.run, self._assembled.placement
        state = self._begin(adapter, first)
        position = first * run.loop.batch_size
        feed = StreamFeed(
            party.data.stream, run.loop.size_at, placement, run.loop.prefetch, self._assembled.batch
        )
        metrics = []
        with feed(DataState(position)) as batches:
            for _ in range(steps):
                state, measured = self._step(state, next(batches).batch)
                metrics.append(measured)
        self._params = state.params
        trained = jax.device_get(state.params[roots.ADAPTER])
        host = [{name: np.asarray(value) for name, value in each.items()} for each in metrics]
        unit = self._task.measures.unit
        tokens = np.array([float(each[unit]) for each in host])
        losses = np.array([float(each["loss"]) for each in host])
        return trained, LocalRound(
            loss=float(losses @ tokens / max(tokens.sum(), 1.0)),
            tokens=float(tokens.sum()),
            grad_norm=float(np.mean([each["grad_norm"] for each in host])),
            learning_rate=float(host[-1]["learning_rate"]),
            finite=all(np.isfinite(x).all() for x in jax.tree.leaves(trained)),
        )

    def evaluate(self, party: Party, adapter: Any) -> Results:
        """Evaluates an adapter on the documents that a party holds out; {} if it holds none."""
        documents = held_out(party.data.opened)
        if not documents:
            return {}
        self._place(adapter)
        limit = self._assembled.run.evaluation.limit
        return self._evaluator(self._task.model_params(self._params), documents, limit, False)

    def _place(self, adapter: Any) -> None:
        shardings = self._assembled.placement.state.params[roots.ADAPTER]
        placed = jax.tree.map(jax.device_put, adapter, shardings)
        self._params = self._params | {roots.ADAPTER: placed}

    def _begin(self, adapter: Any, first: int) -> TrainState:
        self._place(adapter)
        shardings = self._assembled.placement.state
        opt_state = at_step(self._init(self._task.trained_part(self._params)), first)
        step = jax.device_put(jnp.asarray(first, jnp.int32), shardings.step)
        return TrainState(step, self._params, jax.device_put(opt_state, shardings.opt_state))


def at_step(opt_state: Any, step: int) -> Any:
    """Returns a fresh optimizer state whose learning rate is that of a later step."""
    scheduled = optax.ScaleByScheduleState

    def moved(state: Any) -> Any:
        if not isinstance(state, scheduled):
            return state
        return scheduled(count=jnp.full_like(state.count, step))

    return jax.tree.map(moved, opt_state, is_leaf=lambda x: isinstance(x, scheduled))
