"""Calls of gcloud and kubectl: each has a time limit, and none is believed before it is checked."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from t5x_llm.core.errors import T5xLLMError

_KILL_SECONDS = 5.0
_LINES = 30


class CloudError(T5xLLMError):
    """A command of a cloud failed, or its answer cannot be had."""


class Terminated(BaseException):
    """A signal asks this process to end.

    Attributes:
      signum: the signal.
    """

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


@dataclasses.dataclass(frozen=True)
class CallOutcome:
    """Result of a call.

    Attributes:
      command: program and arguments.
      status: exit status; None where the call was ended at its time limit.
      stdout: what it printed, '' where that was shown.
      stderr: what it complained of.
      limit: seconds it was given.
    """

    command: tuple[str, ...]
    status: int | None
    stdout: str
    stderr: str
    limit: float

    @property
    def ok(self) -> bool:
        """True where it left with status 0."""
        return self.status == 0

    def complaint(self) -> str:
        """Everything that the call said of its failure, its last thirty lines at most."""
        name = " ".join(word for word in self.command[:5] if not word.startswith("-"))
        if self.status is None:
            return f"{name}: no answer within {self.limit:g} s"
        lines = [line.rstrip() for line in self.stderr.splitlines() if line.strip()]
        said = "\n".join(lines[-_LINES:]) or f"status {self.status} without a word"
        return f"{name}: {said}"


Call = Callable[..., CallOutcome]


def call(
    command: Sequence[str], limit: float, text: str | None = None, show: bool = False
) -> CallOutcome:
    """Runs a command, and ends it with all that it started at a time limit.

    Args:
      command: program and arguments.
      limit: seconds.
      text: for its standard input.
      show: whether its output goes to the terminal as it comes, instead of into the outcome.

    Raises:
      CloudError: the program is not installed.
    """
    pipe = None if show else subprocess.PIPE
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
            stdout=pipe,
            stderr=pipe,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError as e:
        raise CloudError(f"{command[0]} is not installed; t5x-llm submit needs it.") from e
    status: int | None
    try:
        out, err = process.communicate(text, timeout=limit)
        status = process.returncode
    except subprocess.TimeoutExpired:
        _end(process)
        out = err = ""
        status = None
    except BaseException:
        _end(process)
        raise
    return CallOutcome(tuple(command), status, out or "", err or "", limit)


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a process and its children: asked first, so that gcloud can close its connections."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_KILL_SECONDS)
            return


@contextlib.contextmanager
def terminations() -> Iterator[None]:
    """Raises ``Terminated`` on SIGTERM and SIGHUP while open, in the main thread."""

    def raised(signum: int, _: object) -> None:
        raise Terminated(signum)

    old = {}
    with contextlib.suppress(ValueError):
        for signum in (signal.SIGTERM, signal.SIGHUP):
            old[signum] = signal.signal(signum, raised)
    try:
        yield
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)


def say(text: str) -> None:
    """Prints a line of ``submit`` on standard error."""
    print(f"submit: {text}", file=sys.stderr, flush=True)
