"""The command ``t5x-llm data plan``: how much a run reads of each source."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import data_parser
from t5x_llm.cli.main import guard
from t5x_llm.config import parse_flags
from t5x_llm.run.trace import opened

DESCRIPTION = """Print tokens, share, epochs and repeats of each source, before a run starts.

  t5x-llm data plan --gin_file=configs/recipes/quickstart.gin
  t5x-llm data plan runs/quickstart

The data must be prepared (t5x-llm prepare). Budgets that end before the run does, or a source read
more often than Mixture.max_epochs, are errors here as they are in the run. Of a run directory the
plan follows the mixtures it really had."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm data plan``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser(command: str = "plan") -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    return data_parser(command, DESCRIPTION)


def _main(argv: Sequence[str]) -> None:
    from t5x_llm.data.data_plan import data_plan

    flags = parse_flags(argv[1:])
    args = build_parser().parse_args(flags.rest)
    found = opened(flags, args.directory)
    examples = found.read.examples_after(found.run.loop.steps)
    plan = data_plan(found.stream, examples, found.read.step_at)
    if not args.json:
        print(plan)
        return
    value = {
        "examples": plan.examples,
        "length": plan.length,
        "sources": {name: dataclasses.asdict(s) for name, s in plan.sources.items()},
        "schedule": [
            {"row": start, "weights": dict(weights), "why": why}
            for start, weights, why in plan.schedule
        ],
        "warnings": plan.warnings(),
    }
    print(json.dumps(value, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main(["plan", *sys.argv[1:]])
