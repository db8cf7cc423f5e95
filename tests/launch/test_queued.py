"""Queued resources against a stand-in gcloud: machines are directories, ssh is bash."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile

import pytest
from clocks import between_looks, until
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_llm.launch.bootstrap import start_script
from t5x_llm.launch.calls import CloudError
from t5x_llm.launch.controller import Controller, commit_of
from t5x_llm.launch.job import Job, QueuedResource
from t5x_llm.launch.queued import create_command, render

# State: zones/<zone> exists while there is a request; `plan` says what the next requests become.
GCLOUD = r"""
import json, os, pathlib, shutil, subprocess, sys
root = pathlib.Path(os.environ["FAKE"])
argv = sys.argv[1:]
with open(root / "said", "a") as f:
    f.write(json.dumps(argv) + "\n")
flags = dict(a[2:].partition("=")[::2] for a in argv if a.startswith("--"))
if argv[:2] == ["storage", "cp"]:
    source, target = [a for a in argv[2:] if not a.startswith("--")]
    local = lambda p: str(root / "bucket" / p.removeprefix("gs://").replace("/", "_")) \
        if p.startswith("gs://") else p
    (root / "bucket").mkdir(exist_ok=True)
    shutil.copy(local(source), local(target))
    sys.exit(0)
if argv[:1] == ["secrets"]:
    print("s3cret-" + flags["secret"])
    sys.exit(0)
verb, name, zone = argv[3], argv[4], root / "zones" / flags["zone"]
def state():
    return (zone / "state").read_text()
if verb == "create":
    plan = json.loads((root / "plan").read_text())
    (root / "plan").write_text(json.dumps(plan[1:]))
    if plan[0] == "REFUSED":
        print("ERROR: quota", file=sys.stderr)
        sys.exit(1)
    zone.mkdir(parents=True)
    (zone / "state").write_text(plan[0])
elif verb == "describe":
    if not zone.exists():
        print("ERROR: NOT_FOUND: no such resource", file=sys.stderr)
        sys.exit(1)
    print(json.dumps({"name": name, "state": {"state": state()}}))
elif verb == "delete":
    for machine in zone.glob("m*/t5x_llm/*/pid"):
        subprocess.run(["pkill", "-9", "-s", machine.read_text().strip()])
    shutil.rmtree(zone)
elif verb == "ssh":
    if state() != "ACTIVE":
        sys.exit(255)
    for machine in range(2 if flags["worker"] == "all" else 1):
        home = zone / f"m{machine}"
        home.mkdir(exist_ok=True)
        env = {**os.environ, "HOME": str(home), "MACHINE": str(machine), "ZONE": str(zone)}
        code = subprocess.run(["bash", "-c", flags["command"]], env=env).returncode
        if code:
            sys.exit(code)
"""
MAKEFILE = "setup:\n\tmkdir -p .venv/bin .uv/bin\n\tcp uv .uv/bin/uv\n\techo made >> ../setups\n"


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """gcloud on the PATH, a repository to send, and what was asked of gcloud."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    program = bin_ / "gcloud"
    program.write_text(f"#!{sys.executable}\n{GCLOUD}")
    program.chmod(0o755)
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "Makefile").write_text(MAKEFILE)
    (repository / "uv").write_text("#!/bin/sh\n")
    (repository / "uv").chmod(0o755)
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    return tmp_path


def target(cloud, **changes):
    fields = dict(project="my-project", zones=("a-b1-a", "a-b1-b"), bucket="gs://mine/jobs")
    return QueuedResource(**(fields | {"code": str(cloud / "repository")} | changes))


def job(cloud, script, plan, target_changes=None, **changes):
    (cloud / "plan").write_text(json.dumps(plan))
    fields = dict(name="run", slice="v5p-16", command=("bash", "-c", script), backoff_seconds=0)
    made = target(cloud, **(target_changes or {}))
    return Job(target=made, **(fields | changes))


def said(cloud, verb):
    lines = [json.loads(line) for line in (cloud / "said").read_text().splitlines()]
    return [line for line in lines if len(line) > 3 and line[3] == verb]


def control(made):
    waits = []
    controller = Controller(
        made, sleep=lambda s: (waits.append(s), between_looks()), poll_seconds=0
    )
    return controller, waits


