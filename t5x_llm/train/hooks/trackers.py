"""Clients of Weights & Biases and MLflow. Their packages are imported when a run opens them.

The run's id at each tracker is kept in ``trackers.json`` of the run directory, so that a resumed
run goes on in the same curve.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from t5x_llm.core.paths import as_path, write_json
from t5x_llm.train.hooks.tracking import MLflow, Tracked, Tracker, Tracking, WandB, mlflow_uri
from t5x_llm.train.hooks.tracking import redacted_values as without_secrets

IDS = "trackers.json"
_BATCH = 100  # params of one request, MLflow's limit
_UNNAMED = re.compile(r"[^\w./ :-]")  # what MLflow refuses in a name
_LONGEST = 500  # characters of a param that every MLflow server takes


def tracked(tracking: Tracking, directory: str, config: Mapping[str, Any]) -> list[Tracked]:
    """Returns a writer for each tracker asked for.

    Args:
      tracking: the configuration.
      directory: of the run.
      config: the run's configuration as JSON-able data, which the trackers show.
    """
    shown = without_secrets(config)
    made: dict[str, Callable[[], Tracker]] = {
        "wandb": lambda: WandBTracker(tracking.wandb, directory, shown),
        "mlflow": lambda: MLflowTracker(tracking.mlflow, directory, shown),
    }
    return [Tracked(made[name]()) for name in tracking.trackers]


def _known(directory: str) -> dict[str, Any]:
    """Returns what ``trackers.json`` holds; nothing if it is not there or is damaged."""
    try:
        found = json.loads((as_path(directory) / IDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(directory: str, tracker: str, entry: Mapping[str, str]) -> None:
    write_json(as_path(directory) / IDS, _known(directory) | {tracker: dict(entry)})


def _name(given: str, directory: str) -> str:
    return given or os.path.basename(directory.rstrip("/")) or "run"


class WandBTracker:
    """Run at Weights & Biases.

    Values are logged against the metric ``step``: W&B's own step cannot go back, and a resumed or
    rewound run does. Console, command line, environment, git and code are not sent.
    """

    name = "wandb"

    def __init__(self, config: WandB, directory: str, shown: Mapping[str, Any]):
        self._config, self._directory, self._shown = config, directory, shown
        self._run: Any = None

    def start(self) -> None:
        """Opens the run."""
        import wandb

        where = {"project": self._config.project, "entity": self._config.entity}
        known = _known(self._directory).get(self.name, {})
        if not isinstance(known, dict) or any(known.get(k) != v for k, v in where.items()):
            known = where | {"id": uuid.uuid4().hex[:16]}
            _remember(self._directory, self.name, known)
        remote = "://" in self._directory
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=self._config.project,
            entity=self._config.entity or None,
            name=_name(self._config.name, self._directory),
            id=known["id"],
            resume="allow",
            mode=self._config.mode,
            dir=tempfile.mkdtemp(prefix="wandb-") if remote else self._directory,
            config={"run": self._shown},
            settings=settings,
        )
        self._run.define_metric("*", step_metric="step")

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Adds the facts to the run's config."""
        self._run.config.update({"facts": dict(facts)}, allow_val_change=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values at a step."""
        self._run.log({"step": step, **values})

    def finish(self, failed: bool) -> None:
        """Sends what is left, and closes."""
        if self._run is not None:
            self._run.finish(exit_code=int(failed))
            self._run = None


class MLflowTracker:
    """Run at an MLflow server or in its database."""

    name = "mlflow"

    def __init__(self, config: MLflow, directory: str, shown: Mapping[str, Any]):
        self._config, self._directory, self._shown = config, directory, shown
        self._client: Any = None
        self._id = ""

    def start(self) -> None:
        """Opens the run directory's run, or makes one with the configuration as its params."""
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        local = "" if "://" in self._directory else self._directory
        client = MlflowClient(tracking_uri=mlflow_uri(self._config, local))
        known = _known(self._directory).get(self.name, {})
        found = None
        if isinstance(known, dict) and known.get("experiment") == self._config.experiment:
            try:
                found = client.get_run(str(known.get("run_id")))
            except MlflowException as e:
                if e.error_code != "RESOURCE_DOES_NOT_EXIST":  # another server than before
                    raise
        if found is None:
            experiment = client.get_experiment_by_name(self._config.experiment)
            where = (
                client.create_experiment(self._config.experiment)
                if experiment is None
                else experiment.experiment_id
            )
            found = client.create_run(where, run_name=_name(self._config.name, self._directory))
            params = [Param(key, value) for key, value in _texts(self._shown)]
            for begin in range(0, len(params), _BATCH):
                client.log_batch(found.info.run_id, params=params[begin : begin + _BATCH])
            entry = {"experiment": self._config.experiment, "run_id": found.info.run_id}
            _remember(self._directory, self.name, entry)
        self._client, self._id = client, found.info.run_id
        client.update_run(self._id, status="RUNNING")

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Sets the facts as tags; params cannot change, and a resumed run's facts may."""
        from mlflow.entities import RunTag

        tags = [RunTag(key, value) for key, value in _texts(facts)]
        for begin in range(0, len(tags), _BATCH):
            self._client.log_batch(self._id, tags=tags[begin : begin + _BATCH])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values at a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_UNNAMED.sub("_", k), v, now, step) for k, v in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, failed: bool) -> None:
        """Marks the run as ended."""
        if self._client is not None:
            self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")
            self._client = None


def _texts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns nested data as (name, text), both as every MLflow server takes them."""
    named = ((_UNNAMED.sub("_", name), text) for name, text in _flat("", values))
    return [(name, text[:_LONGEST]) for name, text in named if text]


def _flat(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    """Yields (``a.b.c``, text) of all values in nested mappings and lists."""
    if isinstance(value, Mapping):
        for key, held in value.items():
            yield from _flat(f"{prefix}.{key}".lstrip("."), held)
    elif isinstance(value, list) and any(isinstance(each, (Mapping, list)) for each in value):
        for number, held in enumerate(value):
            yield from _flat(f"{prefix}.{number}", held)
    else:
        yield prefix, str(value)
