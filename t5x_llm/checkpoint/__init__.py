"""Checkpoints: asynchronous, whole or absent, checked when read, onto any mesh."""

from t5x_llm.checkpoint.checkpointer import Checkpointer, abstract_on
from t5x_llm.checkpoint.compat import check_compatible, differences
from t5x_llm.checkpoint.config import CheckpointConfig

__all__ = [
    "CheckpointConfig",
    "Checkpointer",
    "abstract_on",
    "check_compatible",
    "differences",
]
