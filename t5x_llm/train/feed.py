"""Batches on the mesh, prepared in a thread while the device works."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

from t5x_llm.data.batch import Batch
from t5x_llm.data.positions import DataState
from t5x_llm.data.prefetch import Prefetch
from t5x_llm.data.stream import Stream
from t5x_llm.parallel import Rules, batch_sharding, global_batch


@dataclasses.dataclass(frozen=True)
class Fed:
    """One global batch on the mesh.

    Attributes:
      size: its rows.
      batch: of ``jax.Array``.
      after: where the data stands behind it.
    """

    size: int
    batch: Batch
    after: DataState


def abstract_batch(stream: Stream, size: int, mesh: Mesh, rules: Rules) -> Batch:
    """What ``feed`` gives, as ``jax.ShapeDtypeStruct`` with shardings.

    Args:
      stream: what will be read.
      size: rows.
      mesh: the mesh.
      rules: the rules.
    """
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (size, *x.shape[1:]), x.dtype, sharding=batch_sharding(mesh, rules, x.ndim)
        ),
        stream.batch(0, 1),
    )


def feed(
    stream: Stream,
    data: DataState,
    size_at: Callable[[int], int],
    mesh: Mesh,
    rules: Rules,
    depth: int = 2,
) -> Prefetch[Fed]:
    """Endless batches from ``data`` on; each process loads its own rows alone.

    Args:
      stream: what to read; history and skips are those of ``data``.
      data: where to begin.
      size_at: position -> rows of the batch that begins there.
      mesh: the mesh.
      rules: the rules.
      depth: batches ready ahead of the one in use.

    Raises:
      Whatever the stream raises, in the thread that asks for the batch.
    """

    source = stream.at(data)

    def batches() -> Iterator[Fed]:
        state = data
        while True:
            position, size = state.position, size_at(state.position)

            def load(rows: slice, position: int = position, size: int = size) -> Batch:
                return source.batch(position, size, rows)

            state = dataclasses.replace(state, position=position + size)
            yield Fed(size, global_batch(load, size, mesh, rules), state)

    return Prefetch(batches(), depth)
