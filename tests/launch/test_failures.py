"""gcloud and kubectl that fail, lie and hang: no machine is left that was not named.

The cloud here is a few dictionaries behind ``calls.call``; a fault is a rule for calls of a verb.
"""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from clocks import no_hang, until

from t5x_llm.core.errors import ConfigError
from t5x_llm.launch import gke
from t5x_llm.launch.calls import CallOutcome, CloudError, Terminated, call
from t5x_llm.launch.controller import CallLimits, Controller, Unreachable
from t5x_llm.launch.job import Gke, Job, QueuedResource
from t5x_llm.launch.ledger import Holding, Ledger, everything

ZONES = ("a-b1-a", "a-b1-b")
JOB = Job(
    name="run",
    slice="v5p-16",
    command=("x",),
    backoff_seconds=0,
    restarts=3,
    target=QueuedResource("my-project", ZONES, "gs://mine/jobs"),
)
ALWAYS = range(10_000)


class Cloud:
    """Requests by zone. ``faults``: {(verb, which call of it, from 0): effect}."""

    def __init__(
        self, faults=(), plan=("ACTIVE", "ACTIVE", "ACTIVE"), runs=("running", "status 0")
    ):
        self.zones, self.plan, self.runs = {}, list(plan), list(runs)
        self.faults = {(v, i): effect for v, which, effect in faults for i in which}
        self.counts, self.said, self.jobset = {}, [], False

    def __call__(self, command, limit, text=None, show=False):
        command = list(command)
        self.said.append(command)
        verb = self._verb(command)
        n = self.counts[verb] = self.counts.get(verb, -1) + 1
        effect = self.faults.get((verb, n))
        raised = {"interrupt": KeyboardInterrupt(), "term": Terminated(15), "bug": RuntimeError()}
        if effect in raised:
            raise raised[effect]
        out, status, err = "", 0, ""
        if effect in (None, "did", "did_hang", "did_term", "garbled", "half", "empty"):
            out, status, err = self._act(verb, command)
        if effect == "did_term":
            raise Terminated(15)
        if effect in ("hang", "did_hang"):
            return CallOutcome(tuple(command), None, "", "", limit)
        if effect in ("fail", "did"):
            out, status, err = "", 1, "ERROR: first line\nUNAVAILABLE: the service is down"
        if effect == "denied":
            out, status, err = "", 1, "ERROR: PERMISSION_DENIED: no"
        if effect == "no_host":
            out, status, err = "", 1, "ServerNotFoundError: Unable to find the server"
        out = {"garbled": "<html>", "half": out[: len(out) // 2], "empty": ""}.get(effect, out)
        return CallOutcome(tuple(command), status, out, err, limit)

    @staticmethod
    def _verb(command):
        if command[0] == "kubectl":
            return next(w for w in command if w in ("apply", "get", "delete"))
        if command[0] == "git":
            return "git"
        if command[1] == "storage":
            return "copy"
        if command[4] != "ssh":
            return command[4]
        script = next(w for w in command if w.startswith("--command="))
        return "follow" if "tail -n" in script else "status" if "echo status" in script else "start"

    def _act(self, verb, command):
        if verb in ("apply", "get") or command[0] == "kubectl":
            if verb == "apply":
                self.jobset = True
            if verb == "delete":
                self.jobset = False
            return "jobset.x/run\n" if verb == "get" and self.jobset else "", 0, ""
        if verb in ("git", "copy"):
            return "f" * 40 if "rev-parse" in command else "", 0, ""
        zone = next(w for w in command if w.startswith("--zone=")).removeprefix("--zone=")
        missing = "", 1, "ERROR: NOT_FOUND: queuedResources/run was not found"
        if verb == "create":
            if zone in self.zones:
                return "", 1, "ERROR: ALREADY_EXISTS"
            state = self.plan.pop(0)
            if state == "REFUSED":
                return "", 1, "ERROR: RESOURCE_EXHAUSTED: quota"
            self.zones[zone] = state
            return "", 0, ""
        if zone not in self.zones:
            return missing
        if verb == "describe":
            return json.dumps({"name": "run", "state": {"state": self.zones[zone]}}), 0, ""
        if verb == "delete":
            del self.zones[zone]
        if verb == "status":
            return (self.runs.pop(0) if len(self.runs) > 1 else self.runs[0]) + "\n", 0, ""
        return "", 0, ""


def control(cloud, job=JOB):
    return Controller(job, sleep=lambda s: None, poll_seconds=0, limits=CallLimits(), call=cloud)


def outcome_of(cloud, job=JOB):
    try:
        return control(cloud, job).run()
    except (CloudError, RuntimeError, KeyboardInterrupt, Terminated) as e:
        return type(e)


HEALED = [
    (verb, (n,), effect)
    for verb, times in {"describe": (0, 1, 2, 3), "status": (0, 1), "copy": (0,)}.items()
    for n in times
    for effect in ("fail", "hang", "garbled", "half", "empty", "no_host")
    if verb != "copy" or effect in ("fail", "hang")
]
HEALED += [
    ("create", (0,), "did"),
    ("create", (0,), "did_hang"),
    ("create", (0,), "fail"),
    ("create", (0,), "hang"),
    ("create", (0,), "denied"),
    ("describe", range(2, 20), "fail"),
    ("describe", range(2, 20), "hang"),
    ("delete", (0,), "fail"),
    ("delete", (0,), "did"),
    ("delete", (0, 1), "hang"),
    ("delete", (0,), "did_hang"),
    ("start", (0,), "fail"),
    ("start", (0,), "hang"),
    ("follow", (0,), "hang"),
    ("follow", (0, 1), "fail"),
    ("status", range(6), "fail"),
]
ENDED = [
    (("describe", ALWAYS, "denied"), CloudError),
    (("describe", range(2, 10_000), "denied"), Unreachable),
    (("describe", range(2, 10_000), "fail"), Unreachable),
    (("describe", range(3, 10_000), "garbled"), Unreachable),
    (("describe", range(4, 10_000), "hang"), Unreachable),
    (("create", ALWAYS, "fail"), CloudError),
    (("create", ALWAYS, "hang"), CloudError),
    (("copy", ALWAYS, "fail"), CloudError),
    (("delete", ALWAYS, "fail"), 0),
    (("delete", ALWAYS, "hang"), 0),
    (("start", ALWAYS, "fail"), CloudError),
    (("create", (0,), "interrupt"), KeyboardInterrupt),
    (("create", (0,), "term"), Terminated),
    (("create", (0,), "did_term"), Terminated),
    (("describe", (2,), "interrupt"), KeyboardInterrupt),
    (("describe", (3,), "term"), Terminated),
    (("start", (0,), "interrupt"), KeyboardInterrupt),
    (("follow", (0,), "interrupt"), KeyboardInterrupt),
    (("follow", (0,), "term"), Terminated),
    (("status", (0,), "term"), Terminated),
    (("delete", (0,), "interrupt"), KeyboardInterrupt),
    (("delete", (0,), "did_term"), Terminated),
    (("follow", (0,), "bug"), RuntimeError),
]
CASES = [(fault, 0) for fault in HEALED] + ENDED


@pytest.mark.parametrize("plan", [("ACTIVE",) * 9, ("FAILED", "ACTIVE", "ACTIVE"),
                                  ("REFUSED", "ACTIVE", "ACTIVE")])  # fmt: skip
@pytest.mark.parametrize(("fault", "expected"), CASES, ids=str)
def test_no_machine_is_left_unnamed(fault, expected, plan, capfd):
    cloud = Cloud([fault], plan)
    ended = outcome_of(cloud)
    if plan[0] == "ACTIVE":
        assert ended == expected
    said = capfd.readouterr().err
    for zone in cloud.zones:
        named = f"queued resource run in zone {zone} of project my-project"
        assert named in said and f"delete run --zone={zone} --project=my-project" in said
        assert Holding("queued-resource", "run", "my-project", zone) in everything()
    if ended == 0 and fault[0] != "delete":
        assert not cloud.zones
    # A later call gives back what is left, even where the job names other zones by now.
    cloud.faults.clear()
    moved = QueuedResource("my-project", ("c-d2-c",), "gs://mine/jobs")
    control(cloud, Job("run", moved, ("x",), "v5p-16")).delete()
    assert not cloud.zones and not everything()


def test_there_are_enough_failures():
    assert len(CASES) >= 40


def test_a_request_that_appears_after_it_was_refused_is_deleted(capfd):
    """The create of the first zone times out and shows only once the second has delivered."""

    class Late(Cloud):
        def _act(self, verb, command):
            if verb == "start":
                self.zones["a-b1-a"] = "ACTIVE"
            return super()._act(verb, command)

    cloud = Late([("create", (0,), "hang")])
    assert outcome_of(cloud) == 0 and not cloud.zones


def test_all_that_gcloud_said_is_shown():
    cloud = Cloud([("create", ALWAYS, "fail")])
    with pytest.raises(CloudError, match=r"(?s)first line\nUNAVAILABLE: the service is down"):
        control(cloud).run()


def test_delete_says_what_it_cannot_delete(capfd):
    cloud = Cloud([("delete", ALWAYS, "fail")])
    cloud.zones["a-b1-b"] = "ACTIVE"
    with pytest.raises(CloudError, match="Not everything"):
        control(cloud).delete()
    assert "zone a-b1-b" in capfd.readouterr().err
    assert [h.place for h in everything()] == ["a-b1-b"]


KUBECTL = [
    (("apply", (0,), "fail"), None),
    (("apply", (0,), "hang"), None),
    (("apply", ALWAYS, "fail"), CloudError),
    (("apply", ALWAYS, "did"), CloudError),
    (("apply", ALWAYS, "did_hang"), CloudError),
    (("apply", (0,), "did_term"), Terminated),
    (("apply", (0,), "interrupt"), KeyboardInterrupt),
]


@pytest.mark.parametrize("unsure", [False, True])
@pytest.mark.parametrize(("fault", "expected"), KUBECTL, ids=str)
def test_no_jobset_is_left_unnamed(fault, expected, unsure, monkeypatch, capfd):
    monkeypatch.setattr(gke, "_PAUSE_SECONDS", 0)
    made = Job("run", Gke("a/b:1", context="c"), ("x",), "v6e-256")
    cloud = Cloud([fault, *([("get", ALWAYS, "hang")] if unsure else [])])
    message = ""
    try:
        gke.submit(made, cloud)
        assert expected is None
    except (CloudError, Terminated, KeyboardInterrupt) as e:
        assert type(e) is expected
        message = str(e)
    if cloud.jobset:
        assert [h.kind for h in everything()] == ["jobset"]
        if expected is CloudError:
            assert "kubectl --context=c --namespace=default delete jobset run" in message
    cloud.faults.clear()
    gke.delete(made, cloud)
    assert not cloud.jobset and not everything()


@pytest.mark.parametrize("effect", ["fail", "hang"])
def test_a_jobset_that_cannot_be_deleted_is_named(effect, monkeypatch):
    monkeypatch.setattr(gke, "_PAUSE_SECONDS", 0)
    made = Job("run", Gke("a/b:1"), ("x",), "v6e-256")
    cloud = Cloud([("delete", ALWAYS, effect)])
    gke.submit(made, cloud)
    with pytest.raises(CloudError, match="delete jobset run"):
        gke.delete(made, cloud)
    assert everything()


def test_a_call_that_hangs_is_ended_with_its_children(tmp_path):
    mark = tmp_path / "pid"
    with no_hang():
        found = call(["bash", "-c", f"sleep 600 & echo $! > {mark}; wait"], limit=0.5)
    assert found.status is None and "no answer within 0.5 s" in found.complaint()
    child = int(mark.read_text())
    until(lambda: not _lives(child))


def _lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_signal_ends_the_command_with_its_status_and_names_what_remains(tmp_path, monkeypatch):
    """The whole command, SIGTERM while it waits for machines."""
    program = tmp_path / "bin" / "gcloud"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        f'if [ "$4" = create ]; then touch {tmp_path}/asked; fi\n'
        f'if [ "$4" = describe ] && [ ! -e {tmp_path}/asked ]; then\n'
        "  echo NOT_FOUND >&2; exit 1\nfi\n"
        'echo \'{"state": {"state": "WAITING_FOR_RESOURCES"}}\'\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    flags = ["--gin.Job.name='run'", "--gin.Job.slice='v5p-16'", "--gin.Job.command=('x',)",
             "--gin.Job.target=@QueuedResource()", "--gin.QueuedResource.project='my-project'",
             "--gin.QueuedResource.zones=('a-b1-a',)",
             "--gin.QueuedResource.bucket='gs://mine/jobs'"]  # fmt: skip
    command = [sys.executable, "-m", "t5x_llm.cli.main", "submit", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: (tmp_path / "asked").exists())
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "queued resource run in zone a-b1-a" in said
    listed = subprocess.run([*command[:4], "--list"], capture_output=True, text=True)
    assert re.search(r"gcloud .* delete run --zone=a-b1-a", listed.stdout), listed.stderr


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '[{"kind": "vm"}]', "null",
     '[{"kind": "queued-resource", "name": "a;b", "owner": "p", "place": "z"}]',
     '[{"kind": "queued-resource", "name": "--x", "owner": "p", "place": "z"}]'],
)  # fmt: skip
def test_a_damaged_ledger_is_refused(text):
    ledger = Ledger("run", "my-project")
    ledger.path.parent.mkdir(parents=True)
    ledger.path.write_text(text)
    with pytest.raises(ConfigError, match="ledger"):
        ledger.holdings()


def test_nothing_is_asked_for_that_cannot_be_noted(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    cloud = Cloud()
    with pytest.raises(ConfigError, match="XDG_STATE_HOME"):
        control(cloud).run()
    assert not cloud.zones and "create" not in cloud.counts
