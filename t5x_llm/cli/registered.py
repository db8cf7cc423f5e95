"""Everything that a gin file can set, whichever command reads the file."""

from __future__ import annotations

import importlib

from t5x_llm.config import ClassEntry, class_entry, registered

# Modules that register what ``Run``, ``Clean`` and ``Job`` are made of.
_MODULES = ("t5x_llm.run.config", "t5x_llm.cli.data_clean", "t5x_llm.cli.submit")


def entries() -> dict[str, ClassEntry]:
    """Returns every registered class by name, the rooms together, in the order of registration."""
    for module in _MODULES:
        importlib.import_module(module)
    found = [class_entry(target) for target in registered().values()]
    rooms = list(dict.fromkeys(entry.room for entry in found))
    return {entry.name: entry for entry in sorted(found, key=lambda e: rooms.index(e.room))}
