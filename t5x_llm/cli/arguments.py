"""Argument parsers of the commands, and the arguments that several commands share."""

from __future__ import annotations

import argparse

# Flags that ``config.parse_flags`` takes out of a command line: name, help, and what completes its
# value: files, or nothing.
GIN_FLAGS: tuple[tuple[str, str, str | tuple[str, ...]], ...] = (
    ("--gin_file", "a gin file; repeatable, later files win", "files"),
    ("--gin_bindings", "a binding; repeatable", ()),
    ("--gin_search_paths", "further directories for files and includes, by commas", "files"),
    ("--gin_allow_import", "a module that gin files may import", ()),
)
GIN_HELP = """gin flags:
  --gin_file=FILE           a gin file; repeatable, later files win
  --gin_bindings='A.b = 1'  a binding; repeatable
  --gin.A.b=1               the same, shorter
  --gin_search_paths=DIRS   further directories for files and includes, by commas
  --gin_allow_import=NAME   a module that gin files may import"""


def plain_parser(
    prog: str, description: str, usage: str | None = None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Returns the parser of a command, without arguments yet; a flag must be spelt out in full."""
    return argparse.ArgumentParser(
        prog=prog,
        usage=usage,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def gin_parser(prog: str, description: str, usage: str | None = None) -> argparse.ArgumentParser:
    """Returns a parser for what ``parse_flags`` leaves over; its help lists the gin flags too."""
    return plain_parser(prog, description, usage, GIN_HELP)


def takes_gin_flags(parser: argparse.ArgumentParser) -> bool:
    """Returns True for a parser of ``gin_parser``."""
    return parser.epilog == GIN_HELP


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that name a model."""
    parser.add_argument("path", help="a run directory, a Hugging Face directory or a .gguf file")
    parser.add_argument(
        "--step", type=int, help="checkpoint of a run; the newest sound one if none"
    )


def add_adapter(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of commands that use a model."""
    parser.add_argument(
        "--adapter", metavar="DIR", help="a PEFT directory that a Hugging Face model is given"
    )


def add_unproved(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of every command that writes a model."""
    parser.add_argument(
        "--unproved",
        action="store_true",
        help="write the model even if nothing here can compute it to compare; the report says so",
    )


def add_ignore_field(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of every command that proves a model."""
    parser.add_argument(
        "--ignore_field",
        action="append",
        default=[],
        metavar="NAME",
        help="read config.json as if this field were absent; repeatable; a.b is field b in field a",
    )


def data_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Returns the parser of a command ``t5x-llm data``, with the arguments that name a run."""
    made = gin_parser(f"t5x-llm data {name}", description)
    made.add_argument("directory", nargs="?", help="a run directory, instead of gin flags")
    made.add_argument("--json", action="store_true", help="print JSON")
    return made
