"""Which documents a batch is made of, and where they came from."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from t5x_llm.cli.main import guard
from t5x_llm.cli.train import GIN_HELP
from t5x_llm.config import parse_flags
from t5x_llm.core.errors import ConfigError

DESCRIPTION = """Print the documents of a step's batch: file, line, tokens, text.

  t5x-llm data trace --gin_file=configs/recipes/quickstart.gin --step 100
  t5x-llm data trace runs/quickstart --step 100 --rows 0:4 --json

Of gin files it shows what a fresh run would read at that step; of a run directory what the run
read or will read, with its changes of mixture and the batches it skipped after loss spikes. The
stream is a function of the position, so nothing is replayed."""


class Opened(NamedTuple):
    """What is looked at: the ``cli.run.Run``, its opened data, and its stream where it stands."""

    run: Any
    data: Any
    stream: Any


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``t5x-llm data trace``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """With the arguments that say which run."""
    made = argparse.ArgumentParser(
        prog=f"t5x-llm data {name}",
        description=description,
        epilog=GIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("directory", nargs="?", help="a run directory, instead of gin flags")
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def opened(flags: Any, directory: str | None) -> Opened:
    """The run of gin flags, or of a run directory with its history and its skips.

    Raises:
      ConfigError: neither or both are given.
    """
    from t5x_llm.cli.assemble import open_run_stream
    from t5x_llm.cli.run import load_run, load_saved
    from t5x_llm.core.paths import as_path
    from t5x_llm.data.catalog import open_stores
    from t5x_llm.data.positions import DataState, merge_ranges
    from t5x_llm.train.journal import JOURNAL, decisions, read_journal
    from t5x_llm.train.recovery import mixture_history

    if directory is None:
        run = load_run(flags)[0]
        data = open_stores(run.data)
        stream = open_run_stream(run, data)
        return Opened(run, data, stream.at(DataState(skips=merge_ranges(run.loop.skips))))
    if flags.gin_files or flags.bindings:
        expected = "no gin flags beside it: a run directory has its own configuration"
        raise ConfigError("run directory", directory, expected)
    run = load_saved(directory)[0]
    data = open_stores(run.data)
    lines = read_journal(as_path(directory) / JOURNAL)
    skips = merge_ranges([*run.loop.skips, *(d.skip for d in decisions(lines))])
    state = DataState(history=mixture_history(lines), skips=skips)
    return Opened(run, data, open_run_stream(run, data).at(state))


def _main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv[1:])
    arguments = parser("trace", DESCRIPTION)
    arguments.add_argument("--step", type=int, required=True, help="of the batch, from 1")
    arguments.add_argument(
        "--rows", default=":", help="of the batch: 3, 0,5 or 0:8; all if not given"
    )
    arguments.add_argument("--chars", type=int, default=72, help="of text shown (default 72)")
    args = arguments.parse_args(flags.rest)
    if args.step < 1:
        raise ConfigError("--step", args.step, "at least 1, the first step")
    found = opened(flags, args.directory)
    loop = found.run.loop
    first = loop.examples_after(args.step - 1)
    size = loop.size_at(first)
    rows = chosen_rows(args.rows, size)
    traced = trace(found, first, rows, args.chars)
    if args.json:
        for row in traced:
            print(json.dumps(row, ensure_ascii=False))
        return
    print(f"step {args.step:,}: examples {first:,} to {first + size - 1:,}, {size} rows")
    for row in traced:
        print("\n".join(_told(row)))


def chosen_rows(text: str, size: int) -> list[int]:
    """The rows that ``--rows`` names.

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


def trace(found: Opened, first: int, rows: Sequence[int], chars: int) -> Iterator[dict[str, Any]]:
    """What each row of a batch holds.

    Args:
      found: the run.
      first: examples before the batch.
      rows: of the batch.
      chars: of text shown of each piece.
    """
    for row in rows:
        pieces = found.stream.documents(first + row)
        source = pieces[0].source if pieces else ""
        yield {
            "row": row,
            "example": first + row,
            "stream_position": found.stream.stream_position(first + row),
            "source": source,
            "pieces": [_piece(found, piece, chars) for piece in pieces],
        }


def _piece(found: Opened, piece: Any, chars: int) -> dict[str, Any]:
    split = found.data.stores[piece.source].train
    tokens = split.document(piece.document)
    shown = tokens[piece.start : min(piece.stop, piece.start + 4 * chars)]
    text = " ".join(found.data.tokenizer.decode(shown.tolist()).split())
    return {
        "file": piece.provenance.file,
        "line": piece.provenance.line,
        "column": piece.column,
        "tokens": [piece.start, piece.stop],
        "of": len(tokens),
        "epoch": piece.epoch,
        "text": text if len(text) <= chars else text[: max(chars - 3, 0)] + "...",
    }


def _told(row: dict[str, Any]) -> list[str]:
    epoch = row["pieces"][0]["epoch"] if row["pieces"] else 0
    lines = [f"row {row['row']}: {row['source']}, epoch {epoch + 1}"]
    for i, piece in enumerate(row["pieces"]):
        start, stop = piece["tokens"]
        last = i == len(row["pieces"]) - 1
        lines.append(
            f"{'└─' if last else '├─'} {piece['file']}:{piece['line']}, tokens {start:,} to "
            f"{stop:,} of {piece['of']:,}, column {piece['column']:,}"
        )
        lines.append(f"{'  ' if last else '│ '} {piece['text']}")
    return lines


if __name__ == "__main__":
    main(["trace", *sys.argv[1:]])
