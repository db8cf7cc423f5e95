"""``t5x-llm launch`` around ``python train.py``: killed, preempted, and back again."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny

# Trains; the process of VICTIM sends itself SIGNAL once, when the metrics of step AT arrive.
KILL_ONCE = """
import os, pathlib, signal, sys
from t5x_llm.train.hooks import Metrics
before, mark = Metrics.on_step, pathlib.Path("killed")
def on_step(self, run, record):
    before(self, run, record)
    if record.step == AT and os.environ["JAX_PROCESS_ID"] == VICTIM and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGNAL)
Metrics.on_step = on_step
from t5x_llm.cli.train import main
main(sys.argv[1:])
"""


def launch(cwd, processes, *command, devices=2, **more):
    flags = (f"--processes={processes}", f"--devices={devices}", "--backoff=0.1", "--")
    return subprocess.run(
        [sys.executable, "-m", "t5x_llm.cli.main", "launch", *flags, sys.executable, *command],
        cwd=cwd,
        env=tiny.environment(),
        capture_output=True,
        text=True,
        timeout=400,
        **more,
    )


def journal(run):
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]


def same_parameters(one, other):
    wanted, got = tiny.arrays(one, 8), tiny.arrays(other, 8)
    assert wanted.keys() == got.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(array, got[name], err_msg=name)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A directory with stores, and a run of two processes that nothing disturbed."""
    directory = tmp_path_factory.mktemp("launched")
    tiny.corpus(directory)
    done = launch(directory, 2, str(tiny.ROOT / "train.py"), "--gin_file=tiny.gin")
    assert done.returncode == 0, done.stderr
    assert "[0] " in done.stderr and "starting all again" not in done.stderr
    return directory


def killed(directory, name, processes, victim, number="SIGKILL", at=5, devices=2):
    program = KILL_ONCE.replace("VICTIM", repr(str(victim))).replace("AT", str(at))
    program = program.replace("SIGNAL", number)
    (directory / "killed").unlink(missing_ok=True)
    flags = ("--gin_file=tiny.gin", f"--gin.Run.directory='{name}'")
    done = launch(directory, processes, "-c", program, *flags, devices=devices)
    assert done.returncode == 0, done.stderr
    assert (directory / "killed").exists()
    return done


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_takes_the_others_with_it_and_all_come_back(prepared, victim):
    name = f"killed{victim}"
    done = killed(prepared, name, 2, victim)
    assert f"process {victim} ended with SIGKILL; starting all again" in done.stderr
    assert "Continuing" in done.stderr
    if victim:
        assert "[0] PeerLost: " in done.stderr
    assert tiny.losses(prepared / name) == tiny.losses(prepared / "run")
    same_parameters(prepared / "run", prepared / name)
    starts = [line for line in journal(prepared / name) if line["event"] == "start"]
    assert len(starts) == 2 and starts[1]["resumed"] and starts[1]["position"] > 0


@pytest.mark.slow
def test_sigterm_of_one_saves_all_at_one_step(prepared):
    """Process 1 alone is told, and tells the others with a step, whose metrics come later."""
    done = killed(prepared, "preempted", 2, 1, "SIGTERM", at=1)
    assert "ended with status 75; starting all again" in done.stderr
    assert "[1] SIGTERM: saving" in done.stderr and "PeerLost" not in done.stderr
    lines = journal(prepared / "preempted")
    (left,) = [line["step"] for line in lines if line["event"] == "preemption"]
    assert f"Continuing preempted from step {left}." in done.stderr
    same_parameters(prepared / "run", prepared / "preempted")


@pytest.mark.slow
def test_four_processes(prepared):
    done = killed(prepared, "four", 4, 2, devices=1)
    assert done.stderr.count("PeerLost: Process 2 of the run is gone") == 3
    here, there = tiny.losses(prepared / "four"), tiny.losses(prepared / "run")
    assert here.keys() == there.keys()
    same_parameters(prepared / "run", prepared / "four")


@pytest.mark.extended
def test_a_mistake_in_the_configuration_is_not_tried_again(tmp_path):
    tiny.corpus(tmp_path)
    flags = ("--gin_file=tiny.gin", "--gin.Loop.batch_size=3")
    done = launch(tmp_path, 2, str(tiny.ROOT / "train.py"), *flags)
    assert done.returncode == 2 and "ConfigError: Loop.batch_size" in done.stderr
    assert "starting it again would not help" in done.stderr


def test_sigterm_before_training_ends_all(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "t5x_llm.cli.main", "launch", "--", "sleep", "60"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert b"starting" not in process.stdout.read()
