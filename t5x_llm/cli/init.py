"""The command ``t5x-llm init``: a commented gin file for text of one's own."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from t5x_llm.cli.arguments import plain_parser
from t5x_llm.cli.main import guard
from t5x_llm.core.errors import ConfigError
from t5x_llm.core.units import size

if TYPE_CHECKING:
    from t5x_llm.cli.init_file import Chosen
    from t5x_llm.data.inspecting import Inspected

DESCRIPTION = """Write a gin file, with comments, that trains on text of your own.

  t5x-llm init mine.gin --data 'texts/*.jsonl'
  t5x-llm init mine.gin --data 'en/*.txt' --data zh.jsonl --language zh
  t5x-llm init mine.gin --data 'texts/*.jsonl' --model configs/models/llama/llama2_7b.gin
  t5x-llm init mine.gin --data 'texts/*.jsonl' --from models/base

Each --data is one source: JSON lines (one object a line, with its text in a field) or text files
(one document a file). Without --data, the text shipped with this package. --model trains a preset
from scratch, --from continues a Hugging Face directory with its own tokenizer. What is written is
checked as a run is; the file is yours to change."""
DEFAULT_MODEL = "configs/models/llama/quickstart.gin"
SHIPPED_TEXT = (
    "data/quickstart/en_sotu.jsonl",
    "data/quickstart/zh_poetry.jsonl",
    "data/quickstart/zh_manpages.jsonl",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm init``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    parser = plain_parser("t5x-llm init", DESCRIPTION)
    add = parser.add_argument
    add("file", nargs="?", default="mine.gin", help="to write; mine.gin if left out")
    add("--data", nargs="+", action="append", help="files or globs of one source; repeatable")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", default=DEFAULT_MODEL, help=f"a preset; else {DEFAULT_MODEL}")
    model.add_argument("--from", dest="start_from", help="a Hugging Face directory to continue")
    add("--directory", help="of the run; runs/ and the file's name if left out")
    add("--language", choices=("en", "zh"), default="en", help="of the comments")
    return parser


def _main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)
    if os.path.exists(args.file):
        raise ConfigError(
            "file", args.file, "a file that is not there yet", "Choose another name, or move it."
        )
    from t5x_llm.cli.init_file import choose, write
    from t5x_llm.data.inspecting import inspect_files

    given = args.data or [[path] for path in SHIPPED_TEXT]
    names = source_names(given)
    sources = [inspect_files(*each) for each in zip(names, given, strict=True)]
    name = re.sub(r"\W+", "_", os.path.splitext(os.path.basename(args.file))[0], flags=re.A)
    directory = args.directory or f"runs/{name}"
    chosen = choose(name or "mine", directory, sources, args.model, args.start_from)
    write(args.file, chosen, args.language)
    print(_report(args.file, chosen))


def source_names(given: Sequence[Sequence[str]]) -> list[str]:
    """Returns a name for each source, from its first file or the directory that holds it."""
    names: list[str] = []
    for patterns in given:
        *folders, last = patterns[0].split("/")
        stem = last.split(".")[0]
        words = stem if re.search(r"\w", stem) else next(iter(folders[-1:]), "")
        name = re.sub(r"\W+", "_", words, flags=re.A).strip("_") or f"source_{len(names) + 1}"
        names.append(name if name not in names else f"{name}_{len(names) + 1}")
    return names


def _report(file: str, chosen: Chosen) -> str:
    def told(found: Inspected) -> str:
        count, source = len(found.files), found.source
        kind = f"jsonl, field {source.field!r}" if source.kind == "jsonl" else "text"
        written = f", {source.language}" if source.language else ""
        files = f"{count} file{'s'[: count != 1]}, {size(found.size)}"
        return f"  {source.name}: {files} ({kind}{written})"

    return "\n".join(
        [
            f"Wrote {file}, a run of {chosen.steps:,} steps on about {chosen.tokens:,} tokens:",
            *map(told, chosen.sources),
            "Next:",
            f"  t5x-llm train --gin_file={file} --dry_run   # the plan; nothing is trained",
            f"  t5x-llm train --gin_file={file}",
            f"  t5x-llm generate {chosen.directory} --prompt '...'",
        ]
    )
