"""The table of families against what its directory holds."""

import importlib
import pkgutil

import pytest

from t5x_llm.models import families
from t5x_llm.models.families import FAMILIES
from t5x_llm.models.family import Family

MODULES = [module.name for module in pkgutil.iter_modules(families.__path__)]


@pytest.mark.parametrize("module", MODULES)
def test_every_family_of_a_file_is_in_the_table(module):
    """Bases that several share, such as LlamaLike, set no ``hf_type``."""
    content = vars(importlib.import_module(f"{families.__name__}.{module}"))
    for value in content.values():
        ours = isinstance(value, type) and value.__module__.endswith(f".{module}")
        if ours and issubclass(value, Family) and "hf_type" in vars(value):
            assert FAMILIES[value.hf_type] is value


def test_the_table_says_what_the_families_say():
    assert {name: family.hf_type for name, family in FAMILIES.items()} == {n: n for n in FAMILIES}
    assert len(set(FAMILIES.values())) == len(FAMILIES)
