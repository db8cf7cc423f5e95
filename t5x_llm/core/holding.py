"""One holder of a directory at a time: a record with host, process and heartbeat beside the files.

A program that writes a directory for long, as a training does, holds it by ``.running.json`` there.
A second program reads the record, and is refused while the holder lives. Whether it lives follows,
on the same machine, from the process of that number and start time; elsewhere, from a heartbeat:
a record that does not change for ``STALE_SECONDS`` is a dead holder's, and is taken over.

Every write names the generation of the record that it replaces (TensorStore's conditional writes:
preconditions in a bucket, locks of the system on a disk), so of two programs one succeeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from t5x_llm.core.errors import T5xLLMError
from t5x_llm.core.paths import as_path

RECORD = ".running.json"
BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0  # several heartbeats: a bucket may be slow
_POLL_SECONDS = 0.5
_SETTLE_SECONDS = 0.3


class Held(T5xLLMError):
    """Another process, which lives, holds the directory."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """Process that holds a directory.

    Attributes:
      what: what it does, such as ``training``.
      host: name of its machine.
      machine: identity of boot and process namespace, within which a pid means one process.
      pid: number of the process.
      started: start of the process in the system's ticks since boot; '' where unknown.
      token: unique among all holders.
      since: seconds since 1970 at which it took the directory.
      beat: seconds since 1970 of its last sign of life, by its own clock.
    """

    what: str
    host: str
    machine: str
    pid: int
    started: str
    token: str
    since: float
    beat: float

    @classmethod
    def me(cls, what: str) -> Holder:
        """Returns the record of this process."""
        pid, now = os.getpid(), time.time()
        started = _started(pid) or ""
        token = uuid.uuid4().hex
        return cls(what, socket.gethostname(), _machine(), pid, started, token, now, now)

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        """Returns the holder that a record names; None if it is no such record."""
        try:
            value = json.loads(data)
            fields = {f.name: value[f.name] for f in dataclasses.fields(cls)}
            numbers = all(
                isinstance(fields[name], (int, float)) for name in ("pid", "since", "beat")
            )
        except (ValueError, KeyError, TypeError):
            return None
        return cls(**fields) if numbers else None

    def dump(self) -> bytes:
        """Returns the record, of which ``parse`` makes the same holder."""
        return (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode()

    @property
    def here(self) -> bool:
        """Returns True if the holder's pid can be looked up on this machine."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def gone(self) -> bool:
        """Returns True if this machine knows that the holder's process has ended."""
        if not self.here:
            return False
        started = _started(self.pid)
        return started is None or bool(self.started and started and started != self.started)

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        ago = max(time.time() - self.beat, 0.0)
        return (
            f"{self.what} by process {self.pid} on {self.host} since {since}, last sign of life "
            f"{ago:.0f} s ago"
        )


