"""The table of NumPy references against what its directory holds."""

import pkgutil

from t5x_llm.hf import references
from t5x_llm.hf.reference import numpy_reference
from t5x_llm.hf.references import MODULES
from t5x_llm.models.families import FAMILIES


def test_the_table_lists_every_module_but_the_shared_layers():
    modules = {module.name for module in pkgutil.iter_modules(references.__path__)}
    assert set(MODULES.values()) == modules - {"numpy_layers"}


def test_every_entry_is_a_family_and_has_its_function():
    for model_type, module in MODULES.items():
        assert model_type in FAMILIES
        assert numpy_reference(model_type).__name__ == module
