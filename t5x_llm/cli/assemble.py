"""The pieces of a run, put together from its configuration; the only place that knows all rooms."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import jax
from jax.sharding import Mesh

from t5x_llm.checkpoint import Checkpointer
from t5x_llm.cli.run import Run
from t5x_llm.core.rng import named_key
from t5x_llm.data import DataState, Stream, open_stores
from t5x_llm.evaluate.hooks import Evaluation, Every
from t5x_llm.evaluate.perplexity import Evaluator, HeldOut
from t5x_llm.infer.hooks import SampleWriter
from t5x_llm.models.model import Model
from t5x_llm.parallel import Rules
from t5x_llm.text import Tokenizer, load_tokenizer
from t5x_llm.train import hooks as train_hooks
from t5x_llm.train import loop as train_loop
from t5x_llm.train.environment import environment
from t5x_llm.train.flops import Peak, flops_per_token, peak_of
from t5x_llm.train.state import (
    TrainState,
    abstract_state,
    init_state,
    state_from_params,
    state_shardings,
    with_shardings,
)


@dataclasses.dataclass(frozen=True)
class OpenData:
    """What training reads: the stream, held-out documents by source, the tokenizer."""

    stream: Stream
    held_out: list[HeldOut]
    tokenizer: Tokenizer
    facts: dict[str, Any]


def model_flops(run: Run, model: Model) -> float:
    """Training FLOPs of one token, by the convention of ``train/flops.py``."""
    counts = model.parameter_count()
    table = 0 if run.model.decoder().tied else counts["embed"]
    blocks = [b for g in run.model.decoder().groups for b in g.blocks * g.repeat]
    width = max(b.attention.n_heads * b.attention.head_dim for b in blocks)
    return flops_per_token(
        counts["total"] - table - counts.get("position_embed", 0),
        len(blocks),
        width,
        run.loop.sequence_length,
    )


def utilisation_peak(run: Run, mesh: Mesh) -> Peak | None:
    """The peak of the mesh's devices for the compute dtype."""
    return peak_of(list(mesh.devices.flat), run.precision.compute)
