"""Compiles while the run goes on, in a thread, and keeps what is compiled from run to run."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.stages import Wrapped

_BYTES = 2 << 30  # of the user's cache
_SECONDS = 0.2  # what compiles faster is not worth a file


class Ahead:
    """Jitted function that is compiled for given arguments in a thread while its caller goes on.

    The first call waits for the compilation. The compiler uses threads of its own and not Python's
    lock, so parameters may be made or restored meanwhile. The thread is no daemon: an interpreter
    that ends waits for the compiler.

    Args:
      function: a function from ``jax.jit``.
      args: arguments of the calls to come, or ``jax.ShapeDtypeStruct`` with their shardings; a
        call with other shapes or shardings compiles again.
    """

    def __init__(self, function: Wrapped, *args: object):
        self._function = function
        self._thread = threading.Thread(target=self._compile, args=args, name="compile")
        self._thread.start()

    def _compile(self, *args: object) -> None:
        with contextlib.suppress(Exception):  # the call will meet it, where it can be raised
            self._function.lower(*args).compile()

    def __call__(self, *args: object) -> Any:
        """Calls the function, once it is compiled."""
        self._thread.join()
        return self._function(*args)


def keep_compiled(
    directory: str | os.PathLike[str],
    environ: Mapping[str, str] | None = None,
    update: Callable[[str, Any], None] = jax.config.update,
) -> str | None:
    """Keeps what is compiled for the next run; call it when the processes have joined.

    ``JAX_COMPILATION_CACHE_DIR`` says where, ``JAX_ENABLE_COMPILATION_CACHE=0`` that it is not
    wanted. By default it is the user's cache (``$XDG_CACHE_HOME`` or ``~/.cache``), cut down to
    2 GiB; several processes, which have no home in common but the run, use its directory: there
    process 0 writes what all find when they are started again.

    Args:
      directory: the run directory.
      environ: the environment variables; the process's own if None.
      update: sets an option of JAX.

    Returns:
      The cache's directory; None if it was given already or is not wanted.
    """
    env = os.environ if environ is None else environ
    config = jax.config
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        return None
    if jax.process_count() > 1:
        place = os.path.join(os.fspath(directory), "compiled")
    else:
        home = env.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        place = os.path.join(home, "t5x_llm", "compiled")
        with contextlib.suppress(OSError):  # as where another process does the same
            cut_down(place, _BYTES)
    update("jax_compilation_cache_dir", place)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in env:
        update("jax_persistent_cache_min_compile_time_secs", _SECONDS)
    return place


def cut_down(directory: str, limit: int) -> None:
    """Removes the files of a local directory that were unused for longest, down to ``limit`` bytes.

    (JAX's own limit keeps a second file for each; a run that is killed between the two writes would
    leave a cache that takes nothing more.)
    """
    files = []
    for entry in os.scandir(directory) if os.path.isdir(directory) else ():
        if entry.is_file(follow_symlinks=False):
            found = entry.stat()
            files.append((max(found.st_atime, found.st_mtime), found.st_size, entry.path))
    held = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if held <= limit:
            return
        os.remove(path)
        held -= size
