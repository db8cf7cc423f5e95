"""Described slices: whose links close to rings, as MaxText 0.2.5's table of slices has it."""

import pytest

from t5x_llm.core.slices import parse_slice
from t5x_llm.plan.chips import wrapped


@pytest.mark.parametrize(
    ("name", "rings"),
    [
        ("v4-64", (False, False, False)),
        ("v4-128", (True, True, True)),
        ("v5p-256", (True, True, True)),
        ("v5e-64", (False, False, False)),
        ("v5e-128", (False, True, False)),
        ("v5e-256", (True, True, False)),
        ("v6e-256", (True, True, False)),
    ],
)
def test_rings(name, rings):
    assert wrapped(parse_slice("slice", name)) == rings
