"""Experiment trackers: what they are sent, by a thread that may wait; ids that a resume keeps."""

import importlib.machinery
import json
import sys
import threading
import types

import pytest
from clocks import until
from test_hooks import live

from t5x_llm.core.errors import ConfigError
from t5x_llm.train.hooks import Metrics, MLflow, Tracking, WandB, check_tracking, tracked
from t5x_llm.train.hooks.tracking import Tracked, redacted

LINES = [
    {"kind": "start", "step": 0, "rewinds": 0, "parameters": 7, "where": "https://a:b@host/x"},
    {"kind": "train", "step": 2, "rewinds": 0, "loss": 1.5, "by": {"en": 2.5, "zh": None}},
    {"kind": "rewind", "step": 1, "rewinds": 1},
    {"kind": "eval", "step": 2, "rewinds": 1, "results": {"all": {"bits_per_byte": 0.5}}},
]
LOGGED = [
    (2, {"train/loss": 1.5, "train/by/en": 2.5, "rewinds": 0.0}),
    (2, {"eval/results/all/bits_per_byte": 0.5, "rewinds": 1.0}),
]


class Kept:
    """A tracker that keeps what it is sent, and refuses as often as it is told."""

    name = "kept"

    def __init__(self, refusals=0):
        self.refusals, self.calls, self.facts, self.logged = refusals, [], {}, []
        self.held = threading.Event()
        self.held.set()

    def start(self):
        self.calls.append("start")

    def describe(self, facts):
        self.facts |= facts

    def log(self, step, values):
        self.held.wait()
        if self.refusals:
            self.refusals -= 1
            raise OSError("no route to https://me:password@host")
        self.logged.append((step, values))

    def finish(self, failed):
        self.calls.append("failed" if failed else "finished")


@pytest.mark.parametrize("refusals", [0, 3])
def test_every_line_arrives_once_and_in_order(refusals, capsys):
    tracker = Kept(refusals)
    writer = Tracked(tracker, retry=0.001)
    writer.open(0)
    for line in LINES:
        writer.write(line)
    until(lambda: len(tracker.logged) == 2)
    writer.close()
    assert tracker.logged == LOGGED and tracker.calls == ["start", "finished"]
    assert tracker.facts == {
        "step": 0,
        "rewinds": 0,
        "parameters": 7,
        "where": "https://***@host/x",
    }
    warned = capsys.readouterr().err
    assert warned.count("warning") == bool(refusals) and "password" not in warned


def test_a_tracker_that_hangs_costs_neither_steps_nor_the_end(capsys):
    tracker = Kept()
    tracker.held.clear()
    writer = Tracked(tracker, patience=0.01, most=3)
    writer.open(0)
    for _ in range(10):
        writer.write(LINES[1])
    writer.close()
    assert "kept did not take the last 10 lines" in capsys.readouterr().err
    tracker.held.set()


def test_one_that_never_answers_is_given_up(capsys):
    tracker = Kept(refusals=10**9)
    writer = Tracked(tracker, retry=60.0)
    writer.open(0)
    writer.write(LINES[1])
    writer.close(failed=True)
    assert "metrics.jsonl has them all" in capsys.readouterr().err


@pytest.mark.parametrize("primary", [True, False])
def test_the_first_process_alone_writes(tmp_path, primary):
    tracker = Kept()
    run = live(tmp_path)
    run.primary = primary
    hook = Metrics([Tracked(tracker)])
    hook.on_start(run)
    hook.on_end(run, ValueError())
    assert tracker.calls == (["start", "failed"] if primary else [])


class FakeRun:
    def __init__(self, said):
        self.said, self.config = said, self
        self.update = lambda facts, allow_val_change: said.setdefault("facts", facts)
        self.logged = said.setdefault("logged", [])

    def define_metric(self, name, step_metric):
        self.said["axis"] = name, step_metric

    def log(self, values):
        self.logged.append(values)

    def finish(self, exit_code):
        self.said["exit_code"] = exit_code


def fake(monkeypatch, name, **members):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


def send(tracking, directory, config, lines=LINES):
    (writer,) = tracked(tracking, str(directory), config)
    writer.open(0)
    for line in lines:
        writer.write(line)
    writer.close()


def test_wandb_goes_on_in_the_run_of_the_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "abcdef123")
    said = []

    def init(**options):
        said.append(options)
        return FakeRun(options)

    fake(monkeypatch, "wandb", init=init, Settings=dict, login=lambda prompt: False)
    tracking = Tracking(("wandb",), wandb=WandB(mode="offline"))
    check_tracking(tracking, str(tmp_path), primary=True)
    for _ in range(2):
        send(tracking, tmp_path / "mine", {"note": "abcdef123", "steps": 3})
    first, second = said
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert first["name"] == "mine" and first["mode"] == "offline"
    assert first["config"] == {"run": {"note": "***", "steps": 3}}
    assert first["settings"]["console"] == "off" and first["settings"]["x_disable_meta"]
    # Its own step cannot go back, so steps are a metric like the others.
    assert first["axis"] == ("*", "step") and first["exit_code"] == 0
    assert first["logged"] == [{"step": step, **values} for step, values in LOGGED]
    other = Tracking(("wandb",), wandb=WandB(project="other", mode="offline"))
    send(other, tmp_path / "mine", {})
    assert said[2]["id"] != first["id"]


