"""Checkpoints: asynchronous, whole or absent, restored onto any mesh."""

from t5x_llm.checkpoint.checkpointer import CheckpointConfig, Checkpointer, abstract_on
from t5x_llm.checkpoint.compat import check_compatible, differences

__all__ = [
    "CheckpointConfig",
    "Checkpointer",
    "abstract_on",
    "check_compatible",
    "differences",
]
