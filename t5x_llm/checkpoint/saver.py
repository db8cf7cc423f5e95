"""Writing one checkpoint at a time in the background: Orbax first, then checksums."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from t5x_llm.checkpoint import checksums
from t5x_llm.core.errors import CheckpointError

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

STATE, META = "state", "meta"
_TIMEOUT_SECONDS = 1200
# Orbax waits for the other processes twice (files written, directory renamed), we once more
# (checksums written) before a checkpoint is complete.
_MEETINGS = 3
# Reading a piece of an array decodes the chunks it lies in, so small chunks are what lets another
# mesh read little more than its share. They are packed into large files all the same.
_CHUNK_BYTES = 1 << 23
_SMALLEST_CHUNK = 1 << 18
_numbers = itertools.count()


class Saver:
    """Saves in a thread, and says there how it ended.

    Args:
      done: called in the thread with the step and the error, None if the checkpoint is complete.
    """

    def __init__(self, done: Callable[[int, Exception | None], None]):
        # Only who saves pays for Orbax; a run does while its first step compiles in a thread.
        import orbax.checkpoint as ocp

        self._done = done
        self._thread: threading.Thread | None = None
        self._number = self._met = 0
        self._barrier = ocp.multihost.get_barrier_sync_fn()
        self._orbax: ocp.AsyncCheckpointer | None = None

    def _make(self) -> ocp.AsyncCheckpointer:
        import orbax.checkpoint as ocp

        return ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.options.AsyncOptions(
                timeout_secs=_TIMEOUT_SECONDS,
                barrier_sync_fn=self._meet,
                # On one process a directory that cannot be made is then an error at once.
                create_directories_asynchronously=jax.process_count() > 1,
            ),
        )

    def start(self, step: int, path: Any, state: Any, meta: dict[str, Any]) -> None:
        """Returns when the state is copied to the host; the save before must be over."""
        import orbax.checkpoint as ocp

        self._number, self._met = next(_numbers), 0
        arguments = jax.tree.map(lambda x: ocp.SaveArgs(chunk_byte_size=chunk_bytes(x)), state)
        orbax = self._orbax = self._orbax or self._make()
        try:
            orbax.save(
                path,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state, save_args=arguments),
                    meta=ocp.args.JsonSave(meta),
                ),
                force=True,
            )
        except Exception:
            self._discard()
            raise
        self._thread = threading.Thread(
            target=self._run, args=(orbax, step, path), name="checkpoint"
        )
        self._thread.start()

    def join(self) -> None:
        """Waits for the save in progress, if any."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Stops the background threads."""
        self.join()
        self._discard()

    def _discard(self) -> None:
        """Ends Orbax's checkpointer; after a failed write its store of metadata fails for ever."""
        orbax, self._orbax = self._orbax, None
        if orbax is not None:
            with contextlib.suppress(Exception):
                orbax.close()

    def _meet(self, *, key: str = "", timeout_ms: int = _TIMEOUT_SECONDS * 1000) -> None:
        """Waits for the other processes, under a number in place of Orbax's key."""
        self._met += 1
        name = f"t5x_llm.checkpoint.{self._number}.{self._met}"
        self._barrier(key=name, timeout_ms=timeout_ms)

    def _run(self, orbax: ocp.AsyncCheckpointer, step: int, path: Any) -> None:
        error: Exception | None = None
        try:
            orbax.wait_until_finished()
            checksums.write(path, jax.process_index(), jax.process_count())
        # Orbax and TensorStore raise many types, plain Exception among them.
        except Exception as e:
            error = e
        try:
            # A process whose share failed goes on meeting the others: they would wait for it until
            # the timeout. Its checksums are missing, so the checkpoint counts for nothing.
            while self._met < _MEETINGS:
                self._meet()
            if error is None and not checksums.parts(path):
                error = CheckpointError("another process could not write its share")
        except Exception as e:
            error = error or e
        if error is not None:
            self._discard()
        self._done(step, error)
        with contextlib.suppress(Exception):
            self._meet()  # so that all see the directory as ``done`` left it


def chunk_bytes(array: Any) -> int | None:
    """The bound on an array's chunks, None where its dimensions do not divide into such."""
    whole, piece = tuple(array.shape), tuple(array.shape)
    if isinstance(array, jax.Array):
        piece = array.sharding.shard_shape(whole)
    chunk, limit = list(piece), _CHUNK_BYTES // array.dtype.itemsize
    # As Orbax will cut it: dimensions that are cut already first, the largest first, to the next
    # smaller divisor. A large prime falls to 1 in one go.
    cut = [a != b for a, b in zip(whole, piece, strict=True)]
    while math.prod(chunk) > limit:
        some = [i for i in range(len(chunk)) if cut[i] and chunk[i] > 1]
        if not some:
            cut = [True] * len(chunk)
            continue
        i = max(some, key=lambda i: chunk[i])
        chunk[i] = next(d for d in range(chunk[i] - 1, 0, -1) if piece[i] % d == 0)
    tiny = math.prod(chunk) * array.dtype.itemsize < _SMALLEST_CHUNK
    return None if tiny and tuple(chunk) != piece else _CHUNK_BYTES
