"""Optimizers and schedules, weight-decay masks, and the batch-size ramp."""

from t5x_llm.optim.masks import DECAY_MASKS, decay_mask, decay_summary
from t5x_llm.optim.optimizer import DEFAULTS, Optimizer, opt_state_shardings
from t5x_llm.optim.schedule import SCHEDULES, BatchRamp, Piecewise, Schedule

__all__ = [
    "DECAY_MASKS",
    "DEFAULTS",
    "SCHEDULES",
    "BatchRamp",
    "Optimizer",
    "Piecewise",
    "Schedule",
    "decay_mask",
    "decay_summary",
    "opt_state_shardings",
]
