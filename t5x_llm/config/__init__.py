"""Gin at the door: parse, check, freeze, write down."""

from t5x_llm.config.describe import to_dict
from t5x_llm.config.gin_door import Flags, Resolved, load, parse_flags, register

__all__ = ["Flags", "Resolved", "load", "parse_flags", "register", "to_dict"]
