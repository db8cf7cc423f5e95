"""Gin at the door: parse, check, freeze, write down."""

from t5x_llm.config.describe import to_dict
from t5x_llm.config.gin_door import Flags, Resolved, load, parse_flags, register, registered
from t5x_llm.config.listing import ClassEntry, FieldEntry, bindings_of, class_entry
from t5x_llm.config.resolve import parameters

__all__ = [
    "ClassEntry",
    "FieldEntry",
    "Flags",
    "Resolved",
    "bindings_of",
    "class_entry",
    "load",
    "parameters",
    "parse_flags",
    "register",
    "registered",
    "to_dict",
]
