"""Experiment trackers beside the run's own files: which ones, and a thread that feeds them.

``metrics.jsonl`` is the record of a run; a tracker has a copy. So a tracker that is slow,
unreachable or broken neither delays a step nor ends a run.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from t5x_llm.core.errors import ConfigError, check_choice
from t5x_llm.train.hooks.lines import flatten
from t5x_llm.train.jsonl import Line

TRACKERS = ("wandb", "mlflow")
MODES = ("online", "offline")
_REMOTE = re.compile(r"\w[\w+.-]*://")
_WITH_LOGIN = re.compile(r"(\w[\w+.-]*://)[^/\s@]*@")
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.I)


@dataclasses.dataclass(frozen=True)
class WandB:
    """Weights & Biases. The key is taken from ``WANDB_API_KEY`` or what ``wandb login`` keeps.

    Attributes:
      project: project of the run.
      entity: user or team; the key's own if empty.
      name: of the run there; the run directory's last part if empty.
      mode: ``online``, or ``offline``: files in ``wandb/`` of the run directory, to be sent by
        ``wandb sync``.
    """

    project: str = "t5x-llm"
    entity: str = ""
    name: str = ""
    mode: str = "online"

    def __post_init__(self) -> None:
        check_choice("WandB.mode", self.mode, MODES)
        if not self.project:
            raise ConfigError("WandB.project", self.project, "the name of a project")


@dataclasses.dataclass(frozen=True)
class MLflow:
    """MLflow. Name and password of a server are taken from ``MLFLOW_TRACKING_USERNAME`` and so on.

    Attributes:
      uri: tracking server or database, such as ``https://mlflow.example`` or
        ``sqlite:///runs/mlflow.db``; if empty ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the
        run directory, which needs no network.
      experiment: experiment of the run.
      name: of the run there; the run directory's last part if empty.
    """

    uri: str = ""
    experiment: str = "t5x-llm"
    name: str = ""

    def __post_init__(self) -> None:
        if _WITH_LOGIN.search(self.uri):
            raise ConfigError(
                "MLflow.uri", redacted(self.uri), "a URI without name and password",
                "The config is saved with the run. Set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD in the environment, or MLFLOW_TRACKING_URI.",
            )  # fmt: skip
        if not self.experiment:
            raise ConfigError("MLflow.experiment", self.experiment, "the name of an experiment")


@dataclasses.dataclass(frozen=True)
class Tracking:
    """Experiment trackers that get the metrics too; the first process writes to them.

    Attributes:
      trackers: of ``wandb`` and ``mlflow``; none by default.
      wandb: what Weights & Biases is told.
      mlflow: what MLflow is told.
    """

    trackers: tuple[str, ...] = ()
    wandb: WandB = dataclasses.field(default_factory=WandB)
    mlflow: MLflow = dataclasses.field(default_factory=MLflow)

    def __post_init__(self) -> None:
        names = (self.trackers,) if isinstance(self.trackers, str) else tuple(self.trackers)
        object.__setattr__(self, "trackers", tuple(dict.fromkeys(names)))
        for name in names:
            check_choice("Tracking.trackers", name, TRACKERS)


def check_tracking(tracking: Tracking, directory: str, primary: bool) -> None:
    """Checks, before anything expensive, that the trackers can be written to.

    Args:
      tracking: the configuration.
      directory: of the run.
      primary: True on the process that writes; it alone needs the key.

    Raises:
      ConfigError: a package is not installed, a key is missing, or files are to be written beside a
        run that is not on a local disk.
    """
    for name in tracking.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                "Tracking.trackers",
                name,
                f"trackers whose package is installed; {name} is not",
                f"pip install 't5x-llm[{name}]', or leave it out of Tracking.trackers.",
            )
    remote = _REMOTE.match(directory)
    if "wandb" in tracking.trackers and tracking.wandb.mode == "offline" and remote:
        raise ConfigError(
            "WandB.mode", "offline", f"online, as Run.directory {directory} is not a local disk"
        )
    if "mlflow" in tracking.trackers and remote and not mlflow_uri(tracking.mlflow, ""):
        raise ConfigError(
            "MLflow.uri", "", f"a tracking server, as Run.directory {directory} is no local disk"
        )
    if primary and "wandb" in tracking.trackers and tracking.wandb.mode == "online":
        import wandb

        try:
            known = wandb.login(prompt=False)
        except Exception as e:  # also where the service cannot be reached, which ends no run
            known = True
            print(f"warning: wandb: {_first_line(e)} (the run goes on)", file=sys.stderr)
        if not known:
            raise ConfigError(
                "WandB.mode",
                "online",
                "a key of Weights & Biases",
                "Run `wandb login`, set WANDB_API_KEY, or set WandB.mode = 'offline'.",
            )


def mlflow_uri(config: MLflow, directory: str) -> str:
    """Returns the tracking URI: configured, of the environment, or a file of the run directory."""
    beside = f"sqlite:///{os.path.abspath(directory)}/mlflow.db" if directory else ""
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI", "") or beside


def redacted(text: str) -> str:
    """Returns a text without logins in URLs and without the values of secret variables."""
    for name, value in os.environ.items():
        if len(value) > 5 and _SECRET_NAME.search(name) and value in text:
            text = text.replace(value, "***")
    return _WITH_LOGIN.sub(r"\1***@", text)


def _first_line(error: Exception) -> str:
    """Returns what an error says, in a line without secrets."""
    return redacted(str(error).strip() or type(error).__name__).splitlines()[0][:300]


def redacted_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns JSON-able data with every string in it ``redacted``."""
    return {key: _redacted_value(value) for key, value in values.items()}


