"""Arguments that several commands share."""

from __future__ import annotations

import argparse

GIN_HELP = """gin flags:
  --gin_file=FILE           a gin file; repeatable, later files win
  --gin_bindings='A.b = 1'  a binding; repeatable
  --gin.A.b=1               the same, shorter
  --gin_search_paths=DIRS   further directories for files and includes, by commas
  --gin_allow_import=NAME   a module that gin files may import"""


def gin_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser for what ``parse_flags`` leaves over; its help tells of the gin flags too."""
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=GIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which model."""
    parser.add_argument("path", help="a run directory, a Hugging Face directory or a .gguf file")
    parser.add_argument(
        "--step", type=int, help="checkpoint of a run; the newest sound one if none"
    )


def add_unproved(parser: argparse.ArgumentParser) -> None:
    """The flag of every command that writes a model."""
    parser.add_argument(
        "--unproved",
        action="store_true",
        help="write the model even if nothing here can compute it to compare; the report says so",
    )


def data_parser(name: str, description: str) -> argparse.ArgumentParser:
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
