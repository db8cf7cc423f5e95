"""The command ``t5x-llm grow``: pieces of another language for a tokenizer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from t5x_llm.cli.arguments import plain_parser
from t5x_llm.cli.main import guard

DESCRIPTION = """Add pieces of another language to a tokenizer; every old id keeps its meaning.

  t5x-llm grow models/base grown --new zh.jsonl --old en.jsonl
  t5x-llm grow tokenizer.model grown --new 'zh/*.jsonl' --add 16000

TOKENIZER is a SentencePiece model, a byte-level BPE tokenizer.json, or a directory with either; of
a model's directory, config.json says what new rows cost. Several numbers of pieces are measured on
held-out text, and the cheapest is taken unless --add says how many. OUT gets the grown tokenizer
with growth.json, growth.md and growth.png. Then give the model its rows:

  t5x-llm resize models/base models/grown --tokenizer grown --how subpieces"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm grow``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    from t5x_llm.text.grow import ORDERS

    parser = plain_parser("t5x-llm grow", DESCRIPTION)
    parser.add_argument("tokenizer", help="the old one: a file, or a directory")
    parser.add_argument("out", help="directory to write")
    parser.add_argument("--new", nargs="+", required=True, help="files of the new text: jsonl, txt")
    parser.add_argument("--old", nargs="+", default=[], help="files of the old, to compare")
    parser.add_argument("--field", default="text", help="of a jsonl line that holds the text")
    parser.add_argument("--parameters", type=int, help="of the model but its table and head")
    parser.add_argument("--width", type=int, help="of its table; these two where no model is there")
    parser.add_argument("--tied", action="store_true", help="its table and head are one")
    parser.add_argument("--add", type=int, help="pieces to add; the advised number if left out")
    parser.add_argument("--most", type=int, default=32_000, help="pieces measured at most")
    parser.add_argument("--order", choices=ORDERS, default="after", help="where new merges come")
    parser.add_argument("--ascii", action="store_true", help="allow ASCII letters in new pieces")
    parser.add_argument("--coverage", type=float, default=0.9995, help="of the text's characters")
    parser.add_argument("--sample_bytes", type=int, default=10_000_000, help="to learn from")
    parser.add_argument("--measure_bytes", type=int, default=1_000_000, help="to measure on")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)

    from t5x_llm.core.errors import ConfigError
    from t5x_llm.core.paths import check_writable
    from t5x_llm.text import load_tokenizer
    from t5x_llm.text.compression import Body, advised, compare, doublings, table, write_growth
    from t5x_llm.text.grow import Growing, learn

    how = Growing(
        *(max(args.most, args.add or 1), args.order, args.ascii, args.coverage),
        sample_bytes=args.sample_bytes,
        seed=args.seed,
    )
    base = load_tokenizer(args.tokenizer)
    body = _body(args.tokenizer)
    if args.width is not None or args.parameters is not None:
        body = Body(args.parameters, args.width, args.tied)
    check_writable("out", args.out)
    train, held_out = _texts(args.new, args.field, args.measure_bytes)
    old = _texts(args.old, args.field, args.measure_bytes)[1] if args.old else []
    growth = learn(base, train, how)
    if args.add and args.add > len(growth.pieces):
        raise ConfigError(
            *("--add", args.add, f"at most {len(growth.pieces):,} for this text"),
            "Give more text with --new, or add fewer.",
        )
    sizes = compare(growth, [*doublings(len(growth.pieces)), args.add or 0], held_out, old, body)
    chosen = next(s for s in sizes if s.added == args.add) if args.add else advised(sizes)
    facts: dict[str, Any] = {
        "tokenizer": args.tokenizer,
        "new text": ", ".join(args.new),
        "old text": ", ".join(args.old) or "none",
        "order": args.order,
    }
    write_growth(args.out, growth.grown(chosen.added), sizes, chosen, facts)
    print(table(sizes))
    why = "as asked" if args.add else "the fewest within 1% of the least cost"
    print(
        f"Wrote {args.out}: {base.vocab_size:,} -> {chosen.vocabulary:,} tokens ({why}); "
        f"report in {args.out}/growth.md."
    )


def _body(path: str) -> Any:
    """Returns the size of the model beside the tokenizer, None if there is none."""
    from t5x_llm.core.paths import as_path
    from t5x_llm.hf.import_ import family_of, read_config
    from t5x_llm.models.model import Model
    from t5x_llm.text.compression import Body

    if not (as_path(path) / "config.json").exists():
        return None
    model = Model(family_of(read_config(path)).decoder())
    counts, shapes = model.parameter_count(), model.abstract_params()
    if "embed" not in shapes:
        return None
    rows, width = shapes["embed"]["table"].shape
    tied = "head" not in shapes
    return Body(counts["total"] - rows * width * (1 if tied else 2), width, tied)


def _texts(files: Sequence[str], field: str, measured: int) -> tuple[list[str], list[str]]:
    """Returns documents to learn from, and ``measured`` bytes of others; chosen by hash."""
    from t5x_llm.core.errors import DataError
    from t5x_llm.data.formats import format_of
    from t5x_llm.data.reading import find_files, is_cut, plan_jobs, read, scan
    from t5x_llm.data.record import Record
    from t5x_llm.data.sources import Source

    train: list[str] = []
    held_out: list[tuple[bytes, str]] = []
    for number, file in enumerate(files):
        kind = "jsonl" if format_of(file).is_records else "text"
        source = Source(f"text_{number}", file, kind, field, "line" if kind == "text" else "file")
        scans = [scan(path, is_cut(source, path)) for path in find_files(source)]
        for job in plan_jobs(scans):
            for document in read(source, job):
                digest = Record(document.text, 0, 0).digest()
                if digest[0] < 26:
                    held_out.append((digest, document.text))
                else:
                    train.append(document.text)
    if not held_out or not train:
        raise DataError(
            f"{', '.join(files)}: {len(train) + len(held_out)} documents; a tenth of them is "
            "measured on, so give some dozens."
        )
    kept, size = [], 0
    for _, text in sorted(held_out):
        kept.append(text)
        size += len(text.encode())
        if size >= measured:
            break
    return train, kept
