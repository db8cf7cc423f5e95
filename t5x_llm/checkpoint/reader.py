"""Reading a checkpoint's arrays onto the devices, with little more host memory than they take."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Iterator
from typing import Any

import jax

from t5x_llm.checkpoint.compat import check_tree, dotted, leaves

# What is being read at a time, beyond what has arrived: a part of the local share.
_IN_FLIGHT = 1 / 32
_LEAST_IN_FLIGHT = 1 << 25
_MIB = 1 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def read(path: Any, abstract: Any, where: str, partial: bool = False) -> Any:
    """The arrays under ``path``; each device reads the pieces it keeps.

    Args:
      path: the directory of the state.
      abstract: tree of ``jax.ShapeDtypeStruct`` with shardings.
      where: the checkpoint, for messages.
      partial: reads the subtrees that ``abstract`` names and leaves the others.

    Raises:
      CheckpointError: if the arrays are others than ``abstract`` says.
    """
    import orbax.checkpoint as ocp

    metadata = ocp.PyTreeCheckpointHandler()
    try:
        tree = metadata.metadata(path).tree
    finally:
        metadata.close()
    saved, wanted = leaves(tree), leaves(abstract)
    if partial:
        tops = {name.split(".")[0] for name in wanted}
        saved = {k: v for k, v in saved.items() if k.split(".")[0] in tops}
    check_tree(saved, wanted, where)
    limit = in_flight(tree, abstract)
    reader = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=limit / 10**9)
    try:
        # Little is gained on a small model.
        with buffers_given_back() if limit > _LEAST_IN_FLIGHT else contextlib.nullcontext():
            return reader.restore(
                path,
                args=ocp.args.PyTreeRestore(
                    item=abstract,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                    partial_restore=partial,
                ),
            )
    finally:
        reader.close()


@contextlib.contextmanager
def buffers_given_back() -> Iterator[None]:
    """The system gets the buffers of chunks back as soon as they are freed.

    glibc keeps freed blocks of up to 32 MiB for itself, in an arena for every thread: measured,
    that was 0.1 to 0.4 of all that is read. Afterwards its thresholds are where its own rule takes
    them once blocks of that size have been freed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _MIB)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)
        mallopt(_M_TRIM_THRESHOLD, 64 * _MIB)


def in_flight(saved: Any, abstract: Any) -> int:
    """Bytes that may be read at a time: enough for the largest piece with the chunks it lies in."""
    flat, _ = jax.tree_util.tree_flatten_with_path(saved)
    chunks = {dotted(path): getattr(x.storage, "chunk_shape", None) for path, x in flat}
    flat, _ = jax.tree_util.tree_flatten_with_path(abstract)
    share = largest = 0
    for path, leaf in flat:
        shape, size = tuple(leaf.shape), jax.numpy.dtype(leaf.dtype).itemsize
        piece, pieces = shape, 1
        if leaf.sharding is not None:
            piece = leaf.sharding.shard_shape(shape)
            indices = leaf.sharding.addressable_devices_indices_map(shape).values()
            pieces = len({str(index) for index in indices})
        share += math.prod(piece) * size * pieces
        chunk = chunks[dotted(path)] or shape
        touched = math.prod(map(_touched, shape, piece, chunk))
        largest = max(largest, touched * size)
    return max(largest + 1, int(share * _IN_FLIGHT), _LEAST_IN_FLIGHT)


def _touched(whole: int, piece: int, chunk: int) -> int:
    """Bounds the length, in one dimension, of the chunks that a piece of an array lies in."""
    if piece % chunk == 0:  # pieces begin at multiples of their length
        return piece
    if chunk % piece == 0:
        return chunk
    return min(-(-whole // chunk), (piece + chunk - 2) // chunk + 1) * chunk
