"""Hooks that may be attached to a run."""

from t5x_llm.train.hooks.base import Hook, Results, StepRecord
from t5x_llm.train.hooks.checkpoint import Checkpoint, resume
from t5x_llm.train.hooks.journal import Journaling
from t5x_llm.train.hooks.lines import JsonLines, TensorBoard, Writer
from t5x_llm.train.hooks.metrics import Metrics, Throughput
from t5x_llm.train.hooks.profiler import Profiler
from t5x_llm.train.hooks.progress import Progress
from t5x_llm.train.hooks.trackers import tracked
from t5x_llm.train.hooks.tracking import MLflow, Tracking, WandB, check_tracking
from t5x_llm.train.jsonl import read_lines

__all__ = [
    "Checkpoint",
    "Hook",
    "Journaling",
    "JsonLines",
    "MLflow",
    "Metrics",
    "Profiler",
    "Progress",
    "Results",
    "StepRecord",
    "TensorBoard",
    "Throughput",
    "Tracking",
    "WandB",
    "Writer",
    "check_tracking",
    "read_lines",
    "resume",
    "tracked",
]
