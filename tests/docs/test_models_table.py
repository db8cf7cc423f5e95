"""The tables of models are those of the presets; a family's file is no longer than it may be."""

import models_table
import pytest

from t5x_llm.models.families import FAMILIES


@pytest.mark.parametrize("name", models_table.TEXTS)
def test_table(name):
    written = (models_table.ROOT / name).read_text(encoding="utf-8")
    fresh = models_table.table(models_table.TEXTS[name])
    assert written == fresh, "python tests/docs/models_table.py"


def test_families_are_small():
    for family in FAMILIES.values():
        path = models_table.ROOT / (family.__module__.replace(".", "/") + ".py")
        assert len(path.read_text().splitlines()) <= 300, path
