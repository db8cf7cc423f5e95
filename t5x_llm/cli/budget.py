"""The command ``t5x-llm budget``: tokens, FLOPs, days and money of training a model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import gin_parser
from t5x_llm.cli.main import guard
from t5x_llm.config import parse_flags
from t5x_llm.core.slices import parse_slice
from t5x_llm.plan.budget import Machine, Point, optimal, points

DESCRIPTION = """How many tokens a model wants, and what they cost.

  t5x-llm budget --parameters=7e9 --slice=v5p-128 --mfu=0.5 --price=4.2
  t5x-llm budget --gin_file=configs/recipes/quickstart.gin --unique_tokens=2e6

The model is a number of parameters (6 N FLOPs a token), or that of gin files (with attention, and
the parameters a token meets). Loss is Chinchilla's law as fitted by arXiv 2404.10102, with repeats
worth less by arXiv 2305.16264: good for comparing rows, not for foretelling a curve."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm budget``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    parser = gin_parser("t5x-llm budget", DESCRIPTION)
    add = parser.add_argument
    add("--parameters", type=float, help="N, such as 7e9")
    add("--tokens", type=float, help="a length of your own")
    add("--unique_tokens", type=float, help="tokens you have; reading more repeats them")
    add("--slice", help="such as v5p-128: adds days")
    add("--slices", type=int, default=1)
    add("--mfu", type=float, default=0.4, help="model FLOP utilisation (default 0.4)")
    add("--price", type=float, help="of a chip-hour: adds money")
    add("--json", action="store_true", help="print JSON")
    return parser


def _main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv)
    parser = build_parser()
    args = parser.parse_args(flags.rest)
    from_gin = bool(flags.gin_files or flags.bindings)
    if from_gin == (args.parameters is not None):
        parser.error("give either --parameters or gin files")
    if args.price is not None and args.slice is None:
        parser.error("--price needs --slice")
    if from_gin:
        from t5x_llm.run.assembled import token_flops
        from t5x_llm.run.config import load_run

        run = load_run(flags)[0]
        model = run.build_model()
        parameters = float(model.parameter_count()["total"])
        per_token = token_flops(run, model)
    else:
        parameters, per_token = args.parameters, 6 * args.parameters
    machine = None
    if args.slice is not None:
        machine = Machine(parse_slice("--slice", args.slice), args.slices, args.mfu, args.price)
    table = points(
        parameters, per_token, tokens=args.tokens, unique=args.unique_tokens, machine=machine
    )
    if args.json:
        print(json.dumps([dataclasses.asdict(point) for point in table], indent=1))
    else:
        print(_text(parameters, per_token, machine, table))


def _text(
    parameters: float, per_token: float, machine: Machine | None, table: Sequence[Point]
) -> str:
    lines = [f"{_short(parameters)} parameters, {per_token:.3g} FLOPs a token"]
    if machine is not None:
        facts = f"{machine.slice.facts.peak / 1e12:g} TFLOP/s bfloat16 peak each"
        lines.append(f"{machine.chips} chips of {facts}, MFU {machine.mfu:.0%}")
    head = f"{'':<18} {'tokens':>8} {'a param.':>8} {'FLOPs':>9} {'loss':>6}"
    epochs = any(p.epochs is not None for p in table)
    money = any(p.cost is not None for p in table)
    head += f" {'epochs':>7}" * epochs + f" {'days':>9}" * (machine is not None)
    lines += ["", head + f" {'cost':>12}" * money]
    for p in table:
        line = f"{p.name:<18} {_short(p.tokens):>8} {p.per_parameter:>8.3g} {p.flops:>9.2e}"
        line += f" {p.loss:>6.3f}"
        line += f" {p.epochs:>7.3g}" if p.epochs is not None else ""
        line += f" {p.days:>9.3g}" if p.days is not None else ""
        lines.append(line + (f" {p.cost:>12,.0f}" if p.cost is not None else ""))
    best = optimal(table[-1].flops)
    lines += [
        "",
        f"The compute of the last row gives the least loss with {_short(best[0])} parameters and "
        f"{_short(best[1])} tokens; a smaller model, trained longer, is cheaper to serve.",
    ]
    return "\n".join(lines)


def _short(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"
