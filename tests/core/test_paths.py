"""Files that come with the package are found from any directory, behind those that are here."""

import os
import pathlib

import pytest

from t5x_llm.core import paths
from t5x_llm.core.errors import DataError
from t5x_llm.core.paths import SHIPPED, here_or_shipped, shipped_name
from t5x_llm.data.reading import find_files
from t5x_llm.data.sources import Source

TEXT = "data/quickstart/en_sotu.jsonl"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("pattern", [TEXT, "data/quickstart/zh_*.jsonl", "configs/models"])
def test_what_is_not_here_is_looked_for_in_the_package(pattern):
    assert here_or_shipped(pattern) == str(SHIPPED / pattern)
    assert here_or_shipped(f"./{pattern}") == str(SHIPPED / pattern)


@pytest.mark.parametrize("pattern", [TEXT, "data/quickstart/*.jsonl"])
def test_what_is_here_comes_first(pattern):
    pathlib.Path(TEXT).parent.mkdir(parents=True)
    pathlib.Path(TEXT).write_text("")
    assert here_or_shipped(pattern) == pattern


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "data",  # a directory of the user's, as a rule
        "data/quickstart/en_sotu.json",
        "data/**.jsonl",
        "data/../pyproject.toml",
        "pyproject.toml",
        "t5x_llm/__init__.py",
        "/data/quickstart/en_sotu.jsonl",
        "gs://data/quickstart/en_sotu.jsonl",
        f"other/{TEXT}",
        "data/\0",
    ],
)
def test_other_paths_stay_as_they_are(pattern):
    assert here_or_shipped(pattern) == pattern


def test_sources_read_shipped_text_under_a_name_that_stays():
    (path,) = find_files(Source("en", TEXT))
    assert os.path.isabs(path) and shipped_name(path) == TEXT
    with pytest.raises(DataError, match="Did you mean|there is no file"):
        find_files(Source("en", "data/quickstart/en_sotu.json"))


def test_names_of_other_files_are_their_paths():
    for path in ("texts/a.jsonl", str(SHIPPED / "pyproject.toml"), "/data/quickstart/a.jsonl"):
        assert shipped_name(path) == path


def test_a_wheel_has_the_files_inside_the_package(tmp_path):
    package = tmp_path / "site" / "t5x_llm"
    package.mkdir(parents=True)
    (tmp_path / "site" / "configs").mkdir()  # another package's
    assert paths._shipped_root(package) == tmp_path / "site"
    (package / "shipped").mkdir()
    assert paths._shipped_root(package) == package / "shipped"
