"""t5x_llm: from raw text to a trained, aligned, evaluated and exported language model.

The Python API is the module ``api``:

    from t5x_llm import api

    run = api.load_run("configs/recipes/quickstart.gin", bindings={"Loop.steps": 30})
    result = api.train(run)

It is imported when it is asked for, and JAX only when one of its functions is called. Its names
stand in that module alone, because ``t5x_llm.train``, ``evaluate`` and ``plan`` are rooms of the
package.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t5x_llm import api

__version__ = "0.1.0"
__all__ = ["__version__", "api"]


def __getattr__(name: str) -> ModuleType:
    if name == "api":
        return importlib.import_module("t5x_llm.api")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
