"""Other devices and other process counts in mid-run: the same rows in every global batch."""

import json
import subprocess
import sys

import pytest
import tiny

WATCH = """
import hashlib, json, os, sys
import numpy as np
from t5x_llm.train.loop import Trainer
before = Trainer.advance
def advance(self, step, fed, waited):
    import jax
    with open(f"rows-{os.getpid()}.jsonl", "a") as file:
        for shard in fed.batch.tokens.addressable_shards:
            start = shard.index[0].start or 0
            for i, row in enumerate(np.asarray(shard.data)):
                digest = hashlib.sha256(row.tobytes()).hexdigest()
                file.write(json.dumps([self.step + 1, start + i, digest]) + "\\n")
    before(self, step, fed, waited)
Trainer.advance = advance
from t5x_llm.cli.train import main
main(sys.argv[1:])
"""
FLAGS = ["--gin_file=tiny.gin", "--gin.Schedule.total_steps=8", "--gin.Policy.compute='float32'"]
FLAGS += ["--gin.Export.enabled=False", "--gin.Samples.prompts=()", "--gin.Loop.eval_every=0"]


def go(cwd, steps, devices, processes=1):
    """Continues to ``steps`` on so many processes with so many devices each."""
    flags = [*FLAGS, f"--gin.Loop.steps={steps}"]
    command = [sys.executable, "-c", WATCH, *flags]
    if processes > 1:
        launch = [sys.executable, "-m", "t5x_llm.cli.main", "launch", "--restarts=0"]
        command = [*launch, f"--processes={processes}", f"--devices={devices}", "--", *command]
    done = subprocess.run(
        command, cwd=cwd, env=tiny.environment(devices), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def rows(cwd):
    """{(step, row): hash} of all batches that any process had on its devices."""
    found = {}
    for path in cwd.glob("rows-*.jsonl"):
        for step, row, digest in map(json.loads, path.read_text().splitlines()):
            assert found.setdefault((step, row), digest) == digest
    return found


@pytest.mark.slow
def test_devices_and_processes_change_in_mid_run(tmp_path):
    """8, 4, 2, 8 devices; 1, 2, 4 processes: the batches of a run that never changed."""
    courses = {
        "whole": [(8, 8, 1)],
        "devices": [(2, 8, 1), (4, 4, 1), (6, 2, 1), (8, 8, 1)],
        "processes": [(2, 8, 1), (5, 4, 2), (8, 2, 4)],
    }
    for name, course in courses.items():
        (tmp_path / name).mkdir()
        tiny.corpus(tmp_path / name)
        for steps, devices, processes in course:
            go(tmp_path / name, steps, devices, processes)
    wanted = rows(tmp_path / "whole")
    assert len(wanted) == 8 * 8
    expected = tiny.losses(tmp_path / "whole" / "run")
    for name in ("devices", "processes"):
        assert rows(tmp_path / name) == wanted
        got = tiny.losses(tmp_path / name / "run")
        assert got.keys() == expected.keys()
        for step, loss in got.items():
            assert loss == pytest.approx(expected[step], rel=1e-3), (name, step)
