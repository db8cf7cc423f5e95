"""Tiny configs of every family, as config.json has them; a file of them for each kind of family.

Every file has ``CASES``: name -> config dict with ``model_type``. The golden values come from
transformers (make_golden.py), or, for families it does not have, from NumPy (hf/references).
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

CASES: dict[str, dict[str, Any]] = {}
for _module in pkgutil.iter_modules(__path__):
    CASES |= importlib.import_module(f"{__name__}.{_module.name}").CASES
