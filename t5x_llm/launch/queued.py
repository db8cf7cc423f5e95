"""Cloud TPU queued resources: ask, start, follow, and begin again when the machines are taken."""

from __future__ import annotations

import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from t5x_llm.core.errors import RESTARTABLE, ConfigError, T5xLLMError
from t5x_llm.launch.bootstrap import archive, follow_script, start_script, status_script
from t5x_llm.launch.job import Job, QueuedResource

GCLOUD = ("gcloud", "compute", "tpus", "queued-resources")
# States in which a request will never give machines again.
_LOST = ("SUSPENDING", "SUSPENDED", "FAILED")
_SIGNALLED = 128
_POLL_SECONDS = 15.0


class CloudError(T5xLLMError):
    """A command of gcloud failed."""


def create_command(job: Job, zone: str) -> list[str]:
    """Asks for the slices in a zone."""
    target: QueuedResource = job.target
    command = [*GCLOUD, "create", job.name, *_where(target, zone)]
    if job.slices == 1:
        command.append(f"--node-id={job.name}")
    else:
        command += [f"--node-count={job.slices}", f"--node-prefix={job.name}"]
    version = target.runtime_version or job.tpu.facts.runtime
    command += [f"--accelerator-type={job.tpu.accelerator_type}", f"--runtime-version={version}"]
    if target.capacity != "on_demand":
        command.append(f"--{target.capacity}")
    for flag in ("network", "subnetwork", "service_account"):
        if (value := getattr(target, flag)) is not None:
            command.append(f"--{flag.replace('_', '-')}={value}")
    if target.internal_ips:
        command.append("--internal-ips")
    return command


def describe_command(job: Job, zone: str) -> list[str]:
    """Prints what became of the request, as JSON."""
    return [*GCLOUD, "describe", job.name, *_where(job.target, zone), "--format=json"]


def delete_command(job: Job, zone: str) -> list[str]:
    """Gives the machines back."""
    return [*GCLOUD, "delete", job.name, *_where(job.target, zone), "--force", "--quiet"]


def ssh_command(job: Job, zone: str, script: str, everywhere: bool) -> list[str]:
    """Runs a script on all machines of all slices, or on the first machine of the first."""
    which = "all" if everywhere else "0"
    command = [*GCLOUD, "ssh", job.name, *_where(job.target, zone), "--quiet"]
    command += [f"--node={which}", f"--worker={which}", f"--command={script}"]
    return command + (["--tunnel-through-iap"] if job.target.internal_ips else [])


def upload_command(job: Job, commit: str, file: str) -> list[str]:
    """Sends the code."""
    return ["gcloud", "storage", "cp", "--no-clobber", file, archive(job.target, commit)]


def _where(target: QueuedResource, zone: str) -> list[str]:
    return [f"--zone={zone}", f"--project={target.project}"]


def render(job: Job, commit: str) -> str:
    """Every command that ``Controller.run`` would give, in order, and the script it starts."""
    script = start_script(job, commit)
    lines = [f"# the code, commit {commit}", f"git archive --format=tar.gz -o code.tar.gz {commit}"]
    lines.append(shlex.join(upload_command(job, commit, "code.tar.gz")))
    for zone in job.target.zones:
        lines += [
            "",
            f"# {zone}: ask, wait at most {job.target.wait_minutes:g} minutes; else the next zone",
            shlex.join(create_command(job, zone)),
            shlex.join(describe_command(job, zone)),
        ]
    zone = job.target.zones[0]
    lines += [
        "",
        "# where it became ACTIVE: start on all machines, follow the first",
        "# (SCRIPT is printed below)",
        shlex.join(ssh_command(job, zone, "SCRIPT", everywhere=True)),
        shlex.join(ssh_command(job, zone, follow_script(job), everywhere=False)),
        shlex.join(ssh_command(job, zone, status_script(job), everywhere=True)),
        "",
        f"# preempted, or status {', '.join(map(str, RESTARTABLE))}: again, up to {job.restarts} "
        f"times in a row, after {job.pause(1):g} to {job.most_backoff_seconds:g} seconds",
        "# at the end",
        shlex.join(delete_command(job, zone)),
        "",
        "# SCRIPT",
        script,
    ]
    return "\n".join(lines)


def commit_of(directory: str) -> str:
    """The last commit of a work tree.

    Raises:
      ConfigError: there is none.
    """
    found = _captured(["git", "-C", directory, "rev-parse", "HEAD"])
    if found.returncode:
        raise ConfigError("QueuedResource.code", directory, "a git work tree with a commit")
    return found.stdout.strip()