def test_it_runs_on_every_machine_and_gives_them_back(cloud, capfd):
    script = 'echo "machine $MACHINE in $PWD"; echo $WORD $HF; echo ran >> "$HOME/ran"; exit 0'
    copy = 'cp "$HOME/ran" "$FAKE/ran$MACHINE"'
    made = job(
        cloud,
        script.replace("exit 0", copy),
        ["ACTIVE"],
        environment=(("WORD", "it's $HOME"),),
        secrets=(("HF", "hf-token:3"),),
    )
    controller, _ = control(made)
    assert controller.run() == 0
    out, err = capfd.readouterr()
    assert (
        "machine 0" in out and "it's $HOME s3cret-hf-token" in out and "ended with status 0" in err
    )
    assert (cloud / "ran0").read_text() == (cloud / "ran1").read_text() == "ran\n"
    assert not (cloud / "zones" / "a-b1-a").exists()
    assert "s3cret" not in (cloud / "said").read_text()  # only its name is ever given away
    [create] = said(cloud, "create")
    assert "--accelerator-type=v5p-16" in create and "--runtime-version=v2-alpha-tpuv5" in create


def test_a_zone_that_does_not_deliver_is_left(cloud):
    controller, _ = control(job(cloud, "exit 0", ["FAILED", "ACTIVE"]))
    assert controller.run() == 0
    zones = [next(w for w in line if w.startswith("--zone")) for line in said(cloud, "create")]
    assert zones == ["--zone=a-b1-a", "--zone=a-b1-b"]
    assert not list((cloud / "zones").iterdir())


def test_no_zone_delivers(cloud):
    controller, _ = control(
        job(cloud, "exit 0", ["REFUSED", "WAITING_FOR_RESOURCES"], {"wait_minutes": 1e-4})
    )
    with pytest.raises(CloudError, match=r"(?s)quota.*still WAITING_FOR_RESOURCES"):
        controller.run()
    assert not list((cloud / "zones").iterdir())


def test_preempted_machines_are_asked_for_again(cloud):
    """The first time the machines vanish in mid-run; what was saved outside is found again."""
    script = """
if [ ! -e "$FAKE/saved" ]; then
  touch "$FAKE/saved"; printf SUSPENDED > "$ZONE/state"; sleep 30
fi
"""
    controller, waits = control(job(cloud, script, ["ACTIVE", "ACTIVE"], backoff_seconds=7))
    assert controller.run() == 0
    assert len(said(cloud, "create")) == 2 and len(said(cloud, "delete")) == 2
    assert 7 in waits


@pytest.mark.parametrize("status", [75, 76, 77, 137])
def test_what_can_be_helped_is_started_again_on_the_same_machines(cloud, status):
    script = f'[ -e "$HOME/once" ] || {{ touch "$HOME/once"; exit {status}; }}'
    controller, _ = control(job(cloud, script, ["ACTIVE"]))
    assert controller.run() == 0
    assert len(said(cloud, "create")) == 1


def test_a_mistake_is_not_started_again(cloud):
    """One machine's mistake counts before what it brought upon the other."""
    controller, _ = control(job(cloud, "exit $((MACHINE == 1 ? 2 : 76))", ["ACTIVE"]))
    assert controller.run() == 2
    assert len(said(cloud, "create")) == len(said(cloud, "delete")) == 1


def test_it_gives_up(cloud):
    controller, _ = control(job(cloud, "exit 75", ["ACTIVE"], restarts=2))
    with pytest.raises(CloudError, match="status 75; giving up after 2"):
        controller.run()
    assert not list((cloud / "zones").iterdir())


def test_the_environment_is_built_once_a_machine(cloud):
    script = (
        '[ -e "$HOME/twice" ] || { mv "$HOME/once" "$HOME/twice" || touch "$HOME/once"; exit 75; }'
    )
    script += '; cp "$HOME/t5x_llm/run/setups" "$FAKE/setups$MACHINE"'
    controller, _ = control(job(cloud, script, ["ACTIVE"]))
    assert controller.run() == 0
    assert (cloud / "setups0").read_text() == "made\n"


