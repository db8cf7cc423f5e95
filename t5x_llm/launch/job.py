"""Describes a job: a command, the machines it wants, and how often it is started again."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.core.slices import Slice, parse_slice
from t5x_llm.launch.secrecy import looks_secret, sounds_secret

CAPACITY = ("on_demand", "spot", "reserved")
# What these name ends up in command lines that a cloud parses again, so nothing else may.
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?")
_PATTERNS = {
    "project": (r"[a-z][a-z0-9-]{4,28}[a-z0-9]", "a project id, such as 'my-project-1'"),
    "zones": (r"[a-z]+-[a-z]+\d+-[a-z]", "zones, such as ('us-east5-a', 'us-central1-a')"),
    "bucket": (r"gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[\w.-]+)*", "gs://BUCKET or gs://BUCKET/DIR"),
    "image": (r"[\w][\w.:/-]*(@sha256:[0-9a-f]{64})?", "a container image"),
    "namespace": (r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", "a namespace"),
    "queue": (r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?", "a name"),
    "service_account": (r"[\w.-]+(@[\w.-]+)?", "a service account"),
    "network": (r"[\w][\w/.-]*", "a network"),
    "subnetwork": (r"[\w][\w/.-]*", "a subnetwork"),
    "reservation": (r"[\w][\w/.-]*", "a reservation"),
    "context": (r"[\w][\w/.:@-]*", "a context of kubectl"),
    "runtime_version": (r"[\w][\w.-]*", "a runtime version"),
}  # fmt: skip
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _check(owner: str, **fields: Any) -> None:
    """Raises ConfigError unless each field, where given, looks as ``_PATTERNS`` says."""
    for name, value in fields.items():
        pattern, expected = _PATTERNS[name]
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None and not (isinstance(one, str) and re.fullmatch(pattern, one)):
                raise ConfigError(f"{owner}.{name}", value, expected)


@dataclasses.dataclass(frozen=True)
class QueuedResource:
    """Cloud TPU VMs, asked for as a queued resource with gcloud.

    Attributes:
      project: Google Cloud project.
      zones: where to ask, in order; the next is tried when a zone does not deliver.
      bucket: gs:// directory the code is sent through.
      capacity: 'on_demand', 'spot' or 'reserved'.
      runtime_version: of the TPU VM; None for the generation's usual one.
      network: VPC network, or None for the default.
      subnetwork: of it, or None.
      service_account: the VMs' identity, or None for the default.
      internal_ips: no external addresses; needs Cloud NAT and IAP.
      wait_minutes: for a zone to deliver, before the next is tried.
      code: git work tree whose last commit is run.
    """

    project: str
    zones: tuple[str, ...]
    bucket: str
    capacity: str = "on_demand"
    runtime_version: str | None = None
    network: str | None = None
    subnetwork: str | None = None
    service_account: str | None = None
    internal_ips: bool = False
    wait_minutes: float = 60.0
    code: str = "."

    def __post_init__(self) -> None:
        if not isinstance(self.zones, tuple) or not self.zones:
            raise ConfigError("QueuedResource.zones", self.zones, _PATTERNS["zones"][1])
        names = (
            *("project", "zones", "bucket", "runtime_version"),
            *("network", "subnetwork", "service_account"),
        )
        _check("QueuedResource", **{name: getattr(self, name) for name in names})
        check_choice("QueuedResource.capacity", self.capacity, CAPACITY)
        check_number("QueuedResource.wait_minutes", self.wait_minutes, above=0)


@dataclasses.dataclass(frozen=True)
class Gke:
    """A JobSet on a GKE cluster whose node pools have the slices.

    Attributes:
      image: container image that holds the code and its environment.
      namespace: of the cluster.
      queue: Kueue's local queue, or None.
      service_account: Kubernetes', or None.
      capacity: 'on_demand', 'spot' or 'reserved'.
      reservation: name of it, where capacity is 'reserved'.
      context: of kubectl, or None for the current one.
      grace_seconds: between SIGTERM and SIGKILL; more than ``LifeConfig.grace_seconds``.
    """

    image: str
    namespace: str = "default"
    queue: str | None = None
    service_account: str | None = None
    capacity: str = "on_demand"
    reservation: str | None = None
    context: str | None = None
    grace_seconds: int = 60

    def __post_init__(self) -> None:
        names = ("image", "namespace", "queue", "service_account", "reservation", "context")
        _check("Gke", **{name: getattr(self, name) for name in names})
        check_choice("Gke.capacity", self.capacity, CAPACITY)
        check_number("Gke.grace_seconds", self.grace_seconds, low=0, integer=True)
        if (self.capacity == "reserved") != (self.reservation is not None):
            raise ConfigError(
                "Gke.reservation",
                self.reservation,
                "a name if, and only if, capacity is 'reserved'",
            )


@dataclasses.dataclass(frozen=True)
class LocalProcesses:
    """Processes on this machine, as ``t5x-llm launch`` starts them.

    Attributes:
      processes: how many.
      devices: CPU devices of each; None leaves the platform to JAX.
    """

    processes: int = 1
    devices: int | None = None

    def __post_init__(self) -> None:
        check_number("LocalProcesses.processes", self.processes, low=1, integer=True)
        if self.devices is not None:
            check_number("LocalProcesses.devices", self.devices, low=1, integer=True)


@dataclasses.dataclass(frozen=True)
class Job:
    """A run that survives the loss of its machines.

    The command must continue from its last checkpoint when it is started again, as
    ``python train.py`` does, and keep its run directory where every machine sees it (gs://).

    Attributes:
      name: of the job, and of what is created for it.
      target: ``@QueuedResource()``, ``@Gke()`` or ``@LocalProcesses()``.
      command: program and arguments, each a string of its own; no shell looks at them.
      slice: such as 'v5p-128'; '' on this machine.
      slices: how many, joined by the data-centre network.
      environment: (name, value) pairs.
      secrets: (name, reference) pairs, resolved where the command runs and never here: a secret
        of Secret Manager ('hf-token' or 'hf-token:3') on TPU VMs, 'SECRET:KEY' of Kubernetes on
        GKE, a variable of this shell here.
      restarts: in a row, without a run that lives longer than ``settled_seconds``.
      backoff_seconds: before the first restart; doubled for each further one.
      most_backoff_seconds: its limit.
      settled_seconds: see ``restarts``.
    """

    name: str
    target: Any
    command: tuple[str, ...]
    slice: str = ""
    slices: int = 1
    environment: tuple[tuple[str, str], ...] = ()
    secrets: tuple[tuple[str, str], ...] = ()
    restarts: int = 50
    backoff_seconds: float = 30.0
    most_backoff_seconds: float = 900.0
    settled_seconds: float = 1800.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            expected = "lower-case letters, digits and hyphens, a letter first, at most 40"
            raise ConfigError("Job.name", self.name, expected)
        if not isinstance(self.target, (QueuedResource, Gke, LocalProcesses)):
            kinds = "@QueuedResource(), @Gke() or @LocalProcesses()"
            raise ConfigError("Job.target", self.target, kinds)
        words = self.command
        if not isinstance(words, tuple) or not words or not all(map(_plain, words)):
            raise ConfigError(
                "Job.command", words, "a tuple of strings, such as ('python', 'train.py')"
            )
        check_number("Job.slices", self.slices, low=1, integer=True)
        check_number("Job.restarts", self.restarts, low=0, integer=True)
        for field in ("backoff_seconds", "most_backoff_seconds", "settled_seconds"):
            check_number(f"Job.{field}", getattr(self, field), low=0)
        self._check_variables()
        self._check_slice()

    def _check_variables(self) -> None:
        for field in ("environment", "secrets"):
            pairs = getattr(self, field)
            for pair in pairs if isinstance(pairs, tuple) else (pairs,):
                if not isinstance(pair, tuple) or len(pair) != 2 or not all(map(_plain, pair)):
                    raise ConfigError(
                        f"Job.{field}", "...", "pairs of strings: (('NAME', 'value'),)"
                    )
                if not _VARIABLE.fullmatch(pair[0]):
                    raise ConfigError(f"Job.{field}", pair[0], "a name of letters, digits and _")
        for name, value in self.environment:
            # The value stays out of the message: it may be what must not be shown.
            if sounds_secret(name) or looks_secret(value, name):
                raise ConfigError(
                    "Job.environment",
                    name,
                    "nothing secret",
                    "What is in a job is printed and stored. Put it into Job.secrets by reference.",
                )
        if any(looks_secret(word, word.partition("=")[0]) for word in self.command):
            raise ConfigError("Job.command", "...", "no credentials", "Use Job.secrets.")
        for name, reference in self.secrets:
            forms = {
                QueuedResource: (r"[\w-]{1,255}(:(\d+|latest))?", "'SECRET' or 'SECRET:VERSION'"),
                Gke: (r"[a-z0-9][a-z0-9.-]*:[\w.-]+", "'SECRET:KEY' of Kubernetes"),
                LocalProcesses: (_VARIABLE.pattern, "a variable of this shell"),
            }
            pattern, expected = forms[type(self.target)]
            if not re.fullmatch(pattern, reference) or looks_secret(reference):
                raise ConfigError(
                    "Job.secrets",
                    name,
                    f"a reference of the form {expected}, not the secret itself",
                )
        seen = [name for name, _ in (*self.environment, *self.secrets)]
        for name in seen:
            if seen.count(name) > 1:
                raise ConfigError("Job.environment", name, "each variable once")

    def _check_slice(self) -> None:
        if isinstance(self.target, LocalProcesses):
            if self.slice or self.slices != 1:
                raise ConfigError("Job.slice", self.slice, "'' for @LocalProcesses()")
            return
        found = parse_slice("Job.slice", self.slice)
        if isinstance(self.target, QueuedResource) and found.accelerator_type is None:
            raise ConfigError(
                "Job.slice",
                self.slice,
                "a slice that Cloud TPU has",
                "This one is on GKE alone: @Gke().",
            )

    @property
    def tpu(self) -> Slice:
        """One of its slices."""
        return parse_slice("Job.slice", self.slice)

    def pause(self, failures: int) -> float:
        """Seconds to wait before restart number ``failures``."""
        return min(self.backoff_seconds * 2.0 ** min(failures - 1, 30), self.most_backoff_seconds)


def _plain(word: Any) -> bool:
    """A string that a command line can carry."""
    return isinstance(word, str) and "\0" not in word
