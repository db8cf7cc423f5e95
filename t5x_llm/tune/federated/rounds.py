"""Rounds of a federated run: local steps of all parties, one average, one line of record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_llm.core.errors import SpikeError
from t5x_llm.run.federated import Federated
from t5x_llm.train.hooks import Results
from t5x_llm.tune.federated.averaging import Averager, Tree, shares
from t5x_llm.tune.federated.exchange import Exchange
from t5x_llm.tune.federated.masks import KeyPair, Masker, unmask
from t5x_llm.tune.federated.parties import LocalRound, Party, Trainee


@dataclasses.dataclass(frozen=True)
class RoundRecord:
    """Record of one round.

    Attributes:
      step: steps of the run after it.
      parties: what each party says, by name.
      weights: share of each in the average, by name.
      dropped: share of the squared norm of the averaged changes to kernels that the adapter's rank
        has no room for.
      leaving: True if a process was asked to end.
    """

    step: int
    parties: dict[str, LocalRound]
    weights: dict[str, float]
    dropped: float
    leaving: bool

    @property
    def tokens(self) -> float:
        """Counts the tokens that all parties predicted."""
        return math.fsum(each.tokens for each in self.parties.values())

    @property
    def loss(self) -> float:
        """Returns the mean loss of these tokens."""
        total = math.fsum(each.loss * each.tokens for each in self.parties.values())
        return total / max(self.tokens, 1.0)


class Server:
    """Averages adapters of the parties, whose messages it alone combines.

    With ``Federated.secure`` a message is a party's share of the sum under masks, else its adapter.
    What parties say of their losses and tokens is not masked.

    Args:
      config: weights and masks.
      averager: of adapters of this run's shape.
      exchange: between the processes.
      names: of all parties.
      sizes: tokens of their stores.
    """

    def __init__(
        self,
        config: Federated,
        averager: Averager,
        exchange: Exchange,
        names: Sequence[str],
        sizes: Sequence[int],
    ):
        self._config, self._averager, self._exchange = config, averager, exchange
        self._names, self._sizes = list(names), list(sizes)
        self._maskers: dict[int, Masker] = {}
        if config.secure:
            keys = {i: KeyPair.fresh() for i in exchange.mine}
            publics = exchange.vectors(
                {i: np.frombuffer(key.public, np.uint8) for i, key in keys.items()}
            )
            known = {i: key.tobytes() for i, key in enumerate(publics)}
            self._maskers = {i: Masker(i, key, known) for i, key in keys.items()}

    def average(
        self, adapters: Mapping[int, Tree], said: Sequence[LocalRound], step: int
    ) -> tuple[Tree, dict[str, float], float]:
        """Averages the adapters of a round.

        Args:
          adapters: those of this process's parties.
          said: what all parties say.
          step: steps of the run after the round.

        Returns:
          (the average, weights by name, share dropped), the same in all processes.
        """
        weights: dict[str, Sequence[float]] = {
            "data": self._sizes,
            "tokens": [each.tokens for each in said],
            "equal": [1.0] * len(said),
        }
        share = shares(weights[self._config.weights])
        if self._maskers:
            messages = self._exchange.vectors(
                {
                    i: self._maskers[i].message(
                        self._averager.contribution(adapter, share[i]), step
                    )
                    for i, adapter in adapters.items()
                }
            )
        else:
            messages = self._exchange.vectors(
                {i: self._averager.pack(adapter) for i, adapter in adapters.items()}
            )
        made, dropped = next(iter(adapters.values())), 0.0
        if self._exchange.server and self._maskers:
            total = unmask(dict(enumerate(messages)), range(len(said)))
            made, dropped = self._averager.of_sum(total)
        elif self._exchange.server:
            made, dropped = self._averager.average(
                [self._averager.unpack(message) for message in messages], share
            )
        whole = self._exchange.from_server(self._averager.pack(made))
        dropped = float(self._exchange.from_server(np.array([dropped]))[0])
        return self._averager.unpack(whole), dict(zip(self._names, share, strict=True)), dropped


class Rounds:
    """Makes rounds with the parties of this process.

    Args:
      trainee: the model that they train.
      parties: those of this process, by number.
      server: the averages.
      exchange: between the processes.
      names: of all parties.
    """

    def __init__(
        self,
        trainee: Trainee,
        parties: Mapping[int, Party],
        server: Server,
        exchange: Exchange,
        names: Sequence[str],
    ):
        self._trainee, self._parties = trainee, dict(parties)
        self._server, self._exchange, self._names = server, exchange, list(names)

    def run(
        self, adapter: Tree, first: int, steps: int, leaving: bool = False
    ) -> tuple[Tree, RoundRecord]:
        """Makes one round.

        Args:
          adapter: that it begins with, as NumPy arrays.
          first: steps of the run before it.
          steps: steps of each party.
          leaving: True if this process was asked to end.

        Returns:
          (averaged adapter, record), the same in all processes.

        Raises:
          SpikeError: a party's adapter is not finite; nothing is averaged. All processes raise it.
        """
        trained, mine = {}, {}
        for i, party in self._parties.items():
            trained[i], own = self._trainee.train(party, adapter, first, steps)
            mine[i] = {"said": dataclasses.asdict(own), "leaving": leaving}
        every = self._exchange.objects(mine)
        said = [LocalRound(**each["said"]) for each in every]
        if wrong := [n for n, each in zip(self._names, said, strict=True) if not each.finite]:
            raise SpikeError(
                f"The steps {first + 1} to {first + steps} of {', '.join(wrong)} ended in numbers "
                "that are not finite. Nothing was averaged, and the last checkpoint stands: lower "
                "Schedule.peak or Federated.local_steps and start again from there."
            )
        averaged, weights, dropped = self._server.average(trained, said, first + steps)
        by_name = dict(zip(self._names, said, strict=True))
        leaves = any(each["leaving"] for each in every)
        return averaged, RoundRecord(first + steps, by_name, weights, dropped, leaves)

    def evaluate(self, adapter: Tree) -> Results:
        """Evaluates an adapter by each party on what it holds out, and sums the figures up."""
        mine = {i: self._trainee.evaluate(party, adapter) for i, party in self._parties.items()}
        results: Results = {}
        for each in self._exchange.objects(mine):
            results |= each
        return results | _all_of(results)


def _all_of(results: Results) -> Results:
    """Returns the entry ``all`` of the results of several parties; {} of fewer than two."""
    if len(results) < 2:
        return {}
    every = list(results.values())
    sums: dict[str, Any] = {
        name: sum(each[name] for each in every) for name in ("tokens", "bytes", "documents")
    }
    nats = math.fsum(each["loss"] * each["tokens"] for each in every if each["tokens"])
    loss = nats / max(sums["tokens"], 1)
    figures = {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}
    if all("bits_per_byte" in each for each in every):
        figures["bits_per_byte"] = nats / math.log(2) / max(sums["bytes"], 1)
    return {"all": figures | sums}