def test_a_submit_that_was_ended_finds_its_job_again(cloud):
    """The command on the machines lives on; the second call follows it to its end."""
    made = job(
        cloud, 'touch "$FAKE/started"; while [ ! -e "$FAKE/go" ]; do sleep 0.05; done', ["ACTIVE"]
    )
    flags = [f"--gin.Job.{name}={getattr(made, name)!r}" for name in ("name", "slice", "command")]
    flags += [
        f"--gin.QueuedResource.{name}={getattr(made.target, name)!r}"
        for name in ("project", "zones", "bucket", "code")
    ]
    command = [sys.executable, "-m", "t5x_llm.cli.main", "submit", *flags]
    command.append("--gin.Job.target=@QueuedResource()")
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        until(lambda: (cloud / "started").exists())
        os.killpg(first.pid, signal.SIGINT)
        assert first.wait(20) == 130
        (cloud / "go").touch()
        again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        (cloud / "go").touch()
        first.kill()
    assert again.returncode == 0, again.stderr
    assert "found in a-b1-a" in again.stderr
    assert len(said(cloud, "create")) == 1


def test_delete(cloud):
    made = job(cloud, "exit 0", ["ACTIVE"])
    subprocess.run(create_command(made, "a-b1-b"), check=True)
    control(made)[0].delete()
    assert not list((cloud / "zones").iterdir())


def test_every_capacity_and_several_slices(cloud):
    made = job(cloud, "x", [], dict(capacity="spot", network="n", internal_ips=True), slices=2)
    words = create_command(made, "a-b1-a")
    assert {"--spot", "--node-count=2", "--node-prefix=run", "--network=n"} <= set(words)
    assert "--internal-ips" in words and not any(w.startswith("--node-id") for w in words)
    reserved = create_command(job(cloud, "x", [], dict(capacity="reserved")), "a-b1-a")
    assert "--reserved" in reserved and "--spot" not in reserved and "--node-id=run" in reserved


TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r"), max_size=30)


@settings(max_examples=25, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=3), TEXT)
def test_hostile_words_arrive_as_they_are(words, value):
    """The script, run by bash: the command sees its arguments and variables to the byte."""
    show = (
        "import json, os, sys; json.dump([sys.argv[1:], os.environ['A']], open(sys.argv[1], 'w'))"
    )
    with tempfile.TemporaryDirectory() as home:
        out = str(pathlib.Path(home) / "out")
        made = Job(
            name="run",
            slice="v5p-16",
            target=QueuedResource("my-project", ("a-b1-a",), "gs://mine/jobs"),
            command=(sys.executable, "-c", show, out, *words),
            environment=(("A", value),),
        )
        code = pathlib.Path(home) / "t5x_llm/run" / f"code-{'0' * 12}"
        code.mkdir(parents=True)
        (code / ".ready").touch()
        script = start_script(made, "0" * 40)
        subprocess.run(["bash", "-c", script], env={**os.environ, "HOME": home}, check=True)
        status = code.parent / "status"
        until(lambda: status.exists() and status.read_text())
        assert json.loads(pathlib.Path(out).read_text()) == [[out, *words], value]


def test_the_rendering_says_all_that_is_run(cloud, capfd):
    """Every gcloud command of a real run stands in the dry run's text."""
    made = job(cloud, "exit 0", ["ACTIVE"])
    shown = render(made, commit_of(made.target.code))
    assert not (cloud / "said").exists()
    controller, _ = control(made)
    assert controller.run() == 0
    script = start_script(made, commit_of(made.target.code))
    for line in (cloud / "said").read_text().splitlines():
        words = [w.replace(script, "SCRIPT") for w in json.loads(line)]
        if words[:2] == ["storage", "cp"]:
            words = ["code.tar.gz" if w.startswith("/") else w for w in words]
            if words[2] != "--no-clobber":
                continue  # the machines' own copy: a line of the script
        assert shlex.join(["gcloud", *words]) in shown


GOLDEN = """\
gcloud compute tpus queued-resources create run --zone=a-b1-a --project=my-project --node-id=run \
--accelerator-type=v5p-16 --runtime-version=v2-alpha-tpuv5 --spot --service-account=a@b.c"""


def test_golden(cloud):
    made = job(cloud, "x", [], dict(capacity="spot", service_account="a@b.c"))
    assert shlex.join(create_command(made, "a-b1-a")) == GOLDEN
