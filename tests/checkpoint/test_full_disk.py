"""Saves that cannot be written: told, nothing left in the way, and the next one works."""

import contextlib
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest

from t5x_llm.checkpoint import CheckpointConfig, Checkpointer
from t5x_llm.core.errors import CheckpointError

STATE = {"w": jax.random.normal(jax.random.key(0), (600, 600))}

LIMITED = """
import os, resource, sys
os.environ["JAX_PLATFORMS"] = "cpu"
import jax, jax.numpy as jnp
from t5x_llm.checkpoint import Checkpointer, CheckpointConfig
from t5x_llm.core.errors import CheckpointError
directory, asynchronous = sys.argv[1], sys.argv[2] == "async"
state = {"w": jax.random.normal(jax.random.key(0), (600, 600))}
keeper = Checkpointer(directory, CheckpointConfig(keep=1, asynchronous=asynchronous))
keeper.save(1, state, {"n": 1})
keeper.wait()
assert keeper.completed == 1
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    keeper.save(2, state, {"n": 2})
    keeper.wait()
    print("SAVED")
except CheckpointError as e:
    print("ERROR", e)
print("STEPS", keeper.steps(), keeper.completed, sorted(os.listdir(directory)))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
keeper.save(2, state, {"n": 2})
keeper.close()
print("AFTER", keeper.steps())
"""


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_save_that_cannot_be_written(tmp_path, mode):
    """A real limit of the system: no file over 200 kB, as if the disk were full."""
    script = tmp_path / "full.py"
    script.write_text(textwrap.dedent(LIMITED))
    run = subprocess.run(
        [sys.executable, script, tmp_path / "c", mode], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert "ERROR Saving the checkpoint of step 2" in run.stdout, run.stdout
    assert "step 1 is the last complete" in run.stdout
    assert "STEPS [1] 1 ['1']" in run.stdout
    assert "AFTER [2]" in run.stdout


@contextlib.contextmanager
def small_disk(path, size):
    """A file system of ``size`` bytes at ``path``."""
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True
    )
    if made.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize("free", [0, 300_000, 1_000_000])
def test_full_disk_in_the_background(tmp_path, free):
    """1.4 MB of state; room for nothing of it, for a part, for most."""
    with small_disk(tmp_path / "disk", 4_000_000) as disk:
        keeper = Checkpointer(disk / "c", CheckpointConfig(keep=3))
        keeper.save(1, STATE, {"n": 1})
        keeper.wait()
        room = 4_000_000 - sum(p.stat().st_size for p in disk.rglob("*") if p.is_file())
        (disk / "other").write_bytes(b"x" * max(room - free - 60_000, 0))
        with contextlib.suppress(OSError), (disk / "rest").open("wb", buffering=0) as rest:
            while free == 0:
                rest.write(b"x" * 512)
        error = None
        try:
            keeper.save(2, STATE, {"n": 2})
            keeper._join()
        except CheckpointError as e:
            error = e
        error = error or keeper.failure()
        assert isinstance(error, CheckpointError)
        assert "step 1 is the last complete" in str(error) and "Free space" in str(error)
        full = r"no space left on the disk: .* are free, and a checkpoint takes about 1\.37 MiB"
        assert re.search(full, str(error)), error
        assert keeper.failure() is None, "told once"
        assert keeper.completed == 1 and keeper.steps() == [1]
        assert [p.name for p in (disk / "c").iterdir()] == ["1"], "its room is given back"
        for path in (disk / "other", disk / "rest"):
            path.unlink(missing_ok=True)
        assert keeper.save(2, STATE, {"n": 2})
        keeper.wait()
        assert keeper.completed == 2 and keeper.newest_sound() == 2
        keeper.close()


def test_a_directory_that_comes_back_is_removed_once_more(tmp_path, monkeypatch):
    """As threads of a failed save make it while Orbax does; three times is no straggler."""
    from t5x_llm.checkpoint import checkpointer, saver

    monkeypatch.setattr(checkpointer, "_SETTLE_SECONDS", 0.0)
    start, left = saver.Saver.start, [2]

    def comes_back(self, step, path, state, meta):
        if left[0]:
            left[0] -= 1
            raise FileExistsError(17, "File exists", str(path))
        start(self, step, path, state, meta)

    monkeypatch.setattr(saver.Saver, "start", comes_back)
    keeper = Checkpointer(tmp_path, CheckpointConfig(keep=3, asynchronous=False))
    assert keeper.save(1, STATE, {}) and keeper.steps() == [1]
    left[0] = 3
    with pytest.raises(CheckpointError, match="step 2.*failed: FileExistsError"):
        keeper.save(2, STATE, {})
    keeper.close()


def broken(monkeypatch):
    from t5x_llm.checkpoint import checksums

    def write(directory, index, count):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checksums, "write", write)


def test_failure_waits_for_nothing_and_is_told_once(tmp_path, monkeypatch):
    keeper = Checkpointer(tmp_path, CheckpointConfig(keep=3))
    keeper.save(1, STATE, {})
    keeper.wait()
    with monkeypatch.context() as patch:
        broken(patch)
        keeper.save(2, STATE, {})
        keeper._join()
    # Not asked for before the next save: kept until it is, and no reason for that one to fail.
    assert keeper.save(3, STATE, {})
    keeper.wait()
    assert "step 2" in str(keeper.failure()) and keeper.failure() is None
    assert keeper.steps() == [1, 3]
    with monkeypatch.context() as patch:
        broken(patch)
        keeper.save(4, STATE, {})
        with pytest.raises(CheckpointError, match="step 4.*No space left"):
            keeper.wait()
    assert keeper.failure() is None
    keeper.close()


def test_failure_does_not_wait(tmp_path, monkeypatch):
    import threading

    from t5x_llm.checkpoint import checksums

    go, write = threading.Event(), checksums.write
    monkeypatch.setattr(checksums, "write", lambda *a: go.wait(60) and write(*a))
    keeper = Checkpointer(tmp_path)
    keeper.save(1, STATE, {})
    assert keeper.failure() is None and keeper.completed is None and keeper.steps() == []
    go.set()
    keeper.wait()
    assert keeper.completed == 1 and keeper.steps() == [1]
    keeper.close()


def test_nothing_is_removed_before_the_new_one_is_complete(tmp_path, monkeypatch):
    """keep=1: until the checksums of 2 are there, 1 is all there is."""
    keeper = Checkpointer(tmp_path, CheckpointConfig(keep=1))
    keeper.save(1, STATE, {})
    keeper.wait()
    with monkeypatch.context() as patch:
        broken(patch)
        keeper.save(2, STATE, {})
        with pytest.raises(CheckpointError):
            keeper.wait()
    assert keeper.steps() == [1]
    keeper.save(2, STATE, {})
    keeper.wait()
    assert keeper.steps() == [2]
    keeper.close()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be made"):
        Checkpointer(tmp_path / "file" / "c")


def test_a_directory_that_is_taken_away(tmp_path):
    """Unreadable is not empty: a run that took it for empty would begin anew."""
    keeper = Checkpointer(tmp_path / "c")
    (tmp_path / "c").rmdir()
    (tmp_path / "c").write_text("")
    with pytest.raises(CheckpointError, match="cannot be read: Not a directory"):
        keeper.save(1, {"x": jnp.zeros(3)}, {})
    (tmp_path / "c").unlink()
    keeper.save(1, {"x": jnp.zeros(3)}, {})
    keeper.wait()
    assert keeper.steps() == [1]
    keeper.close()
