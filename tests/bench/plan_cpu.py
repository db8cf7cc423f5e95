"""The method of the plan's time, checked where it can be: on the CPU.

    .venv/bin/python tests/bench/plan_cpu.py [--repeat=5]

The train steps of five small decoders are compiled for one CPU core, read as a plan reads them
(``t5x_llm/plan/host.py``: loops by their trips, products and bytes against the measured rates), and
run. Rates are measured between the runs, and all time is CPU time of this process, pinned to one
core: what others do on the machine changes it little. Prints a table of Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import time

SHAPES = {
    "quickstart": dict(d=128, layers=4, heads=4, ff=352, vocabulary=8192, length=256, rows=4),
    "wide": dict(d=512, layers=2, heads=8, ff=1408, vocabulary=8192, length=256, rows=4),
    "deep": dict(d=256, layers=12, heads=4, ff=704, vocabulary=4096, length=128, rows=8),
    "long": dict(d=256, layers=2, heads=4, ff=704, vocabulary=4096, length=1024, rows=2),
    "many words": dict(d=256, layers=2, heads=4, ff=704, vocabulary=32768, length=128, rows=4),
}


def bindings(shape: dict[str, int], dtype: str) -> list[str]:
    """Gin lines of a shape."""
    names = {"d": "d_model", "layers": "n_layers", "heads": "n_heads", "ff": "d_ff"}
    lines = [f"Llama.{theirs} = {shape[ours]}" for ours, theirs in names.items()]
    lines += [f"Llama.n_kv_heads = {shape['heads']}", f"Llama.vocab_size = {shape['vocabulary']}"]
    lines += [f"TokenizerTraining.vocab_size = {shape['vocabulary']}"]
    lines += [f"Llama.max_length = {shape['length']}", f"Policy.compute = '{dtype}'"]
    lines += [f"Loop.batch_size = {shape['rows']}", f"Loop.sequence_length = {shape['length']}"]
    return [*lines, "Evaluation.batch_size = 8", "Samples.prompts = ()"]


def main() -> None:
    """Compiles, reads, runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=5, help="steps of each shape")
    parser.add_argument("--dtype", default="float32", help="compute dtype")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    import jax
    import numpy as np

    from t5x_llm.config import parse_flags
    from t5x_llm.parallel import make_mesh
    from t5x_llm.plan.hlo import parse
    from t5x_llm.plan.host import Rates, host_time, measured_rates
    from t5x_llm.run.assembled import assemble
    from t5x_llm.run.config import load_run
    from t5x_llm.train.state import init_state
    from t5x_llm.train.step import quiet_control

    print("| shape | planned s | measured s | planned / measured |\n|---|---|---|---|")
    errors = []
    for name, shape in SHAPES.items():
        flags = ["--gin_file=configs/recipes/quickstart.gin"]
        flags += [f"--gin_bindings={line}" for line in bindings(shape, args.dtype)]
        run = load_run(parse_flags(flags))[0]
        run = dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, fsdp=1))
        mesh = make_mesh(run.mesh, jax.devices()[:1])
        made = assemble(run, mesh)
        compiled = made.step.lower(*made.arguments).compile()
        module = parse(compiled.as_text())
        state = init_state(made.task, made.tx, jax.random.key(0), made.placement)
        batch = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), made.batch)
        batch = jax.device_put(batch, made.placement.batch)
        control = jax.device_put(quiet_control(mesh))
        taken, rates = [], []
        for i in range(args.repeat + 1):
            rates.append(measured_rates(args.dtype, time.process_time, seconds=0.0))
            begun = time.process_time()
            state, metrics = compiled(state, batch, control)
            jax.block_until_ready(metrics)
            if i:  # the first fills the caches
                taken.append(time.process_time() - begun)
        measured = statistics.median(taken)
        names = [f.name for f in dataclasses.fields(Rates)]
        middle = Rates(*(statistics.median(getattr(r, n) for r in rates) for n in names))
        planned = host_time(module, middle).total
        errors.append(planned / measured)
        print(
            f"| {name}: d {shape['d']}, {shape['layers']} layers, vocabulary "
            f"{shape['vocabulary']}, {shape['rows']} x {shape['length']} | {planned:.3f} | "
            f"{measured:.3f} ({min(taken):.3f}-{max(taken):.3f}) | {planned / measured:.2f} |",
            flush=True,
        )
    print(
        f"\nRates: {middle.flops / 1e9:.0f} GFLOP/s, {middle.bandwidth / 1e9:.1f} GB/s, "
        f"{middle.cached / 1e9:.1f} GB/s in a cache, one core."
    )
    worst = max(abs(e - 1) for e in errors)
    print(f"Median {statistics.median(errors):.2f}, worst error {worst:.0%}.")


if __name__ == "__main__":
    main()
