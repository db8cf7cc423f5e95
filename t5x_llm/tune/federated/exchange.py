"""Messages between the processes of a federated run, of which each holds some parties."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5x_llm.core.errors import ConfigError

Json = Any


class Exchange:
    """Passes what each party says to all processes; in one process nothing travels.

    Party i lives in process i modulo the number of processes. Process 0 is the server as well. All
    methods are collective: every process calls them, in the same order.

    Args:
      parties: number of them.

    Raises:
      ConfigError: there are more processes than parties.
    """

    def __init__(self, parties: int):
        self.parties, self._count = parties, jax.process_count()
        if self._count > parties:
            raise ConfigError(
                "JAX_NUM_PROCESSES",
                self._count,
                f"at most {parties}, as each process holds one of the {parties} parties or more",
            )
        self.mine = range(jax.process_index(), parties, self._count)

    def objects(self, mine: Mapping[int, Json]) -> list[Json]:
        """Returns the JSON of all parties.

        Args:
          mine: that of this process's parties.
        """
        texts = {i: np.frombuffer(json.dumps(x).encode(), np.uint8) for i, x in mine.items()}
        if self._count == 1:
            return [json.loads(texts[i].tobytes()) for i in range(self.parties)]
        lengths = self._gather({i: np.array([len(t)], np.int32) for i, t in texts.items()})
        longest = max(int(n[0]) for n in lengths)
        rows = {i: np.pad(t, (0, longest - len(t))) for i, t in texts.items()}
        rows = dict(enumerate(self._gather(rows)))
        return [json.loads(rows[i][: int(lengths[i][0])].tobytes()) for i in range(self.parties)]

    def vectors(self, mine: Mapping[int, np.ndarray]) -> list[np.ndarray]:
        """Returns the vectors of all parties, of one shape and dtype, to the bit."""
        if self._count == 1:
            return [mine[i] for i in range(self.parties)]
        dtype = next(iter(mine.values())).dtype
        # As bytes, since JAX would make 32 bits of 64.
        rows = self._gather({i: np.ascontiguousarray(x).view(np.uint8) for i, x in mine.items()})
        return [row.view(dtype) for row in rows]

    def from_server(self, vector: np.ndarray) -> np.ndarray:
        """Returns process 0's vector; the others give one of the same shape and dtype."""
        if self._count == 1:
            return vector
        octets = np.ascontiguousarray(vector).view(np.uint8)
        return np.asarray(multihost_utils.broadcast_one_to_all(octets)).view(vector.dtype)

    @property
    def server(self) -> bool:
        """Returns True in the process that averages."""
        return jax.process_index() == 0

    def _gather(self, mine: Mapping[int, np.ndarray]) -> list[np.ndarray]:
        """Returns rows of one shape and dtype, of at most 32 bits an element, by party."""
        slots = -(-self.parties // self._count)
        like = next(iter(mine.values()))
        rows = np.zeros((slots, *like.shape), like.dtype)
        for i, row in mine.items():
            rows[i // self._count] = row
        every = np.asarray(multihost_utils.process_allgather(rows))
        return [
            np.ascontiguousarray(every[i % self._count, i // self._count])
            for i in range(self.parties)
        ]
