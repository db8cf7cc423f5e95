"""The tables of models are those of the presets; lengths of files may be a little old."""

import re

import models_table
import pytest

LINES = re.compile(r"(\d+)( lines| 行)")


@pytest.mark.parametrize("name", models_table.TEXTS)
def test_table(name):
    written = (models_table.ROOT / name).read_text(encoding="utf-8")
    fresh = models_table.table(models_table.TEXTS[name])
    assert LINES.sub("", written) == LINES.sub("", fresh), "python tests/docs/models_table.py"
    for old, new in zip(LINES.findall(written), LINES.findall(fresh), strict=True):
        assert abs(int(old[0]) - int(new[0])) <= 40, "python tests/docs/models_table.py"
        assert int(new[0]) <= 300  # what a family may take
