"""The golden cases, as tests read them: no torch needed."""

from __future__ import annotations

import json
import pathlib
import types
from typing import Any

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"
CASES = ("llama_untied", "llama_tied", "gpt2")
LENGTH, STRIDE, VOCAB = 512, 4, 64
STEPS, BATCH, TRAIN_LENGTH = 50, 4, 32
ADAPTER_BASES, ADAPTER_TOKENS = ("llama_untied", "gpt2"), 20
RANKS = dict(shapes=((6, 4), (5, 5), (3, 7)), rank=6, target=2, steps=20, start=3, final=4, every=2)
ADAMW = dict(lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def prompt() -> np.ndarray:
    """The 512 tokens every golden file is about."""
    return np.random.default_rng(1).integers(0, VOCAB, LENGTH).astype(np.int32)


def training_batches() -> np.ndarray:
    """Tokens [STEPS, BATCH, TRAIN_LENGTH + 1]: noisy counting, which can be learned."""
    rng = np.random.default_rng(2)
    start = rng.integers(0, VOCAB, (STEPS, BATCH, 1))
    noise = rng.integers(0, 2, (STEPS, BATCH, TRAIN_LENGTH + 1))
    return ((start + np.cumsum(1 + noise, -1)) % VOCAB).astype(np.int32)


def golden(case: str) -> dict[str, np.ndarray]:
    """golden.npz of a case."""
    return dict(np.load(GOLDEN / case / "golden.npz"))


def hf_config(case: str) -> dict[str, Any]:
    """config.json of a case."""
    return json.loads((GOLDEN / case / "config.json").read_text())


def batch_of(rows: np.ndarray) -> Any:
    """What Model.loss reads, for rows [B, T + 1] of one document each."""
    shape = (rows.shape[0], rows.shape[1] - 1)
    return types.SimpleNamespace(
        tokens=rows[:, :-1],
        targets=rows[:, 1:],
        positions=np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
        segment_ids=np.ones(shape, np.int32),
        loss_mask=np.ones(shape, np.float32),
    )
