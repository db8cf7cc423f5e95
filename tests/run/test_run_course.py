"""More steps of a run are a planned change only where its learning rates end otherwise."""

import pathlib

import pytest

from t5x_llm.config import parse_flags
from t5x_llm.run.config import load_run
from t5x_llm.run.planned import course

QUICKSTART = pathlib.Path(__file__).parents[2] / "configs" / "recipes" / "quickstart.gin"


def of(steps, *bindings):
    flags = [f"--gin_file={QUICKSTART}", f"--gin_search_paths={QUICKSTART.parents[2]}"]
    bindings = (f"Loop.steps={steps}", *bindings)
    return course(load_run(parse_flags([*flags, *(f"--gin.{b}" for b in bindings)]))[0])


@pytest.mark.parametrize(
    ("bindings", "alike"),
    [
        ((), False),  # linear, to the run's end
        (("Schedule.total_steps=2000",), True),
        (('Schedule.name="constant"',), True),
        (('Schedule.name="rsqrt"',), True),
        (('Schedule.name="wsd"',), False),
    ],
)
def test_more_steps_are_a_change_only_where_rates_end_otherwise(bindings, alike):
    assert (of(1200, *bindings) == of(1500, *bindings)) == alike


def test_another_peak_is_a_change():
    assert of(1200) != of(1200, "Schedule.peak=5e-3")
