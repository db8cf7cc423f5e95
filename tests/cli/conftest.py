"""One tiny trained run for all tests of the command line."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import tiny


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A directory with tiny.gin, sources, ``store`` and the finished ``run``; what was printed."""
    directory = tmp_path_factory.mktemp("trained")
    tiny.corpus(directory)
    return directory, tiny.train(directory)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory with tiny.gin and its sources."""
    tiny.corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
