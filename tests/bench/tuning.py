"""W2: fine-tuning steps of a model on the CPU, ours and those of TRL with peft, in turn.

    python tests/bench/tuning.py MODEL [--peer_python=.venv-parity/bin/python]
        [--methods=full,lora,qlora] [--dtype=bfloat16] [--rows=8] [--length=512] [--rounds=6]

MODEL is a Hugging Face directory, such as ``t5x-llm import`` makes of SmolLM2-135M. LoRA is of rank
16 on all linear layers of blocks. Rows are full, and every token of them is trained on. The peer
has no qlora on a CPU that is worth a comparison; ours stands alone there. The processes stay up and
step in turn; ratios are medians of neighbouring steps, shown with their range. Peak memory is the
process's largest resident set, the loading of the model included.
"""

from __future__ import annotations

import argparse
import os
import sys

from w1 import HERE, Runner, has_bfloat16, in_turn, ratios, spread


def ours(options: argparse.Namespace, method: str) -> Runner:
    """t5x_llm in this environment."""
    sizes = [options.dtype, str(options.rows), str(options.length), options.remat]
    return Runner([sys.executable, str(HERE / "tuning_ours.py"), options.model, method, *sizes])


def peer(options: argparse.Namespace, method: str) -> Runner:
    """TRL and peft in their environment."""
    sizes = [options.dtype, str(options.rows), str(options.length), str(options.threads)]
    script = str(HERE / "tuning_peer.py")
    return Runner([options.peer_python, script, options.model, method, *sizes])


def compare(options: argparse.Namespace, method: str) -> None:
    """Prints the rows of one method."""
    runners = {"t5x_llm": ours(options, method)}
    if options.peer_python and method != "qlora":
        runners["TRL + peft"] = peer(options, method)
    steps = in_turn(runners, options.rounds + options.warmup)
    tokens = options.rows * options.length
    for name, runner in runners.items():
        timed = steps[name][options.warmup :]
        rates = spread([tokens / s["seconds"] for s in timed])
        peak = max(s["peak_bytes"] for s in timed) / 2**30
        first, loss = steps[name][0], timed[-1]["loss"]
        print(
            f"| {method} | {name} | {rates} tokens/s | {peak:.2f} GiB | first step "
            f"{first['since_start']:.1f} s | loss {first['loss']:.4f} to {loss:.4f} |",
            flush=True,
        )
        runner.close()
    for name, speed, memory in ratios(steps, options.warmup):
        print(f"| {method} | over {name} | {speed} times its speed | {memory:.2f} of it |")


def main() -> None:
    """Parses flags and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a Hugging Face directory")
    parser.add_argument("--peer_python", default=".venv-parity/bin/python", help="'' for none")
    parser.add_argument("--methods", default="full,lora,qlora")
    parser.add_argument("--dtype", default="bfloat16" if has_bfloat16() else "float32")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--remat", default="save_projections")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--warmup", type=int, default=2)
    options = parser.parse_args()
    print(f"{options.dtype}, {options.rows} x {options.length}, {options.threads} threads")
    for method in options.methods.split(","):
        compare(options, method)


if __name__ == "__main__":
    main()
