"""One tiny trained run for all tests of the command line."""

import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import tiny


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A directory with tiny.gin, sources, ``store`` and the finished ``run``; what was printed.

    One worker of a session trains, the others wait for it; each has a copy of its own.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    said = shared / "trained.json"
    with (shared / "trained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            (shared / "trained").mkdir()
            tiny.corpus(shared / "trained")
            done = tiny.train(shared / "trained")
            said.write_text(json.dumps([done.args, done.returncode, done.stdout, done.stderr]))
    directory = tmp_path_factory.mktemp("mine") / "trained"
    shutil.copytree(shared / "trained", directory)
    return directory, subprocess.CompletedProcess(*json.loads(said.read_text()))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory with tiny.gin and its sources."""
    tiny.corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
