"""Parameters that lie in fewer pieces than the strategy asks for.

A dimension that its mesh axis does not divide is stored whole: right for the one key head of
multi-query attention, and a silent waste of memory for an embedding of 32,003 rows.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh

from t5x_llm.parallel.mesh import dotted
from t5x_llm.parallel.rules import Rules, resolve


@dataclasses.dataclass(frozen=True)
class Replicated:
    """One parameter that devices hold more of than they should; its text says what to do.

    Attributes:
      path: dotted.
      shape: its shape.
      undivided: (position, logical axis, size, mesh axes, ways) of each dimension that was meant to
        be cut.
      held: bytes of it on a device.
      wanted: bytes of it on a device if all these were.
    """

    path: str
    shape: tuple[int, ...]
    undivided: tuple[tuple[int, str, int, str, int], ...]
    held: int
    wanted: int

    @property
    def excess(self) -> int:
        """Bytes on a device that need not be there."""
        return self.held - self.wanted

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.shape))
        reasons = [
            f"its dimension {i} ('{name}', {size}) is not divisible by {axes} = {ways}"
            for i, name, size, axes, ways in self.undivided
        ]
        _, name, size, _, ways = self.undivided[0]
        up = math.ceil(size / ways) * ways
        return (
            f"{self.path} [{shape}] takes {self.held:,} bytes of every device instead of "
            f"{self.wanted:,}: {'; '.join(reasons)}. Make it {up}, or that axis of MeshConfig "
            f"another size; if it is meant, set MeshConfig.overrides = "
            f"(('params.{name}', None),) or a larger MeshConfig.replication_tolerance."
        )


def replicated_beyond(
    logical_axes: Any, shapes: Any, mesh: Mesh, rules: Rules, tolerance: float = 0.02
) -> list[Replicated]:
    """The parameters that lie in fewer pieces than the table asks for, if they matter.

    Args:
      logical_axes: tree like ``shapes`` whose leaves are tuples of logical names.
      shapes: tree of arrays or ``jax.ShapeDtypeStruct``.
      mesh: the mesh; an abstract one will do.
      rules: the rules.
      tolerance: of the bytes that a device would hold if all were divided, so much excess in sum
        is passed over.

    Returns:
      The largest excess first; empty if their sum is within the tolerance.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    found, total = [], 0
    for (path, x), axes in zip(flat, treedef.flatten_up_to(logical_axes), strict=True):
        asked, got = resolve(rules.params, axes, mesh), resolve(rules.params, axes, mesh, x.shape)
        size = math.prod(x.shape) * x.dtype.itemsize
        wanted, held = size // _pieces(asked, mesh), size // _pieces(got, mesh)
        total += wanted
        if held > wanted:
            undivided = tuple(
                (i, str(name), x.shape[i], _names(a), _ways(a, mesh))
                for i, (name, a, g) in enumerate(zip(axes, asked, got, strict=True))
                if _ways(a, mesh) > _ways(g, mesh)
            )
            found.append(Replicated(dotted(path), tuple(x.shape), undivided, held, wanted))
    if sum(each.excess for each in found) <= tolerance * total:
        return []
    return sorted(found, key=lambda each: -each.excess)


def _pieces(spec: Any, mesh: Mesh) -> int:
    return math.prod(_ways(entry, mesh) for entry in spec)


def _ways(entry: Any, mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in _axes(entry))


def _axes(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _names(entry: Any) -> str:
    return " x ".join(f"MeshConfig.{axis}" for axis in _axes(entry))