def _redacted_value(value: object) -> object:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return redacted_values(value)
    return [_redacted_value(each) for each in value] if isinstance(value, list) else value


class Tracker(Protocol):
    """Client of one tracker; all calls come from one thread."""

    name: str

    def start(self) -> None:
        """Opens the run there: the one of the run directory, or else a new one."""

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Adds what a ``start`` line says of the run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values at a step; steps come again after a restart or a rewind."""

    def finish(self, failed: bool) -> None:
        """Sends what is left, and closes; ``failed`` says that an error ended the run early."""


class Tracked:
    """Writer that hands lines to a tracker in a thread of its own.

    While the tracker refuses, lines wait, ``most`` at most, and it is tried again every ``retry``
    seconds. What has not arrived ``patience`` seconds after the end is given up with a warning.

    Args:
      tracker: the client.
      retry: seconds between tries.
      patience: seconds that ``close`` waits.
      most: lines that may wait.
    """

    def __init__(
        self, tracker: Tracker, retry: float = 30.0, patience: float = 15.0, most: int = 10_000
    ):
        self.tracker, self.retry, self.patience = tracker, retry, patience
        self._lines: collections.deque[Line] = collections.deque(maxlen=most)
        self._wake = threading.Condition()
        self._closing = self._failed = False
        self._thread: threading.Thread | None = None
        self._lost = 0
        self._warned = False

    def open(self, after_step: int, rewinds: int = 0) -> None:
        """Starts the thread, which opens the run at the tracker."""
        self._closing = False
        self._thread = threading.Thread(
            target=self._work, name=f"tracker {self.tracker.name}", daemon=True
        )
        self._thread.start()

    def rewind(self, to_step: int, rewinds: int) -> None:
        """Does nothing: every line carries its number of rewinds."""

    def write(self, line: Line) -> None:
        """Takes a line; never waits."""
        with self._wake:
            self._lost += len(self._lines) == self._lines.maxlen
            self._lines.append(line)
            self._wake.notify()

    def flush(self) -> None:
        """Does nothing: lines are sent as they come."""

    def close(self, failed: bool = False) -> None:
        """Waits until all lines are sent, ``patience`` seconds at most."""
        if self._thread is None:
            return
        with self._wake:
            self._closing, self._failed = True, failed
            self._wake.notify()
        self._thread.join(self.patience)
        left = self._lost + len(self._lines)
        if left or self._thread.is_alive():
            print(
                f"warning: {self.tracker.name} did not take the last {left} lines of metrics; "
                "metrics.jsonl has them all",
                file=sys.stderr,
            )
        self._thread = None

    def _work(self) -> None:
        started = False
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._lines or self._closing)
                if not self._lines and started:
                    break
                line = self._lines[0] if self._lines else None
            try:
                if not started:
                    self.tracker.start()
                    started = True
                if line is not None:
                    self._send(line)
            except Exception as e:  # every client raises errors of its own
                self._refused(e)
                with self._wake:
                    if self._closing:
                        return
                    self._wake.wait_for(lambda: self._closing, self.retry)
                continue
            with self._wake:  # a full queue may have dropped it meanwhile
                if self._lines and self._lines[0] is line:
                    self._lines.popleft()
        try:
            self.tracker.finish(self._failed)
        except Exception as e:
            self._refused(e)

    def _send(self, line: Line) -> None:
        if line["kind"] == "start":
            self.tracker.describe(redacted_values({k: v for k, v in line.items() if k != "kind"}))
        elif values := dict(flatten(line["kind"], line)):
            self.tracker.log(line["step"], values | {"rewinds": float(line.get("rewinds", 0))})

    def _refused(self, error: Exception) -> None:
        if not self._warned:
            said = f"{self.tracker.name}: {_first_line(error)}"
            print(f"warning: {said} (the run goes on)", file=sys.stderr)
        self._warned = True
