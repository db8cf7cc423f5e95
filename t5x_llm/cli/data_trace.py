"""The command ``t5x-llm data trace``: documents of a batch, and where they came from."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from t5x_llm.cli.arguments import data_parser
from t5x_llm.cli.main import guard
from t5x_llm.config import parse_flags
from t5x_llm.core.errors import ConfigError

DESCRIPTION = """Print the documents of a step's batch: file, line, tokens, text.

  t5x-llm data trace --gin_file=configs/recipes/quickstart.gin --step 100
  t5x-llm data trace runs/quickstart --step 100 --rows 0:4 --json

Of gin files it shows what a fresh run would read at that step; of a run directory what the run
read or will read, with its changes of mixture and the batches it skipped after loss spikes. The
stream is a function of the position, so nothing is replayed."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm data trace``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser(command: str = "trace") -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    parser = data_parser(command, DESCRIPTION)
    parser.add_argument("--step", type=int, required=True, help="of the batch, from 1")
    parser.add_argument("--rows", default=":", help="of the batch: 3, 0,5 or 0:8; all if not given")
    parser.add_argument("--chars", type=int, default=72, help="of text shown (default 72)")
    return parser


def _main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv[1:])
    args = build_parser().parse_args(flags.rest)
    if args.step < 1:
        raise ConfigError("--step", args.step, "at least 1, the first step")
    from t5x_llm.run.trace import batch_of, opened, trace

    found = batch_of(opened(flags, args.directory), args.step)
    first, size = found.first, found.size
    traced = trace(found, chosen_rows(args.rows, size), args.chars)
    if args.json:
        for row in traced:
            print(json.dumps(row, ensure_ascii=False))
        return
    print(f"step {args.step:,}: examples {first:,} to {first + size - 1:,}, {size} rows")
    for row in traced:
        print("\n".join(_told(row)))


def chosen_rows(text: str, size: int) -> list[int]:
    """Returns the rows that ``--rows`` names.

    Raises:
      ConfigError: it is not a list or a range of rows of the batch.
    """
    try:
        if ":" in text:
            low, high = (int(part) if part else None for part in text.split(":"))
            rows = list(range(size))[low:high]
        else:
            rows = [int(part) for part in text.split(",")]
    except ValueError:
        rows = []
    if not rows or not all(0 <= row < size for row in rows):
        raise ConfigError("--rows", text, f"rows from 0 to {size - 1}, as 3, 0,5 or 0:8")
    return rows


def _told(row: dict[str, Any]) -> list[str]:
    epoch = row["pieces"][0]["epoch"] if row["pieces"] else 0
    lines = [f"row {row['row']}: {row['source']}, epoch {epoch + 1}"]
    for i, piece in enumerate(row["pieces"]):
        start, stop = piece["tokens"]
        last = i == len(row["pieces"]) - 1
        lines.append(
            f"{'└─' if last else '├─'} {piece['file']}:{piece['line']}, tokens {start:,} to "
            f"{stop:,} of {piece['of']:,}, column {piece['column']:,}{_weighed(piece)}"
        )
        lines.append(f"{'  ' if last else '│ '} {piece['text']}")
    return lines


def _weighed(piece: dict[str, Any]) -> str:
    """Returns how many tokens of a conversation are trained, in how many turns."""
    if "trained" not in piece:
        return ""
    turns, trained = piece["turns"], piece["trained"]
    weight = "" if piece["weight"] == trained else f", weight {piece['weight']:,g}"
    return f", {trained:,} trained in {turns} turn{'s'[: turns != 1]}{weight}"


if __name__ == "__main__":
    main(["trace", *sys.argv[1:]])
