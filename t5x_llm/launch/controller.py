"""Keeps a job on Cloud TPU alive: asks, starts, follows, and begins again when machines are taken.

Machines cost money until they are deleted, and every answer of a cloud can be late, garbled or
missing. So whatever is asked for is noted on disk first (``launch.ledger``) and struck out only
when descriptions say that it is gone; an answer that cannot be had is no answer, and is asked for
again; and however this ends, what may remain is named with the command that deletes it.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Sequence

from t5x_llm.core.errors import RESTARTABLE, ConfigError
from t5x_llm.launch.bootstrap import follow_script, start_script, status_script
from t5x_llm.launch.calls import Call, CallOutcome, CloudError, Terminated, call, say, terminations
from t5x_llm.launch.job import Job
from t5x_llm.launch.ledger import Holding, Ledger, named
from t5x_llm.launch.queued import (
    create_command,
    describe_command,
    holding,
    ssh_command,
    upload_command,
)

# States in which a request will never give machines again.
_LOST = ("SUSPENDING", "SUSPENDED", "FAILED")
_MISSING = re.compile(r"\bNOT_FOUND\b|queuedResources/\S+ was not found")
# What asking again does not help, while nothing is at stake.
_MISTAKE = re.compile(
    r"PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|gcloud auth login|SERVICE_DISABLED"
)
_SIGNALLED = 128
_POLL_SECONDS = 15.0
_MOST_PAUSE_SECONDS = 120.0


class Absent(enum.Enum):
    """Why there is no state of a request."""

    GONE = "gone"
    UNKNOWN = "unknown"


class Unreachable(CloudError):
    """The cloud says nothing of machines that may run; they are left as they are."""


@dataclasses.dataclass(frozen=True)
class CallLimits:
    """Seconds that a call may take, and how often it is given again.

    Attributes:
      describe: of a request.
      create: a request.
      delete: it, its machines included, which gcloud waits for.
      copy: the code into the bucket.
      start: the job on all machines, their set-up included.
      status: of the job on all machines.
      follow: its log, until it is followed anew; more than ``bootstrap.FOLLOW_SECONDS``.
      tries: of a call that can simply be given again.
      patient_tries: where machines may run meanwhile; with pauses up to two minutes about an hour.
    """

    describe: float = 60.0
    create: float = 300.0
    delete: float = 900.0
    copy: float = 600.0
    start: float = 3600.0
    status: float = 180.0
    follow: float = 1800.0
    tries: int = 4
    patient_tries: int = 35


def commit_of(directory: str) -> str:
    """The last commit of a work tree.

    Raises:
      ConfigError: there is none.
    """
    found = call(["git", "-C", directory, "rev-parse", "HEAD"], CallLimits.copy)
    if not found.ok:
        raise ConfigError("QueuedResource.code", directory, "a git work tree with a commit")
    return found.stdout.strip()


class Controller:
    """Keeps one job alive until it is done.

    Args:
      job: whose target is a ``QueuedResource``.
      sleep: waits so many seconds.
      poll_seconds: between questions.
      limits: of calls.
      call: runs a command; see ``calls.call``.
    """

    def __init__(
        self,
        job: Job,
        sleep: Callable[[float], None] = time.sleep,
        poll_seconds: float = _POLL_SECONDS,
        limits: CallLimits | None = None,
        call: Call = call,
    ):
        self.job = job
        self.ledger = Ledger(job.name, job.target.project)
        self._sleep = sleep
        self._poll = poll_seconds
        self._limits = limits or CallLimits()
        self._call = call
        self._commit = ""

    def run(self) -> int:
        """Returns the status of the job, its machines given back.

        Raises:
          CloudError: no zone delivers, gcloud refuses, or it cannot be reached; what may remain has
            been named.
          Terminated: a signal asks to end. The job is left running and named, as with Ctrl-C.
        """
        with terminations():
            try:
                status = self._run()
                self._sweep()
                return status
            except (Unreachable, KeyboardInterrupt, Terminated):
                raise
            except CloudError:
                self._sweep()
                raise
            finally:
                self._name_what_remains()

    def delete(self) -> None:
        """Gives back what the job holds: in its zones, and wherever the ledger says.

        Raises:
          CloudError: something may remain; it has been named.
        """
        for zone in self.job.target.zones:
            self.ledger.add(holding(self.job, zone))
        with terminations():
            try:
                self._sweep()
            finally:
                remaining = self._name_what_remains()
        if remaining:
            raise CloudError("Not everything could be deleted; see above.")

    def _run(self) -> int:
        job, failures = self.job, 0
        self._commit = commit_of(job.target.code)
        zone = self._running_zone()
        if zone is None:
            self._upload()
        while True:
            started = time.monotonic()
            zone = zone or self._acquire()
            status = self._attempt(zone)
            if status is not None and (status == 0 or not _again(status)):
                say(f"ended with status {status}")
                return status
            failures = 1 if time.monotonic() - started > job.settled_seconds else failures + 1
            ending = "the machines are gone" if status is None else f"it ended with status {status}"
            if failures > job.restarts:
                raise CloudError(f"{ending}; giving up after {job.restarts} restarts in a row.")
            if status is None:
                self._give_back(holding(job, zone))
                zone = None
            pause = job.pause(failures)
            say(f"{ending}; again in {pause:g} s ({failures} of {job.restarts})")
            self._sleep(pause)

    def _running_zone(self) -> str | None:
        """The zone where an earlier call of this command left the job running."""
        running = None
        known = [h.place for h in self.ledger.holdings()]
        for zone in dict.fromkeys([*known, *self.job.target.zones]):
            state = self._state(zone)
            if state == Absent.GONE:
                self.ledger.discard(holding(self.job, zone))
                continue
            self.ledger.add(holding(self.job, zone))
            if state == "ACTIVE" and running is None:
                say(f"found in {zone}; going on with it")
                running = zone
            else:
                self._give_back(holding(self.job, zone))
        return running

    def _upload(self) -> None:
        target = self.job.target
        git = ["git", "-C", target.code]
        if self._checked([*git, "status", "--porcelain"], tries=1).strip():
            say(f"uncommitted changes are not sent; commit {self._commit[:12]} is what runs")
        with tempfile.TemporaryDirectory() as directory:
            file = str(pathlib.Path(directory) / "code.tar.gz")
            archive = [*git, "archive", "--format=tar.gz", "-o", file, self._commit]
            self._checked(archive, tries=1)
            self._checked(upload_command(self.job, self._commit, file))

    def _checked(self, command: Sequence[str], tries: int | None = None) -> str:
        """Runs a command that can be given again; what it printed.

        Raises:
          CloudError: with all that it complained of.
        """
        tries = tries or self._limits.tries
        for attempt in range(1, tries + 1):
            found = self._call(command, self._limits.copy)
            if found.ok:
                return found.stdout
            if attempt < tries:
                say(f"{found.complaint()}; again")
                self._pause(attempt)
        raise CloudError(found.complaint())

    def _acquire(self) -> str:
        """Asks zone after zone; the one that delivered."""
        refusals = []
        for zone in self.job.target.zones:
            say(f"asking for {self.job.slices} x {self.job.slice} in {zone}")
            self.ledger.add(holding(self.job, zone))
            asked = self._call(create_command(self.job, zone), self._limits.create)
            if not asked.ok:
                # It may have come through all the same: what is there counts, not what was said.
                if self._state(zone) == Absent.GONE:
                    say(asked.complaint())
                    refusals.append(f"{zone}: {asked.complaint()}")
                    continue
                say(f"{zone}: {asked.complaint()}\nsubmit: but the request exists; going on")
            if (reason := self._await(zone)) is None:
                self._sweep(but=zone)
                return zone
            refusals.append(f"{zone}: {reason}")
            self._give_back(holding(self.job, zone), strike=False)
        raise CloudError("No zone delivers.\n" + "\n".join(refusals))

    def _await(self, zone: str) -> str | None:
        """None once the machines are there, else why not."""
        end = time.monotonic() + self.job.target.wait_minutes * 60
        reported = None
        while True:
            state = self._state(zone)
            if state == Absent.GONE or state in _LOST:
                return f"the request is {'gone' if state == Absent.GONE else state}"
            if state != reported:
                say(f"{zone}: {state}")
                reported = state
            if state == "ACTIVE":
                return None
            if time.monotonic() > end:
                return f"still {state} after {self.job.target.wait_minutes:g} minutes"
            self._sleep(self._poll)

    def _attempt(self, zone: str) -> int | None:
        """Starts the job where it does not run, and follows it; its status, None if it is lost."""
        if not self._ssh(zone, start_script(self.job, self._commit), self._limits.start):
            return None if self._state(zone) != "ACTIVE" else RESTARTABLE[0]
        say("following the log of the first machine; Ctrl-C leaves the job running")
        again = False
        while True:
            script = follow_script(self.job, again)
            self._ssh(zone, script, self._limits.follow, everywhere=False)
            again = True
            if self._state(zone) != "ACTIVE":
                return None
            statuses = self._statuses(zone)
            if statuses is None:
                return None
            if "running" not in statuses:
                return _worst(statuses)
            self._sleep(self._poll)

    def _statuses(self, zone: str) -> list[str] | None:
        """Returns what each machine says of its process: a number, 'running' or 'gone'."""
        command = ssh_command(self.job, zone, status_script(self.job), everywhere=True)
        for attempt in range(1, self._limits.tries * 2 + 1):
            found = self._call(command, self._limits.status)
            lines = [line.strip() for line in found.stdout.splitlines()]
            words = [line.removeprefix("status ") for line in lines if line]
            words = [w for w in words if w.isdigit() or w in ("running", "gone")]
            if found.ok and words:
                return words
            if self._state(zone) != "ACTIVE":
                return None
            self._pause(attempt)
        say(f"{zone}: its machines are there but do not answer; {found.complaint()}")
        return None

    def _ssh(self, zone: str, script: str, limit: float, everywhere: bool = True) -> bool:
        """Runs a script over ssh and shows what it prints; returns True if it went through."""
        return self._call(ssh_command(self.job, zone, script, everywhere), limit, show=True).ok

    def _state(self, zone: str) -> str | Absent:
        """The request's state, ``Absent.GONE`` if there is none; asks until there is an answer.

        Raises:
          CloudError: gcloud refuses to answer, and nothing was asked for yet.
          Unreachable: there is no answer for long.
        """
        tries = self._limits.patient_tries if self.ledger.holdings() else self._limits.tries
        for attempt in range(1, tries + 1):
            found = self._call(describe_command(self.job, zone), self._limits.describe)
            if (state := _state_in(found)) != Absent.UNKNOWN:
                return state
            if not self.ledger.holdings() and _MISTAKE.search(found.stderr):
                raise CloudError(found.complaint())
            if attempt in (1, self._limits.tries, tries):
                say(f"{zone}: no description ({_why(found)}); asked {attempt} of {tries} times")
            if attempt < tries:
                self._pause(attempt)
        raise Unreachable(f"gcloud does not describe the request in {zone}: {_why(found)}")

    def _pause(self, attempt: int) -> None:
        self._sleep(min(self._poll * 2.0 ** min(attempt - 1, 10), _MOST_PAUSE_SECONDS))

    def _sweep(self, but: str | None = None) -> None:
        """Deletes whatever the ledger holds, except in one zone; goes on where that fails.

        While the job lives in that zone nothing is struck out: a request whose making went
        unanswered can still appear.
        """
        for one in self.ledger.holdings():
            if one.place != but:
                self._give_back(one, strike=but is None)

    def _give_back(self, one: Holding, strike: bool = True) -> bool:
        """Deletes a request and asks until it is gone; False if it is not.

        What was not deleted is gone when it is missing twice: a request can show late.
        """
        missing, deleted = 0, False
        for attempt in range(1, 2 * self._limits.tries + 1):
            state = _state_in(
                self._call(describe_command(self.job, one.place), self._limits.describe)
            )
            if state == Absent.GONE:
                missing += 1
                if deleted or missing == 2:
                    if strike:
                        self.ledger.discard(one)
                    return True
                self._sleep(self._poll)
                continue
            missing = 0
            if state != "DELETING":
                found = self._call(one.delete_command(), self._limits.delete)
                if found.ok:
                    deleted = True
                    continue
                say(found.complaint())
            self._pause(attempt)
        say(f"the {one} could not be deleted yet")
        return False

    def _name_what_remains(self) -> list[Holding]:
        remaining = self.ledger.holdings()
        if remaining:
            again = "t5x-llm submit with --delete does it for all; without it, it goes on with them"
            say(f"these may exist and cost money ({again}):\n{named(remaining)}")
        return remaining


def _state_in(found: CallOutcome) -> str | Absent:
    """Returns what a description says: a state, no request, or nothing to rely on."""
    if not found.ok:
        missing = found.status is not None and _MISSING.search(found.stderr)
        return Absent.GONE if missing else Absent.UNKNOWN
    try:
        state = json.loads(found.stdout)["state"]["state"]
    except (ValueError, KeyError, TypeError):
        return Absent.UNKNOWN
    return state if isinstance(state, str) and state else Absent.UNKNOWN


def _why(found: CallOutcome) -> str:
    return "its answer cannot be read" if found.ok else found.complaint()


def _again(status: int) -> bool:
    """Returns True for an exit status after which starting again helps."""
    return status in RESTARTABLE or status > _SIGNALLED


def _worst(statuses: Sequence[str]) -> int:
    """One status for all machines: a mistake counts before what it brought upon the others."""
    numbers = [_SIGNALLED + 9 if s == "gone" else int(s) for s in statuses]
    mistakes = [n for n in numbers if n and not _again(n)]
    return mistakes[0] if mistakes else max(numbers)
