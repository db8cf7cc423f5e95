"""W1: a training step on the CPU, ours and its peers' in turn.

    python tests/bench/w1.py [--peer_python=.venv-parity/bin/python] [--dtypes=bfloat16,float32]

LLaMA type, d 512, 8 layers, 8 heads, SwiGLU 1408, vocabulary 8192, untied; batch 8 x 512; AdamW,
global clip 1.0. The processes stay up and step in turn (A B A B), so that a noisy machine slows
both; the ratio is the median of the ratios of neighbouring steps, shown with its range. First
step: from before the imports to the end of the first step, each in a process of its own, without
and with a filled compilation cache. Peak memory: the process's largest resident set.

FLOP/s: 6 N a token, N with the head and without the embedding, plus causal attention
(6 T D a layer: two products of 2 T D forward, half of it hidden, three times that with the
backward pass); recomputation is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
MODEL = dict(vocab_size=8192, d_model=512, n_layers=8, n_heads=8, d_ff=1408)
ROWS, LENGTH = 8, 512


def flops_per_token() -> float:
    """By the convention above."""
    d, f, layers, v = MODEL["d_model"], MODEL["d_ff"], MODEL["n_layers"], MODEL["vocab_size"]
    n = layers * (4 * d * d + 3 * d * f + 2 * d) + d + d * v
    return 6 * n + layers * 6 * LENGTH * d


class Runner:
    """A process that takes one step for each line it is sent."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
        )

    def step(self) -> dict[str, float]:
        """Takes a step and returns its measurements."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def ours(dtype: str, remat: str, cache: str = "") -> Runner:
    """t5x_llm in this environment."""
    shape = [json.dumps(MODEL), str(ROWS), str(LENGTH)]
    return Runner([sys.executable, str(HERE / "w1_ours.py"), dtype, remat, *shape, cache])


def torch_peer(python: str, dtype: str, threads: int) -> Runner:
    """transformers + torch in the environment of ``python``."""
    shape = [json.dumps(MODEL), str(ROWS), str(LENGTH)]
    return Runner([python, str(HERE / "w1_peer_torch.py"), dtype, str(threads), *shape])


def spread(values: list[float], form: str = ".0f") -> str:
    """Median and range."""
    low, high = format(min(values), form), format(max(values), form)
    return f"{format(statistics.median(values), form)} ({low}-{high})"


def first_steps(dtype: str, remat: str) -> None:
    """Prints the time to the first step, cold and with a filled compilation cache."""
    cache = tempfile.mkdtemp(prefix="w1-cache-")
    try:
        for name in ("cold, cache being filled", "with the cache"):
            runner = ours(dtype, remat, cache)
            print(f"  first step {name}: {runner.step()['since_start']:.1f} s")
            runner.close()
    finally:
        shutil.rmtree(cache)


def compare(dtype: str, options: argparse.Namespace) -> None:
    """Prints one table for one dtype."""
    print(f"{dtype}, remat {options.remat}, {options.threads} threads, {options.rounds} rounds")
    if options.first_step:
        first_steps(dtype, options.remat)
    runners = {"t5x_llm": ours(dtype, options.remat)}
    if options.peer_python:
        runners["torch"] = torch_peer(options.peer_python, dtype, options.threads)
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
    for _ in range(options.rounds + options.warmup):
        for name, runner in runners.items():
            steps[name].append(runner.step())
    tokens = ROWS * LENGTH
    for name, runner in runners.items():
        timed = steps[name][options.warmup :]
        rates = [tokens / s["seconds"] for s in timed]
        gflops = [rate * flops_per_token() / 1e9 for rate in rates]
        peak = max(s["peak_bytes"] for s in timed) / 2**30
        print(
            f"  {name:8} {spread(rates)} tokens/s, {spread(gflops)} GFLOP/s, "
            f"peak {peak:.2f} GiB, first step {steps[name][0]['since_start']:.1f} s, "
            f"loss {timed[-1]['loss']:.3f}"
        )
        runner.close()
    if len(runners) == 2:
        pairs = zip(steps["torch"], steps["t5x_llm"], strict=True)
        ratios = [b["seconds"] / a["seconds"] for b, a in pairs][options.warmup :]
        peaks = [max(s["peak_bytes"] for s in steps[name]) for name in ("t5x_llm", "torch")]
        print(f"  speed over torch {spread(ratios, '.2f')}, memory {peaks[0] / peaks[1]:.2f} of it")


def main() -> None:
    """Parses flags and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("W1_PEER_PYTHON", ".venv-parity/bin/python")
    parser.add_argument("--peer_python", default=default, help="'' leaves torch out")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--remat", default="save_projections")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--first_step", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    print(f"{sys.version.split()[0]=}, {flops_per_token() / 1e6:.1f} MFLOP a token")
    for dtype in options.dtypes.split(","):
        compare(dtype, options)


if __name__ == "__main__":
    main()