class FakeServer:
    """What of MLflow's client is used."""

    def __init__(self):
        self.runs, self.experiments, self.batches, self.uris = {}, {}, [], []

    def __call__(self, tracking_uri):
        self.uris.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name):
        return self.experiments.get(name)

    def create_experiment(self, name):
        self.experiments[name] = types.SimpleNamespace(experiment_id=name)
        return name

    def _run(self, run):
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run))

    def get_run(self, run):
        if run not in self.runs:
            raise sys.modules["mlflow.exceptions"].MlflowException("RESOURCE_DOES_NOT_EXIST")
        return self._run(run)

    def create_run(self, experiment, run_name):
        self.runs[f"run {len(self.runs)}"] = run_name
        return self._run(f"run {len(self.runs) - 1}")

    def log_batch(self, run, metrics=(), params=(), tags=()):
        self.batches.append((run, list(metrics), list(params), list(tags)))

    def update_run(self, run, status):
        pass

    set_terminated = update_run


def test_mlflow_goes_on_in_the_run_of_the_directory(tmp_path, monkeypatch):
    class Refusal(Exception):
        error_code = property(lambda self: self.args[0])

    server = FakeServer()
    plain = {name: lambda *values: values for name in ("Metric", "Param", "RunTag")}
    fake(monkeypatch, "mlflow")
    fake(monkeypatch, "mlflow.entities", **plain)
    fake(monkeypatch, "mlflow.exceptions", MlflowException=Refusal)
    fake(monkeypatch, "mlflow.tracking", MlflowClient=server)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking = Tracking("mlflow")
    check_tracking(tracking, str(tmp_path), primary=True)
    config = {"model": {"d": 3}, "sources": [{"name": "a"}], "prompts": ["x", "y"], "none": ""}
    for _ in range(2):
        send(tracking, tmp_path, config)
    assert set(server.uris) == {f"sqlite:///{tmp_path}/mlflow.db"}
    assert server.runs == {"run 0": tmp_path.name}
    params = [p for _, _, batch, _ in server.batches for p in batch]
    assert params == [("model.d", "3"), ("sources.0.name", "a"), ("prompts", "['x', 'y']")]
    metrics = [[(m[0], m[1], m[3]) for m in batch] for _, batch, _, _ in server.batches if batch]
    expected = [[(k, v, step) for k, v in values.items()] for step, values in LOGGED]
    assert metrics == expected * 2
    # Another server, which does not know the run: a new one.
    server.runs = {"run of somebody": ""}
    send(tracking, tmp_path, config)
    assert json.loads((tmp_path / "trackers.json").read_text())["mlflow"]["run_id"] == "run 1"


def test_what_cannot_be_tracked_is_refused_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("wandb", "mlflow"):
        with pytest.raises(ConfigError, match=rf"pip install 't5x-llm\[{name}\]'"):
            check_tracking(Tracking(name), str(tmp_path), primary=False)
    monkeypatch.undo()
    fake(monkeypatch, "wandb", login=lambda prompt: False)
    fake(monkeypatch, "mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="WANDB_API_KEY"):
        check_tracking(Tracking("wandb"), str(tmp_path), primary=True)
    check_tracking(Tracking("wandb"), str(tmp_path), primary=False)

    def unreachable(prompt):
        raise OSError("no answer from https://me:hunter2@host")

    fake(monkeypatch, "wandb", login=unreachable)
    check_tracking(Tracking("wandb"), str(tmp_path), primary=True)
    said = capsys.readouterr().err
    assert "no answer" in said and "the run goes on" in said and "hunter2" not in said
    with pytest.raises(ConfigError, match="local disk"):
        check_tracking(Tracking("wandb", WandB(mode="offline")), "gs://a/b", primary=True)
    with pytest.raises(ConfigError, match="MLflow.uri"):
        check_tracking(Tracking("mlflow"), "gs://a/b", primary=True)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as refused:
        MLflow("https://me:hunter2@host")
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"Tracking.trackers.*wandb"):
        Tracking("wandbb")


def test_secrets_are_not_repeated(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ps3cret")
    monkeypatch.setenv("KEYBOARD_TOKEN", "")
    assert redacted("401 for t0ps3cret at http://u:p@h/a") == "401 for *** at http://***@h/a"
