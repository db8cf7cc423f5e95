"""One run of several processes on this machine, started again whenever it dies.

This is what a cluster's controller does for a run on many hosts: all processes live and die
together, and what they lost is found again in the newest checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import IO, Any

from t5x_llm.core.errors import RESTARTABLE, ConfigError, check_number

# Variables that say which process of which group a process is: the parent's are not the child's.
_GROUP = re.compile(
    r"(MEGASCALE|SLURM|OMPI|PMI|PMIX)_|TPU_(WORKER|PROCESS)_|CLOUD_TPU_TASK_ID$"
    r"|JAX_(COORDINATOR_|NUM_PROCESSES$|PROCESS_ID$|LOCAL_DEVICE_IDS$|PARTITION_|SLICE_)"
)
_COUNT = "--xla_force_host_platform_device_count"
# Between SIGTERM and SIGKILL for processes that are left over.
_TERM_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Local:
    """A command in several processes on this machine, and how often it is started again.

    Attributes:
      command: program and arguments; each process runs it.
      processes: how many.
      devices: CPU devices of each process; None leaves the platform to JAX.
      restarts: in a row; a run that lives longer than ``settled_seconds`` counts anew.
      grace_seconds: for the others to end by themselves once one has.
      backoff_seconds: before the first restart; doubled for each further one.
      most_backoff_seconds: its limit.
      settled_seconds: see ``restarts``.
    """

    command: tuple[str, ...]
    processes: int = 2
    devices: int | None = None
    restarts: int = 10
    grace_seconds: float = 30.0
    backoff_seconds: float = 1.0
    most_backoff_seconds: float = 60.0
    settled_seconds: float = 300.0

    def __post_init__(self) -> None:
        if not self.command:
            raise ConfigError(
                "launch", "", "a command", "t5x-llm launch --processes=2 -- python train.py ..."
            )
        if shutil.which(self.command[0]) is None:
            raise ConfigError("launch", self.command[0], "a program that can be run")
        check_number("--processes", self.processes, low=1, integer=True)
        if self.devices is not None:
            check_number("--devices", self.devices, low=1, integer=True)
        check_number("--restarts", self.restarts, low=0, integer=True)
        check_number("--grace", self.grace_seconds, low=0)
        check_number("--backoff", self.backoff_seconds, low=0)


def environment(job: Local, index: int, port: int, parent: Mapping[str, str]) -> dict[str, str]:
    """The variables of one process.

    Args:
      job: the group.
      index: of the process.
      port: of the coordinator, on this machine.
      parent: variables to start from; those that place the parent in a group are dropped.
    """
    env = {name: value for name, value in parent.items() if not _GROUP.match(name)}
    env |= {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(job.processes),
        "JAX_PROCESS_ID": str(index),
        "PYTHONUNBUFFERED": "1",
    }
    if job.devices is not None:
        flags = [f for f in env.get("XLA_FLAGS", "").split() if not f.startswith(_COUNT)]
        env["XLA_FLAGS"] = " ".join([*flags, f"{_COUNT}={job.devices}"])
        env["JAX_PLATFORMS"] = "cpu"
    return env


def run(job: Local) -> int:
    """Runs the group until it is done, or cannot be helped.

    Started again: when the first process to end died by a signal or left with one of
    ``core.errors.RESTARTABLE``. SIGTERM and SIGINT are passed on, and then nothing is started.

    Returns:
      The status for this process to exit with.
    """
    with _Signals() as signals:
        failures = 0
        while True:
            started = time.monotonic()
            index, status = _Group(job, signals).wait()
            if status == 0 or signals.heard is not None:
                return _exit_status(status)
            ending = f"process {index} ended with {_words(status)}"
            if status > 0 and status not in RESTARTABLE:
                _say(f"{ending}; starting it again would not help")
                return status
            failures = 1 if time.monotonic() - started > job.settled_seconds else failures + 1
            if failures > job.restarts:
                _say(f"{ending}; giving up after {job.restarts} restarts in a row")
                return _exit_status(status)
            pause = min(job.backoff_seconds * 2 ** (failures - 1), job.most_backoff_seconds)
            _say(f"{ending}; starting all again in {pause:g} s ({failures} of {job.restarts})")
            if signals.sleep(pause):
                return _exit_status(-(signals.heard or 0))


class _Signals:
    """SIGTERM and SIGINT of this process, passed on to the group of the moment."""

    def __init__(self) -> None:
        self.heard: int | None = None
        self.group: _Group | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: Any) -> None:
        self.heard = number
        if self.group is not None:
            self.group.send(number)

    def sleep(self, seconds: float) -> bool:
        """Sleeps until a signal comes or the time is over; returns True if a signal came."""
        end = time.monotonic() + seconds
        while self.heard is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))
        return self.heard is not None


class _Group:
    """The processes of one attempt."""

    def __init__(self, job: Local, signals: _Signals):
        self._job = job
        self._changed = threading.Condition()
        self._ended: list[tuple[float, int, int]] = []  # (time, index, status)
        self._processes: list[subprocess.Popen[bytes]] = []
        port = free_port()
        try:
            for index in range(job.processes):
                self._start(index, port)
        except BaseException:
            self._clear()
            raise
        signals.group = self
        if signals.heard is not None:
            self.send(signals.heard)

    def _start(self, index: int, port: int) -> None:
        process = subprocess.Popen(
            self._job.command,
            env=environment(self._job, index, port, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that a terminal's Ctrl-C comes once, through us
        )
        self._processes.append(process)
        threading.Thread(target=self._follow, args=(index, process), daemon=True).start()

    def _follow(self, index: int, process: subprocess.Popen[bytes]) -> None:
        """Prints what a process prints, and notes how it ended."""
        readers = [
            threading.Thread(target=_copy, args=(index, theirs, ours), daemon=True)
            for theirs, ours in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        for reader in readers:
            reader.start()
        status, ended = process.wait(), time.monotonic()
        for reader in readers:
            reader.join(2.0)  # a grandchild may hold the pipe
        with self._changed:
            self._ended.append((ended, index, status))
            self._changed.notify_all()

    def send(self, number: int) -> None:
        """Sends a signal to those that live."""
        for process in self._processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

    def wait(self) -> tuple[int, int]:
        """The process that ended the group, and its status; none is left when it returns."""
        try:
            with self._changed:
                while not self._failed() and len(self._ended) < self._job.processes:
                    self._changed.wait(0.5)  # with a limit, so that signals are heard
            if self._failed():
                self._await_all(self._job.grace_seconds)
            return self._failed()[0] if self._failed() else (0, 0)
        finally:
            self._clear()

    def _failed(self) -> list[tuple[int, int]]:
        """(index, status) of those that failed, the first to end first: it is the cause."""
        return [(index, status) for _, index, status in sorted(self._ended) if status]

    def _await_all(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self._changed:
            while len(self._ended) < self._job.processes and time.monotonic() < end:
                self._changed.wait(0.2)

    def _clear(self) -> None:
        """Ends what is left, the children of our processes too."""
        if len(self._ended) < len(self._processes):
            self.send(signal.SIGTERM)
            self._await_all(_TERM_SECONDS)
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _copy(index: int, theirs: IO[bytes], ours: IO[str]) -> None:
    """Line by line, with the process's number in front."""
    with contextlib.suppress(ValueError, OSError), theirs:
        for line in theirs:
            text = line.decode("utf-8", "replace").rstrip("\n")
            ours.write(f"[{index}] {text}\n")
            ours.flush()


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return int(s.getsockname()[1])


def _exit_status(status: int) -> int:
    return 128 - status if status < 0 else status


def _words(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"


def _say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr, flush=True)
