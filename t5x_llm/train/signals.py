"""Signals to a process that it must stop, and its exit when other processes are gone."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import jax

from t5x_llm.core.errors import PeerLost, Preempted, SpikeError, T5xLLMError
from t5x_llm.train.peers import Peers

# What runtimes say when another process is gone or silent.
_LOST = re.compile(
    r"gloo|nccl|megascale|coordination service|barrier|heartbeat|socket closed"
    r"|connection (closed|reset|refused|aborted|timed out)|broken pipe"
    r"|^(unavailable|deadline_exceeded|aborted|cancelled):",
    re.IGNORECASE | re.MULTILINE,
)
# The coordinator leaves so many seconds after the others: when it goes, JAX aborts them.
LINGER = 2.0
# Seconds for what is written at the end: what is stuck may be the disk.
FINAL_WRITE_SECONDS = 10.0
# Raised by all processes at the same step; they end together, by the ordinary way.
_AGREED = (Preempted, SpikeError)
_ENDING = threading.Lock()


class Preemption:
    """Receives SIGTERM while it is open; a context manager, for the main thread.

    The first SIGTERM sets ``requested``; the run saves and ends by itself. The second one, or
    ``grace_seconds`` after the first, ends the process at once with status 75: a platform that
    takes its machine back kills soon. Python runs handlers in the main thread between two of its
    own instructions, and that thread may be deep in a collective, so a thread listens for both.

    Call it after ``parallel.initialize()``. Outside the main thread it receives nothing.

    Args:
      grace_seconds: time from the first SIGTERM to the end of the process.

    Attributes:
      requested: True once SIGTERM came.
    """

    def __init__(self, grace_seconds: float = 30.0):
        self.requested = False
        self._grace = grace_seconds
        self._open = threading.current_thread() is threading.main_thread()
        if not self._open:
            return
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, end == self._reader)
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._old_handler = signal.signal(signal.SIGTERM, self._hear)
        threading.Thread(target=self._listen, name="preemption", daemon=True).start()

    def close(self) -> None:
        """Restores the handler of SIGTERM; a grace period that has started goes on."""
        if not self._open:
            return
        self._open = False
        signal.signal(signal.SIGTERM, self._old_handler or signal.SIG_DFL)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._writer)

    def __enter__(self) -> Preemption:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def _listen(self) -> None:
        """Reads the numbers of all signals that arrive, until the other end is closed."""
        heard = 0
        with open(self._reader, "rb", buffering=0) as pipe:
            while byte := pipe.read(1):
                if byte[0] != signal.SIGTERM:
                    continue
                heard += 1
                self.requested = True
                code = Preempted.exit_code
                if heard == 1:
                    say(f"SIGTERM: saving, then leaving with status {code}; once more: at once.")
                    grace = threading.Timer(self._grace, self._expire)
                    grace.daemon = True
                    grace.start()
                else:
                    say(f"SIGTERM again: leaving at once with status {code}.")
                    os._exit(code)

    def _expire(self) -> None:
        say(f"{self._grace:g} s after SIGTERM: leaving with status {Preempted.exit_code}.")
        os._exit(Preempted.exit_code)


def peer_error(error: BaseException) -> PeerLost | None:
    """Returns a PeerLost if ``error`` means that another process is gone, else None.

    Args:
      error: the error that was raised; its causes are looked at too, since a checkpoint that waits
        for a lost process fails as well.
    """
    if not jax.distributed.is_initialized():
        return None
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, PeerLost):
            return cause
        if isinstance(cause, jax.errors.JaxRuntimeError) and _LOST.search(str(cause)):
            first = str(cause).strip().splitlines()[0][:300]
            return PeerLost(
                f"Another process of the run is gone ({first}). All must start again; the run "
                "continues from its newest checkpoint."
            )
        cause = cause.__cause__ or cause.__context__
    return None


def leave(code: int) -> NoReturn:
    """Ends this process now: no exit handlers, which would wait for processes that are gone."""
    coordinator: list[bool] = []

    def finish() -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if code == PeerLost.exit_code and jax.distributed.is_initialized():
            coordinator.append(jax.process_index() == 0)

    within(2.0, finish)
    if any(coordinator):
        time.sleep(LINGER)
    os._exit(code)


@contextlib.contextmanager
def exit_together(report: Callable[[BaseException], Any] | None = None) -> Iterator[None]:
    """Ends all processes of a run at once when one of them ends within the body.

    An error of one process alone must not make it wait, in a save or at JAX's exit barrier, for
    the others, who wait for it in a collective: its message is printed and it exits with the
    error's status. When another process is gone, this one exits with 76, wherever it is. On one
    process, and for errors that all processes raise at the same step, errors pass through.

    All processes enter it together, once they have their devices.

    Args:
      report: called with the error before the exit; not waited for longer than
        ``FINAL_WRITE_SECONDS`` seconds.
    """
    if not jax.distributed.is_initialized():
        yield
        return
    with Peers(lambda lost: _end(lost, report), say):
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, _AGREED):
                raise
            _end(error, report)


def _end(error: BaseException, report: Callable[[BaseException], Any] | None) -> None:
    cause = peer_error(error) or error
    if isinstance(cause, KeyboardInterrupt):
        code, text = 130, "Interrupted."
    elif isinstance(cause, T5xLLMError):
        code, text = cause.exit_code, f"{type(cause).__name__}: {cause}"
    else:
        code, text = 1, ""
    if not text or os.environ.get("T5X_LLM_TRACEBACK"):
        text = "".join(traceback.format_exception(error)) + text
    with _ENDING:  # once: the main thread and the one that watches the peers may both come here
        say(text.strip())
        if report is not None:
            within(FINAL_WRITE_SECONDS, lambda: report(cause))
        leave(code)


def within(seconds: float, function: Callable[[], Any]) -> None:
    """Calls ``function`` in a thread, and waits no longer than that; what it raises is dropped."""

    def call() -> None:
        with contextlib.suppress(Exception):
            function()

    thread = threading.Thread(target=call, daemon=True)
    with contextlib.suppress(RuntimeError):  # too late to start one
        thread.start()
        thread.join(seconds)


def say(text: str) -> None:
    """Prints a line past Python's buffers, whose lock a stuck thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
