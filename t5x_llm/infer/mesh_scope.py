"""The mesh that a model runs on, as a static argument of compiled functions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from jax.sharding import Mesh

from t5x_llm.core.errors import ConfigError
from t5x_llm.parallel import Rules, use, ways


@dataclasses.dataclass(frozen=True)
class MeshScope:
    """A mesh and the rules of layouts on it; neither where the default device does all.

    Attributes:
      mesh: the mesh that parameters lie on.
      rules: its rules.
    """

    mesh: Mesh | None = None
    rules: Rules | None = None

    def __post_init__(self) -> None:
        if (self.mesh is None) != (self.rules is None):
            raise ConfigError("rules", self.rules, "given with mesh, and with it alone")

    def __hash__(self) -> int:
        return hash(self.mesh)  # the tables of rules are dicts

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Makes mesh and rules current, if there are any; for the inside of compiled functions."""
        if self.mesh is None or self.rules is None:
            yield
            return
        with use(self.mesh, self.rules):
            yield

    def rows(self, count: int) -> int:
        """Returns ``count``, or the next number of rows that the mesh divides."""
        if self.mesh is None or self.rules is None:
            return count
        pieces = ways(self.mesh, self.rules, "batch")
        return -(-count // pieces) * pieces