def _machine() -> str:
    """Identifies this boot and this namespace of processes; '' where the system has no such."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Returns the start time of a live process, '' if unknown; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    except OSError:
        return ""
    if len(fields) < 20:
        return ""
    return None if fields[0] in "ZX" else fields[19]  # a zombie has ended


class Store(Protocol):
    """Keeper of one small value that is replaced only where it is as it was read."""

    def read(self) -> tuple[bytes | None, Any]:
        """Returns (value, generation); the value is None where there is none."""

    def write(self, value: bytes | None, generation: Any) -> Any:
        """Replaces the value of that generation, or removes it.

        Returns:
          The new generation; None if the value was not of that generation any more.
        """


class ConditionalStore:
    """Value in a bucket or on a disk, replaced in one operation that names its generation.

    Args:
      kvstore: ``tensorstore.KvStore`` of the directory.
      name: name of the file.
    """

    def __init__(self, kvstore: Any, name: str):
        self._kvstore, self._name = kvstore, name

    def read(self) -> tuple[bytes | None, Any]:
        """See ``Store``."""
        found = self._kvstore.read(self._name).result()
        return (found.value if found.state == "value" else None), found.stamp.generation

    def write(self, value: bytes | None, generation: Any) -> Any:
        """See ``Store``."""
        done = self._kvstore.write(self._name, value, if_equal=generation).result()
        return done.generation or None


class PlainStore:
    """Value where nothing can be replaced conditionally: it is written, and read again later.

    Of two that write within ``_SETTLE_SECONDS`` the last one wins, and both see which.

    Args:
      path: ``epath.Path`` of the file.
    """

    def __init__(self, path: Any):
        self._path = path

    def read(self) -> tuple[bytes | None, Any]:
        """See ``Store``."""
        try:
            value = self._path.read_bytes()
        except FileNotFoundError:
            return None, b""
        return value, value

    def write(self, value: bytes | None, generation: Any) -> Any:
        """See ``Store``."""
        if self.read()[1] != generation:
            return None
        if value is None:
            self._path.unlink(missing_ok=True)
            return b""
        self._path.write_bytes(value)
        time.sleep(_SETTLE_SECONDS)
        return value if self.read()[1] == value else None


def store_of(directory: str | os.PathLike[str], name: str = RECORD) -> Store:
    """Returns the store of the record ``name`` in a directory."""
    place = str(as_path(directory))
    scheme, mark, rest = place.partition("://")
    try:
        import tensorstore as ts

        if not mark:
            spec: Any = {"driver": "file", "path": os.path.abspath(place) + "/"}
        elif scheme == "gs":
            bucket, _, key = rest.partition("/")
            spec = {"driver": "gcs", "bucket": bucket, "path": f"{key.strip('/')}/".lstrip("/")}
        else:
            spec = place.rstrip("/") + "/"
        store = ConditionalStore(ts.KvStore.open(spec).result(), name)
        store.read()
        return store
    # TensorStore knows not every file system, nor every system that has no locks.
    except Exception:
        return PlainStore(as_path(directory) / name)


class Hold:
    """Hold on a directory from ``__enter__`` to ``__exit__``, with a heartbeat in a thread.

    Args:
      directory: local or ``gs://``; it exists.
      what: what is done there, for the message that another process gets.
      lost: called in the thread with the new holder, or None, if this hold was taken away.
      patient: wait for a silent holder on another machine to become stale, as a job must whose
        machines were replaced; without it a holder that was heard of lately is refused at once.
      say: takes a line about a holder that is gone.
      store: the store; that of the directory if None.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        what: str,
        lost: Callable[[Holder | None], object] = lambda holder: None,
        patient: bool = False,
        say: Callable[[str], object] = lambda text: None,
        store: Store | None = None,
    ):
        self.directory, self._what = str(directory), what
        self._lost, self._patient, self._say = lost, patient, say
        self._store = store
        self._generation: Any = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Hold:
        """Takes the directory.

        Raises:
          Held: a process that lives holds it.
        """
        self._store = self._store or store_of(self.directory)
        self._me = Holder.me(self._what)
        while True:
            data, generation = self._store.read()
            holder = Holder.parse(data) if data is not None else None
            if holder is not None:
                self._check_gone(holder, generation)
            try:
                taken = self._store.write(self._me.dump(), generation)
            except Exception as e:  # a full disk, say; whoever starts next is not told
                self._say(f"{self.directory} cannot be marked as in use: {e}")
                taken = generation
            if taken is not None:
                break
        if holder is not None:
            self._say(f"{self.directory}: taken over; its holder is gone: {holder}.")
        self._generation = taken
        self._thread = threading.Thread(target=self._beat, name="hold", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(BEAT_SECONDS)
        with contextlib.suppress(Exception):  # who comes next sees that this process is gone
            assert self._store is not None
            self._store.write(None, self._generation)

    def _check_gone(self, holder: Holder, generation: Any) -> None:
        """Returns once the holder is known to be gone, or its record was replaced.

        Raises:
          Held: it lives.
        """
        if holder.gone:
            return
        silent = time.time() - holder.beat
        if holder.here or (silent < STALE_SECONDS and not self._patient):
            raise self._held(holder)
        # Clocks of two machines may differ: what counts is that the record does not change.
        wait = max(2 * BEAT_SECONDS, STALE_SECONDS - max(silent, 0.0))
        end = time.monotonic() + wait
        self._say(f"{self.directory}: waiting {wait:.0f} s for a sign of its holder: {holder}.")
        assert self._store is not None
        while time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
            data, now = self._store.read()
            if data is None:
                return
            if now != generation:
                raise self._held(Holder.parse(data) or holder)

    def _held(self, holder: Holder) -> Held:
        if holder.here:
            remedy = f"Wait for it, or end it (kill {holder.pid})."
        else:
            remedy = (
                f"Wait for it, or end it there; {STALE_SECONDS:.0f} s after its last sign of life "
                "the same command takes over."
            )
        return Held(
            f"{self.directory} is in use: {holder}. Two processes there would mix their files. "
            f"{remedy} Or choose another directory."
        )

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            try:
                if not self._again():
                    return
            except Exception:
                continue  # a disk that is full, a bucket that is away: the next one may succeed

    def _again(self) -> bool:
        """Writes a sign of life; returns False if another process holds the directory now."""
        assert self._store is not None
        record = dataclasses.replace(self._me, beat=time.time()).dump()
        taken = self._store.write(record, self._generation)
        if taken is None:
            data, generation = self._store.read()
            holder = Holder.parse(data) if data is not None else None
            if holder is not None and holder.token != self._me.token:
                if not self._closed.is_set():
                    self._lost(holder)
                return False
            # Removed by hand, or written by us and the answer lost.
            taken = self._store.write(record, generation)
        if taken is not None:
            self._generation = taken
        return True
