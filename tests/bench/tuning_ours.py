"""Fine-tuning steps by t5x_llm. Run by tuning.py, one process for each measurement.

Reads one line for each step on stdin and answers with one JSON line.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time

from answering import answer


def main() -> None:
    """argv: directory of the model, full, lora or qlora, dtype, B, T, remat."""
    begin = time.perf_counter()
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import numpy as np

    from t5x_llm.config import parse_flags
    from t5x_llm.data.batch import Batch
    from t5x_llm.hf.import_ import family_of, read_config
    from t5x_llm.parallel import global_batch
    from t5x_llm.run import base
    from t5x_llm.run.assembled import assemble
    from t5x_llm.run.config import load_run
    from t5x_llm.run.start import imported
    from t5x_llm.train.ahead import Ahead
    from t5x_llm.train.state import state_from_params

    directory, method, dtype, rows, length, remat = sys.argv[1:]
    b, t = int(rows), int(length)
    family = family_of(read_config(directory))
    fields = {k: v for k, v in vars(family).items() if v is not None}
    name = type(family).__name__
    bindings = [f"{name}.{k} = {v!r}" for k, v in fields.items()]
    bindings += [
        f"Run.model = @{name}()", f"Run.directory = {tempfile.mkdtemp()!r}",
        f"Run.start_from = {directory!r}", f"Data.tokenizer = {directory!r}",
        "Data.store_dir = 'store'", "Data.mixture = @Mixture()", "Mixture.sources = (@Source(),)",
        "Source.name = 'text'", "Source.files = 'none.jsonl'", f"Policy.compute = {dtype!r}",
        f"Loop.batch_size = {b}", f"Loop.sequence_length = {t}", "Loop.steps = 100",
        "Schedule.name = 'constant'", "Schedule.peak = 1e-4", "Schedule.warmup_steps = 0",
        "Optimizer.weight_decay = 0.0", f"Run.remat = {remat!r}",
    ]  # fmt: skip
    if method != "full":
        storage = "nf4" if method == "qlora" else dtype
        bindings += [
            "Run.adapter = @LoRA()", "LoRA.rank = 16", "LoRA.alpha = 32.0",
            f"Run.base_storage = {storage!r}",
        ]  # fmt: skip
    run = load_run(parse_flags([f"--gin_bindings={x}" for x in bindings]))[0]
    made = assemble(run)
    ids = np.random.default_rng(0).integers(0, family.vocab_size, (b, t)).astype(np.int32)
    mask = np.ones((b, t), np.float32)
    mask[:, -1] = 0
    place = np.broadcast_to(np.arange(t, dtype=np.int32), (b, t)).copy()
    host = Batch(ids, np.roll(ids, -1, 1), place, np.ones_like(ids), mask, np.zeros(b, np.int32))
    batch = global_batch(
        lambda part: jax.tree.map(lambda x: x[part], host), b, made.placement.devices, made.rules
    )
    step = Ahead(made.make_step(guarded=False), made.state, batch)
    params = imported(made)
    if method == "full":
        state = state_from_params(params, made.task, made.tx, made.placement)
    else:
        state = base.begin(made, params)
    del params

    def one() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        loss = float(metrics["loss"])
        jax.block_until_ready(state)
        return loss

    answer(begin, one)


if __name__ == "__main__":
    main()
