"""What a run directory holds is not lost: damaged checkpoints, a second training, thawed parts."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
import tiny
from clocks import until

from t5x_llm.core.holding import RECORD, Holder
from t5x_llm.train.journal import read_journal


@pytest.fixture
def finished(trained, tmp_path):
    """A copy of ``trained``'s directory, of the test's own."""
    shutil.copytree(trained[0], tmp_path / "finished")
    return tmp_path / "finished"


def contents(directory):
    """Every file below, by path, with its bytes."""
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()
    }


def damage(run, how):
    """Damages every checkpoint of a run in one way."""
    for path in (run / "checkpoints").iterdir():
        if how == "record":
            (path / "_CHECKPOINT_METADATA").unlink()
        elif how == "checksums":
            for part in path.glob("checksums.*"):
                part.unlink()
        elif how == "meta":
            (path / "meta" / "metadata").write_text("{")
        else:
            biggest = max(
                (p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
            )
            data = bytearray(biggest.read_bytes())
            data[len(data) // 2] ^= 1
            biggest.write_bytes(data)


@pytest.mark.parametrize("how", ["arrays", "checksums"])
def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_kept(finished, how):
    directory = finished
    damage(directory / "run", how)
    before = contents(directory / "run" / "checkpoints")
    for resume in ("auto", "always") if how == "arrays" else ("auto",):
        done = tiny.train(directory, f"--resume={resume}", "--gin.Loop.steps=10", check=False)
        assert done.returncode == 2
        assert "none of them is sound" in done.stderr and "--resume=anew" in done.stderr
        assert contents(directory / "run" / "checkpoints") == before


@pytest.mark.extended
@pytest.mark.parametrize("how", ["meta", "record"])
def test_told_to_begin_anew_it_moves_the_damaged_ones_aside(finished, how):
    directory = finished
    run = directory / "run"
    damage(run, how)
    before = contents(run / "checkpoints")
    done = tiny.train(directory, check=False)
    assert done.returncode == 2 and contents(run / "checkpoints") == before
    losses = tiny.losses(run)
    tiny.train(directory, "--resume=anew")
    assert contents(run / "checkpoints.damaged_0") == before
    assert tiny.losses(run) == losses and (run / "checkpoints" / "8").exists()
    events = [(x["event"], x.get("steps")) for x in read_journal(run / "journal.jsonl")]
    assert ("set_aside", [2, 4, 6, 8]) in events
    # It is no order to lose what is sound.
    assert "is finished" in tiny.train(directory, "--resume=anew").stderr


@pytest.mark.extended
def test_a_first_save_that_was_cut_off_is_no_checkpoint(finished, tmp_path):
    """Nothing was ever complete: the run begins, as after any kill."""
    directory = finished
    first = directory / "run" / "checkpoints" / "2"
    for name in ("_CHECKPOINT_METADATA", "checksums.0of1.json"):
        (first / name).unlink()
    half = tmp_path / "run" / "checkpoints" / "2"
    shutil.copytree(first, half)
    tiny.corpus(tmp_path)
    tiny.train(tmp_path)
    assert tiny.losses(tmp_path / "run") == tiny.losses(directory / "run")


def test_a_second_training_is_refused_and_takes_over_after_a_kill(finished):
    directory = finished
    shutil.rmtree(directory / "run")
    record = directory / "run" / RECORD
    command = [sys.executable, str(tiny.ROOT / "train.py"), "--gin_file=tiny.gin"]
    first = subprocess.Popen(
        [*command, "--gin.Loop.steps=1000000"], cwd=directory, env=tiny.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: record.exists() or first.poll() is not None)
        before = contents(directory / "run") if not record.exists() else None
        assert before is None, "the first one ended"
        done = tiny.train(directory, check=False)
        assert done.returncode == 2
        assert f"in use: training by process {first.pid} on " in done.stderr
        assert f"kill {first.pid}" in done.stderr
    finally:
        first.send_signal(signal.SIGKILL)
    until(lambda: Holder.parse(record.read_bytes()).gone)
    done = tiny.train(directory)
    assert f"its holder is gone: training by process {first.pid}" in done.stderr
    assert not record.exists()
    first.wait()


@pytest.mark.extended
def test_parameters_are_thawed_in_a_continued_run(finished):
    """The frozen part stays to the bit, then learns; what was trained keeps its moments."""
    import numpy as np

    directory = finished
    shutil.rmtree(directory / "run")
    tiny.train(directory, "--gin.Optimizer.trained=('embed',)", "--gin.Loop.steps=4")
    refused = tiny.train(directory, "--gin.Loop.steps=8", check=False)
    assert refused.returncode == 2 and "Optimizer.trained" in refused.stderr
    allowed = "--gin.CheckpointConfig.allow_changes=('Optimizer.trained',)"
    tiny.train(directory, "--gin.Loop.steps=8", allowed)
    frozen, thawed = (tiny.arrays(directory / "run", step) for step in (4, 8))
    inner = [name for name in frozen if "params" in name and "group_0" in name]
    changed = [not np.array_equal(frozen[name], thawed[name]) for name in inner]
    start = tiny.arrays(directory / "run", 2)
    assert all(np.array_equal(start[name], frozen[name]) for name in inner)
    assert inner and all(changed)
    losses = tiny.losses(directory / "run")
    assert losses[8] < losses[4]
    meta = json.loads((directory / "run/checkpoints/8/meta/metadata").read_text())
    assert meta["step"] == 8


@pytest.mark.extended
def test_muon_goes_on_to_the_bit(finished):
    """Eight steps equal four and, from their checkpoint, four more."""
    import numpy as np

    muon, run = "--gin.Optimizer.name='muon'", finished / "run"
    shutil.rmtree(run)
    tiny.train(finished, muon)
    wanted, losses = tiny.arrays(run, 8), tiny.losses(run)
    assert any("muon" in name for name in wanted)
    for step in (6, 8):
        shutil.rmtree(run / "checkpoints" / str(step))
    said = tiny.train(finished, muon).stderr
    assert "from step 4" in said
    got = tiny.arrays(run, 8)
    assert wanted.keys() == got.keys() and tiny.losses(run) == losses
    for name in wanted:
        np.testing.assert_array_equal(wanted[name], got[name], err_msg=name)