class Controller:
    """Keeps one job alive until it is done.

    Args:
      job: whose target is a ``QueuedResource``.
      sleep: waits so many seconds.
      poll_seconds: between questions.
    """

    def __init__(
        self,
        job: Job,
        sleep: Callable[[float], None] = time.sleep,
        poll_seconds: float = _POLL_SECONDS,
    ):
        self.job = job
        self._sleep = sleep
        self._poll = poll_seconds
        self._commit = commit_of(job.target.code)

    def run(self) -> int:
        """Returns the status of the job; the machines are given back whatever happens but Ctrl-C.

        Raises:
          CloudError: no zone delivers, or gcloud refuses.
        """
        job, failures = self.job, 0
        zone = self._running_zone()
        if zone is None:
            self._upload()
        while True:
            started = time.monotonic()
            zone = zone or self._acquire()
            status = self._attempt(zone)
            if status is not None and (status == 0 or not _again(status)):
                _say(f"ended with status {status}")
                self._delete(zone)
                return status
            failures = 1 if time.monotonic() - started > job.settled_seconds else failures + 1
            ending = "the machines are gone" if status is None else f"it ended with status {status}"
            if failures > job.restarts:
                self._delete(zone)
                raise CloudError(f"{ending}; giving up after {job.restarts} restarts in a row.")
            if status is None:
                self._delete(zone)
                zone = None
            pause = job.pause(failures)
            _say(f"{ending}; again in {pause:g} s ({failures} of {job.restarts})")
            self._sleep(pause)

    def delete(self) -> None:
        """Gives back what the job holds, in any of its zones."""
        for zone in self.job.target.zones:
            if self._state(zone) is not None:
                self._delete(zone)

    def _running_zone(self) -> str | None:
        """The zone where an earlier call of this command left the job running."""
        for zone in self.job.target.zones:
            state = self._state(zone)
            if state == "ACTIVE":
                _say(f"found in {zone}; going on with it")
                return zone
            if state is not None:
                self._delete(zone)
        return None

    def _upload(self) -> None:
        target = self.job.target
        git = ["git", "-C", target.code]
        changed = _checked([*git, "status", "--porcelain"]).strip()
        if changed:
            _say(f"uncommitted changes are not sent; commit {self._commit[:12]} is what runs")
        with tempfile.TemporaryDirectory() as directory:
            file = str(pathlib.Path(directory) / "code.tar.gz")
            _checked([*git, "archive", "--format=tar.gz", "-o", file, self._commit])
            _checked(upload_command(self.job, self._commit, file))

    def _acquire(self) -> str:
        """Asks zone after zone; the one that delivered."""
        refusals = []
        for zone in self.job.target.zones:
            _say(f"asking for {self.job.slices} x {self.job.slice} in {zone}")
            try:
                _checked(create_command(self.job, zone))
            except CloudError as e:
                refusals.append(f"{zone}: {e}")
                continue
            if (reason := self._await(zone)) is None:
                return zone
            refusals.append(f"{zone}: {reason}")
            self._delete(zone)
        raise CloudError("No zone delivers. " + "; ".join(refusals))

    def _await(self, zone: str) -> str | None:
        """None once the machines are there, else why not."""
        end = time.monotonic() + self.job.target.wait_minutes * 60
        reported = None
        while True:
            state = self._state(zone)
            if state != reported:
                _say(f"{zone}: {state}")
                reported = state
            if state == "ACTIVE":
                return None
            if state is None or state in _LOST:
                return f"the request is {state or 'gone'}"
            if time.monotonic() > end:
                return f"still {state} after {self.job.target.wait_minutes:g} minutes"
            self._sleep(self._poll)

    def _attempt(self, zone: str) -> int | None:
        """Starts the job where it does not run, and follows it; its status, None if it is lost."""
        if not self._ssh(zone, start_script(self.job, self._commit), everywhere=True):
            return None if self._state(zone) != "ACTIVE" else RESTARTABLE[0]
        _say("following the log of the first machine; Ctrl-C leaves the job running")
        while True:
            self._ssh(zone, follow_script(self.job), everywhere=False)
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
        for _ in range(3):
            found = _captured(command)
            lines = [line.strip() for line in found.stdout.splitlines()]
            words = [line.removeprefix("status ") for line in lines if line]
            words = [w for w in words if w.isdigit() or w in ("running", "gone")]
            if found.returncode == 0 and words:
                return words
            if self._state(zone) != "ACTIVE":
                return None
            self._sleep(self._poll)
        return None

    def _ssh(self, zone: str, script: str, everywhere: bool) -> bool:
        """Runs a script over ssh and shows what it prints; returns True if it went through."""
        return subprocess.run(ssh_command(self.job, zone, script, everywhere)).returncode == 0

    def _state(self, zone: str) -> str | None:
        """The request's state, None if there is none."""
        found = _captured(describe_command(self.job, zone))
        if found.returncode:
            if "NOT_FOUND" in found.stderr or "not found" in found.stderr.lower():
                return None
            raise CloudError(_last(found.stderr))
        try:
            return str(json.loads(found.stdout)["state"]["state"])
        except (ValueError, KeyError, TypeError) as e:
            raise CloudError("gcloud's description of the request cannot be read.") from e

    def _delete(self, zone: str) -> None:
        _checked(delete_command(self.job, zone))


def _again(status: int) -> bool:
    """Returns True for an exit status after which starting again helps."""
    return status in RESTARTABLE or status > _SIGNALLED


def _worst(statuses: Sequence[str]) -> int:
    """One status for all machines: a mistake counts before what it brought upon the others."""
    numbers = [_SIGNALLED + 9 if s == "gone" else int(s) for s in statuses]
    mistakes = [n for n in numbers if n and not _again(n)]
    return mistakes[0] if mistakes else max(numbers)


def _checked(command: Sequence[str]) -> str:
    """Runs a command; what it printed.

    Raises:
      CloudError: with the last line it complained with.
    """
    found = _captured(command)
    if found.returncode:
        raise CloudError(f"{' '.join(command[:5])}: {_last(found.stderr)}")
    return found.stdout


def _captured(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command; CloudError if it is not installed."""
    try:
        return subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as e:
        raise CloudError(f"{command[0]} is not installed; t5x-llm submit needs it.") from e


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it failed without a word"


def _say(text: str) -> None:
    print(f"submit: {text}", file=sys.stderr, flush=True)
