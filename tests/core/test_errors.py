"""Messages that repair."""

import pickle

import pytest

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.core.paths import check_writable, write_atomic


def test_the_nearest_name_is_suggested():
    with pytest.raises(ConfigError) as e:
        check_choice("Optimizer.name", "adanw", ("adamw", "lion"))
    assert str(e.value) == (
        "Optimizer.name = 'adanw': expected one of adamw, lion. Did you mean 'adamw'?"
    )


def test_an_error_survives_a_process_pool():
    error = ConfigError("A.b", 3, "less", "Take less.", iter(("x",)))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("value", "bounds"),
    [(-1, {"low": 0}), (0, {"above": 0}), (2, {"high": 1}), (1.5, {"integer": True})]
    + [(True, {}), ("1", {}), (float("nan"), {}), (None, {})],
)
def test_numbers_out_of_bounds_are_refused(value, bounds):
    with pytest.raises(ConfigError, match=r"^A\.b = "):
        check_number("A.b", value, **bounds)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "half a surrogate pair \ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_directory_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"Run\.directory = .*Choose another directory"):
        check_writable("Run.directory", tmp_path / "file" / "run")
