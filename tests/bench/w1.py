"""W1: a training step on the CPU, ours and its peers' in turn.

    python tests/bench/w1.py [--peer_python=.venv-parity/bin/python] [--dtypes=bfloat16,float32]
        [--maxtext_python=.../bin/python]
    python tests/bench/w1.py --dtypes=bfloat16 --rounds=8             # about 3 minutes
    python tests/bench/w1.py --dtypes=float32 --rounds=4 --warmup=1   # about 5, on a slow CPU

By default bfloat16 is left out where the CPU has no arithmetic for it (AVX512-BF16, AMX; bf16 on
Arm): there torch multiplies it element by element, a step of W1 takes it minutes, and a ratio says
nothing.

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
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).parent
MODEL = dict(vocab_size=8192, d_model=512, n_layers=8, n_heads=8, d_ff=1408)
ROWS, LENGTH = 8, 512
SETTLE = 0.5  # s between turns: OpenMP's idle threads spin for 0.2 s after a step


def flops_per_token() -> float:
    """By the convention above."""
    d, f, layers, v = MODEL["d_model"], MODEL["d_ff"], MODEL["n_layers"], MODEL["vocab_size"]
    n = layers * (4 * d * d + 3 * d * f + 2 * d) + d + d * v
    return 6 * n + layers * 6 * LENGTH * d


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself, as far as Linux tells."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="ascii").split())
    except OSError:
        return True
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


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
        raise RuntimeError(f"{self.process.args!r} ended with {self.process.wait()}")

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class MaxText:
    """MaxText's own training loop on synthetic data, stopped by a signal between its steps.

    Needs an environment with ``maxtext[tpu]``; its settings are those of W1.
    """

    def __init__(self, python: str, dtype: str, remat: str):
        settings = dict(
            run_name="w1",
            base_output_directory=tempfile.mkdtemp(prefix="w1-maxtext-"),
            hardware="cpu",
            dataset_type="synthetic",
            steps=1000,
            enable_checkpointing="false",
            per_device_batch_size=ROWS,
            max_target_length=LENGTH,
            base_emb_dim=MODEL["d_model"],
            base_num_decoder_layers=MODEL["n_layers"],
            base_num_query_heads=MODEL["n_heads"],
            base_num_kv_heads=MODEL["n_heads"],
            head_dim=MODEL["d_model"] // MODEL["n_heads"],
            base_mlp_dim=MODEL["d_ff"],
            vocab_size=MODEL["vocab_size"],
            decoder_block="llama2",
            logits_via_embedding="false",
            dtype=dtype,
            attention="dot_product",
            remat_policy=remat,
            gradient_clipping_threshold=1.0,
            opt_type="adamw",
            enable_tensorboard="false",
            skip_jax_distributed_system="true",
            log_config="false",
        )
        config = Path(python).parents[1].glob("lib/python*/site-packages/maxtext/configs/base.yml")
        self.begin = time.perf_counter()
        self.directory = str(settings["base_output_directory"])
        self.process = subprocess.Popen(
            [python, "-m", "maxtext.trainers.pre_train.train", str(next(config))]
            + [f"{name}={value}" for name, value in settings.items()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "DECOUPLE_GCLOUD": "TRUE"},
        )

    def step(self) -> dict[str, float]:
        """Lets it run until it reports a step; its log runs a step behind, evenly."""
        assert self.process.stdout is not None
        start = time.perf_counter()
        self.process.send_signal(signal.SIGCONT)
        for line in self.process.stdout:
            found = re.search(r"completed step: \d+,.* loss: ([\d.]+), lm_loss", line)
            if found:
                self.process.send_signal(signal.SIGSTOP)
                end = time.perf_counter()
                return {
                    "seconds": end - start,
                    "since_start": end - self.begin,
                    "loss": float(found[1]),
                    "peak_bytes": self._peak(),
                }
        raise RuntimeError(f"MaxText ended with {self.process.wait()}")

    def _peak(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return 1024.0 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


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


def in_turn(
    runners: Mapping[str, Runner | MaxText], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Measurements of so many steps of each, taken in turn."""
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            time.sleep(SETTLE)
            steps[name].append(runner.step())
    return steps


def ratios(
    steps: Mapping[str, list[dict[str, float]]], warmup: int
) -> Iterator[tuple[str, str, float]]:
    """(name, our speed over its, our peak memory over its) of each but the first, which is ours."""
    (_, own), *others = steps.items()
    for name, theirs in others:
        speeds = [b["seconds"] / a["seconds"] for a, b in zip(own, theirs, strict=True)]
        memory = max(s["peak_bytes"] for s in own) / max(s["peak_bytes"] for s in theirs)
        yield name, spread(speeds[warmup:], ".2f"), memory


def compare(dtype: str, options: argparse.Namespace) -> None:
    """Prints one table for one dtype."""
    print(f"{dtype}, remat {options.remat}, {options.threads} threads, {options.rounds} rounds")
    if options.first_step:
        first_steps(dtype, options.remat)
    runners: dict[str, Runner | MaxText] = {"t5x_llm": ours(dtype, options.remat)}
    if options.peer_python:
        runners["torch"] = torch_peer(options.peer_python, dtype, options.threads)
    if options.maxtext_python:
        runners["MaxText"] = MaxText(options.maxtext_python, dtype, options.maxtext_remat)
    steps = in_turn(runners, options.rounds + options.warmup)
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
    for name, speed, memory in ratios(steps, options.warmup):
        print(f"  speed over {name} {speed}, memory {memory:.2f} of it")


def main() -> None:
    """Parses flags and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("W1_PEER_PYTHON", ".venv-parity/bin/python")
    parser.add_argument("--peer_python", default=default, help="'' leaves torch out")
    parser.add_argument(
        "--maxtext_python", default="", help="its own environment; '' leaves it out"
    )
    parser.add_argument("--maxtext_remat", default="minimal")
    dtypes = "bfloat16,float32" if has_bfloat16() else "float32"
    parser.add_argument("--dtypes", default=dtypes)
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
