"""W1 by t5x_llm's own model and train step. Run by w1.py, one process for each measurement.

Reads one line for each step on stdin and answers with one JSON line.
"""

from __future__ import annotations

import json
import os
import sys
import time

from answering import answer


def main() -> None:
    """argv: dtype, remat, JSON of the model, B, T, compilation cache directory or ''."""
    begin = time.perf_counter()
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import numpy as np

    from t5x_llm.core.dtypes import Policy
    from t5x_llm.data.batch import Batch
    from t5x_llm.models.families.llama import Llama
    from t5x_llm.models.model import Model
    from t5x_llm.optim import Optimizer, Schedule
    from t5x_llm.parallel import MeshConfig, global_batch, make_mesh, strategy_rules
    from t5x_llm.train.ahead import Ahead
    from t5x_llm.train.state import abstract_state, init_state, place, with_shardings
    from t5x_llm.train.step import StepOptions, make_train_step
    from t5x_llm.train.task import LmTask

    dtype, remat, shape, rows, length, cache = sys.argv[1:]
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    b, t = int(rows), int(length)
    family = Llama(**json.loads(shape), max_length=t)
    model = Model(family.decoder(), Policy(compute=dtype), remat)
    mesh, rules = make_mesh(MeshConfig()), strategy_rules("fsdp")
    optimizer = Optimizer(schedule=Schedule(name="constant", peak=1e-3))
    task, tx = LmTask(model, t, ("text",)), optimizer.build(1000, model.logical_axes())
    placement = place(task, tx, mesh, rules)
    train_step = make_train_step(task, tx, placement, StepOptions(optimizer.schedule.build(1000)))
    tokens = np.random.default_rng(0).integers(0, family.vocab_size, (b, t + 1), dtype=np.int32)
    rows = Batch(
        tokens=tokens[:, :-1].copy(),
        targets=tokens[:, 1:].copy(),
        positions=np.broadcast_to(np.arange(t, dtype=np.int32), (b, t)).copy(),
        segment_ids=np.ones((b, t), np.int32),
        loss_mask=np.ones((b, t), np.float32),
        source=np.zeros(b, np.int32),
    )
    batch = global_batch(lambda part: jax.tree.map(lambda x: x[part], rows), b, mesh, rules)
    step = Ahead(train_step, with_shardings(abstract_state(task, tx), placement.state), batch)
    state = init_state(task, tx, jax.random.key(0), placement)

    def one() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        loss = float(metrics["loss"])
        jax.block_until_ready(state)
        return loss

    answer(begin, one)


if __name__ == "__main__":
    main()
