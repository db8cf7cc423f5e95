"""The command ``t5x-llm plan``: the train step compiled for a slice that is not here."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from t5x_llm.cli.arguments import gin_parser
from t5x_llm.cli.main import guard
from t5x_llm.config import parse_flags

if TYPE_CHECKING:
    from t5x_llm.core.slices import Slice
    from t5x_llm.plan.compile import Plan
    from t5x_llm.plan.gpus import Cluster
    from t5x_llm.plan.report import Work
    from t5x_llm.run.config import Run

DESCRIPTION = """Compile the train step of a run for a described TPU slice, on this CPU.

  t5x-llm plan --gin_file=RECIPE.gin --slice=v5p-128
  t5x-llm plan --gin_file=RECIPE.gin --slice=v5e-256 --search --tokens=2e12 --price=1.2
  t5x-llm plan --gin_file=RECIPE.gin --slice=h100-64
  t5x-llm plan --gin_file=RECIPE.gin --slice=a100-8 --tuning
  t5x-llm plan --gin_file=RECIPE.gin --slice=here

The step is the one that training runs, compiled by libtpu: memory is the compiler's, time is
estimated from its schedule. --search also tries other meshes, microbatches and remat choices, and
recommends the fastest that fits. --tuning compares, by arithmetic, the memory of full tuning, LoRA,
QLoRA and serving on the same machines. For GPUs all is reckoned, and nothing compiled. 'here'
compiles for the devices of this machine and keeps the step: training finds it in the compilation
cache.

Ends with status 0 where the step fits, 1 where it does not, 2 for a mistake."""

DOES_NOT_FIT = 1


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm plan``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    parser = gin_parser("t5x-llm plan", DESCRIPTION)
    add = parser.add_argument
    add("--slice", required=True, help="such as v5p-128, h100-64, or here")
    add("--slices", type=int, default=1, help="how many, joined by the data-centre network")
    add("--tokens", type=float, help="of the run: adds days")
    add("--price", type=float, help="of a chip-hour: adds money")
    add("--search", action="store_true", help="try other meshes, microbatches and remat choices")
    add("--most", type=int, default=12, help="compilations of a search (default 12)")
    add("--tuning", action="store_true", help="memory of full tuning, LoRA, QLoRA and serving")
    add("--json", action="store_true", help="print JSON")
    return parser


def _main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv)
    args = build_parser().parse_args(flags.rest)
    check(args)
    if args.slice != "here":
        # The described devices are the only TPU; this machine's own are not asked.
        os.environ["JAX_PLATFORMS"] = "cpu"

    from t5x_llm.core.slices import Slice
    from t5x_llm.plan.planned import parse_machines, plan_run
    from t5x_llm.run.config import load_run
    from t5x_llm.run.precision import no_faster_on

    machine = parse_machines(args.slice, args.slices)
    run = load_run(flags)[0]
    if isinstance(machine, Slice) and (reason := no_faster_on(run.precision, machine.generation)):
        print(f"warning: {reason}", file=sys.stderr)
    if args.tuning:
        return _tuning(run, machine, args)
    if args.search:
        fits = _search(run, machine, args)
    else:
        planned = plan_run(run, machine, args.slices, args.tokens, args.price)
        print(json.dumps(planned.figures(), indent=1) if args.json else planned.text())
        fits = planned.fits
    if not fits:
        sys.exit(DOES_NOT_FIT)


def check(args: argparse.Namespace) -> None:
    """Raises ConfigError for numbers that are none, and for what does not go together."""
    from t5x_llm.core.errors import ConfigError, check_number

    check_number("--slices", args.slices, low=1, integer=True)
    check_number("--most", args.most, low=1, integer=True)
    for name in ("tokens", "price"):
        if (value := getattr(args, name)) is not None:
            check_number(f"--{name}", value, low=0)
    if args.slice == "here" and (args.search or args.tuning or args.slices > 1):
        flag = "--tuning" if args.tuning else "--search" if args.search else "--slices"
        raise ConfigError(flag, True, "a described slice: with --slice=here the mesh is as it is")


def _tuning(run: Run, machine: Slice | Cluster | None, args: argparse.Namespace) -> None:
    """Prints what the usual ways of tuning the model need."""
    from t5x_llm.core.slices import Slice
    from t5x_llm.plan.tuning import figures, table, tuning_memory

    assert machine is not None  # ``check`` refuses this machine
    per_chip = machine.facts.devices if isinstance(machine, Slice) else 1
    needs = tuning_memory(run, machine.chips * args.slices * per_chip)
    said = [json.dumps(figures(needs, machine), indent=1)]
    print("\n".join(said if args.json else table(run, needs, machine)))


def _search(run: Run, machine: Slice | Cluster | None, args: argparse.Namespace) -> bool:
    """Prints what a search finds; returns True if something fits."""
    from t5x_llm.plan.gpus import Cluster
    from t5x_llm.plan.planned import PlannedRun, plan_run
    from t5x_llm.plan.report import figures
    from t5x_llm.plan.search import bindings, candidates, reckoned, search, table

    def planned(other: Run) -> tuple[Plan, Work]:
        found = plan_run(other, machine, args.slices, args.tokens, args.price)
        return found.plan, found.work

    assert machine is not None  # ``check`` refuses a search of this machine
    found = candidates(run, machine, args.slices, args.tokens, args.price)
    if isinstance(machine, Cluster):
        done = reckoned(found)
    else:
        done = search(found, args.most, planned)
    compiled = [(c.plan, c.work) for c in done if c.plan is not None]
    if args.json:
        print(json.dumps([figures(*each) for each in compiled], indent=1))
        return any(plan.fits for plan, _ in compiled)
    print("\n".join(table(done)))
    best = done[0]
    assert best.plan is not None
    print("\nThe fastest that fits:" if best.plan.fits else "\nNone fits; the nearest:")
    print("\n".join(f"  {binding}" for binding in bindings(best)) + "\n")
    print(PlannedRun(best.run, machine, best.plan, best.work).text())
    return best.plan.fits
