"""What a run eats of each source."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import data_parser
from t5x_llm.cli.main import guard
from t5x_llm.config import parse_flags
from t5x_llm.run.trace import opened

DESCRIPTION = """Print tokens, share, epochs and repeats of each source, before a run starts.

  t5x-llm data diet --gin_file=configs/recipes/quickstart.gin
  t5x-llm data diet runs/quickstart

The data must be prepared (t5x-llm prepare). Budgets that end before the run does, or a source read
more often than Mixture.max_epochs, are errors here as they are in the run. Of a run directory the
diet follows the mixtures it really had."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``t5x-llm data diet``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def _main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv[1:])
    args = data_parser("diet", DESCRIPTION).parse_args(flags.rest)
    run, _, stream = opened(flags, args.directory)
    diet = stream.diet(run.loop.examples, run.loop.step_at)
    if not args.json:
        print(diet)
        return
    value = {
        "examples": diet.examples,
        "length": diet.length,
        "sources": {name: dataclasses.asdict(s) for name, s in diet.servings.items()},
        "course": [
            {"row": start, "weights": dict(weights), "why": why}
            for start, weights, why in diet.course
        ],
        "warnings": diet.warnings(),
    }
    print(json.dumps(value, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main(["diet", *sys.argv[1:]])
