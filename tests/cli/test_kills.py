"""SIGKILL at random moments: what comes out is, to the bit, the run that was never killed."""

import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
from clocks import until

from t5x_llm.train.journal import read_journal


def start(cwd, flags):
    return subprocess.Popen(
        [sys.executable, str(tiny.ROOT / "train.py"), *flags],
        cwd=cwd,
        env=tiny.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def events(journal):
    """(event, step) of each line of a journal that may not be there yet."""
    return [(line["event"], line["step"]) for line in read_journal(journal)]


def killed(cwd, flags, seconds, training=False):
    """Starts a run and kills it after so long; True if it was still running.

    Args:
      training: the time counts from the start of training, not of the process.
    """
    journal = cwd / "run" / "journal.jsonl"
    before = len(starts(journal))
    process = start(cwd, flags)
    while training and process.poll() is None and len(starts(journal)) == before:
        time.sleep(0.02)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True


def starts(journal):
    """The steps at which training began, life after life."""
    return [line["step"] for line in read_journal(journal) if line["event"] == "start"]


def same(a, b, step):
    wanted, got = tiny.arrays(a, step), tiny.arrays(b, step)
    assert wanted.keys() == got.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(array, got[name], err_msg=name)


@pytest.mark.extended
def test_three_kills_change_nothing(trained, tmp_path):
    """Kills fall in the building of the store and in two saves; the last start finishes."""
    directory, _ = trained
    tiny.corpus(tmp_path)
    steps = "--gin.Loop.steps=8"
    journal = tmp_path / "run" / "journal.jsonl"
    moments = (
        lambda: any((tmp_path / "store").glob("*/*")),
        lambda: ("save", 2) in events(journal),
        lambda: ("save", 6) in events(journal),
    )
    for moment in moments:
        process = start(tmp_path, ["--gin_file=tiny.gin", steps])
        until(lambda: moment() or process.poll() is not None)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    tiny.train(tmp_path, steps)
    same(directory / "run", tmp_path / "run", 8)
    assert tiny.losses(directory / "run") == tiny.losses(tmp_path / "run")


QUICKSTART = """
include 'configs/recipes/quickstart.gin'
Optimizer.name = 'adamw'
Optimizer.update_rms = None
Schedule.peak = 6e-3
Run.directory = 'run'
Data.store_dir = 'store'
Loop.steps = 200
Loop.eval_every = 0
Samples.prompts = ()
Export.enabled = False
CheckpointConfig.every_steps = 5
Evaluation.limit = 1000
"""


@pytest.mark.slow
def test_forty_kills_of_the_quickstart_model_change_nothing(tmp_path):
    """Kills during the building of the store, compilation, steps, saves and restores."""
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    for where in ("killed", "whole"):
        (tmp_path / where / "quick.gin").write_text(QUICKSTART)
        (tmp_path / where / "data").symlink_to(tiny.ROOT / "data")
    flags = ["--gin_file=quick.gin", f"--gin_search_paths={tiny.ROOT}"]
    tiny.train(tmp_path / "whole", flags[1], gin="quick.gin")
    draw, count, lives = random.Random(1), 0, tmp_path / "killed" / "run" / "journal.jsonl"
    while count < 40:
        # One in three anywhere in a start; two while it trains, compilation included.
        anywhere = draw.random() < 0.33
        seconds = draw.uniform(1.0, 12.0) if anywhere else draw.uniform(0.1, 4.0)
        if not killed(tmp_path / "killed", flags, seconds, training=not anywhere):
            break
        count += 1
    tiny.train(tmp_path / "killed", flags[1], gin="quick.gin")
    same(tmp_path / "whole" / "run", tmp_path / "killed" / "run", 200)
    print(f"{count} kills; starts at steps {starts(lives)}")
    assert count == 40
    shutil.rmtree(tmp_path)
