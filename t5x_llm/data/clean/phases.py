"""Phases of independent tasks, run by a pool of processes or by Apache Beam, kept when finished.

A task writes files of its own and then, whole or not at all, a marker with its result. A task whose
marker has its fingerprint is not run again: a killed run goes on where it was. Nothing passes
between tasks but files, so who runs them, where, and in which order does not show in the output.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol

from tqdm import tqdm

from t5x_llm.core.errors import ConfigError
from t5x_llm.core.paths import as_path, write_atomic
from t5x_llm.data.pool import Pool

# Less input than this a process is not worth the second it takes to start.
_BYTES_A_WORKER = 2 << 20


@dataclasses.dataclass(frozen=True)
class CleanTask:
    """Task of a phase: one call of the phase's function.

    Attributes:
      name: name of its files.
      fingerprint: hash of all that decides what it writes.
      size: bytes of its input, for the progress bar.
      argument: argument of the function.
    """

    name: str
    fingerprint: str
    size: int
    argument: Any


# (context, argument, path without suffix for the task's files) -> result as JSON.
Function = Callable[[Any, Any, str], Any]


def fingerprint(*parts: object) -> str:
    """Returns a hash of JSON-able parts, hex."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def perform(function: Function, context: Any, folder: str, task: CleanTask) -> None:
    """Runs a task and marks it as finished."""
    # A marker of other settings must not vouch for files half overwritten.
    as_path(f"{folder}/{task.name}.json").unlink(missing_ok=True)
    result = function(context, task.argument, f"{folder}/{task.name}")
    marker = {"fingerprint": task.fingerprint, "result": result}
    write_atomic(f"{folder}/{task.name}.json", json.dumps(marker, ensure_ascii=False))


class Runner(Protocol):
    """Performer of tasks, in any order and on any machine."""

    def run(
        self, function: Function, context: Any, folder: str, tasks: Sequence[CleanTask], bar: tqdm
    ) -> None: ...


class PoolRunner:
    """Runner on processes of this machine.

    Args:
      workers: number of processes; 0 is one a core.
    """

    def __init__(self, workers: int):
        self._wanted, self._workers = workers, workers or os.cpu_count() or 1
        self._pool = Pool(
            self._workers,
            "A worker process was ended from outside, perhaps for want of memory. Set "
            "Clean.workers lower, or Clean.shard_bytes; the same command goes on where it was.",
        )

    def __enter__(self) -> PoolRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.__exit__(kind, error, trace)

    def run(
        self, function: Function, context: Any, folder: str, tasks: Sequence[CleanTask], bar: tqdm
    ) -> None:
        total = sum(task.size for task in tasks)
        if len(tasks) < 2 or self._workers < 2 or (not self._wanted and total < _BYTES_A_WORKER):
            for task in tasks:
                perform(function, context, folder, task)
                bar.update(task.size)
            return
        calls = [(function, context, folder, task) for task in tasks]
        self._pool.map(perform, calls, lambda i: bar.update(tasks[i].size))


class BeamRunner:
    """Runner by Apache Beam, one pipeline a phase; its workers must see all files.

    Args:
      options: flags of the pipelines, such as ``--runner=DataflowRunner``.
    """

    def __init__(self, options: Sequence[str]):
        try:
            import apache_beam  # noqa: F401
        except ImportError as e:
            raise ConfigError(
                "Clean.runner", "beam", "'pool', as Apache Beam is not installed",
                "pip install 't5x-llm[beam]'",
            ) from e  # fmt: skip
        self._options = list(options)

    def __enter__(self) -> BeamRunner:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def run(
        self, function: Function, context: Any, folder: str, tasks: Sequence[CleanTask], bar: tqdm
    ) -> None:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        with beam.Pipeline(options=PipelineOptions(self._options)) as pipeline:
            _ = (
                pipeline
                | beam.Create(list(tasks))
                # Without it a runner may fuse the tasks into one worker.
                | beam.Reshuffle()
                | beam.Map(_perform, function, context, folder)
            )
        bar.update(sum(task.size for task in tasks))


def _perform(task: CleanTask, function: Function, context: Any, folder: str) -> None:
    perform(function, context, folder, task)


class Phases:
    """Runs phases one after another.

    Args:
      work: directory of their files.
      runner: performs the tasks.
    """

    def __init__(self, work: str, runner: Runner):
        self._work, self._runner = work, runner
        self.performed = 0

    def run(self, phase: str, function: Function, context: Any, tasks: Sequence[CleanTask]) -> None:
        """Performs those tasks of a phase that are not finished yet."""
        folder = f"{self._work}/{phase}"
        as_path(folder).mkdir(parents=True, exist_ok=True)
        left = [task for task in tasks if _read(folder, task) is None]
        if not left:
            return
        total = sum(task.size for task in tasks)
        with tqdm(total=total, initial=total - sum(task.size for task in left), desc=phase,
                  unit="B", unit_scale=True, disable=None) as bar:  # fmt: skip
            self._runner.run(function, context, folder, left, bar)
        self.performed += len(left)

    def results(self, phase: str, tasks: Sequence[CleanTask]) -> Iterator[Any]:
        """Yields the results of a phase that was run, in order."""
        for task in tasks:
            marker = _read(f"{self._work}/{phase}", task)
            assert marker is not None, f"{phase}/{task.name} was not performed"
            yield marker["result"]

    def path(self, phase: str, task: CleanTask) -> str:
        """Returns the path of a task's files, without suffix."""
        return f"{self._work}/{phase}/{task.name}"


def _read(folder: str, task: CleanTask) -> dict[str, Any] | None:
    try:
        marker = json.loads(as_path(f"{folder}/{task.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    fits = isinstance(marker, dict) and marker.get("fingerprint") == task.fingerprint
    return marker if fits else None
