"""Tokenizer and token stores of a run, built before training starts."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from t5x_llm.cli.main import guard
from t5x_llm.cli.train import GIN_HELP
from t5x_llm.config import parse_flags
from t5x_llm.core.errors import DataError


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``t5x-llm prepare``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def _main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv)
    parser = argparse.ArgumentParser(
        prog="t5x-llm prepare",
        description="Trains the tokenizer if the run asks for one, and turns its texts into a "
        "token store. What is there already and unchanged is kept.",
        epilog=GIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--workers", type=int, default=None, help="processes; all cores if left out"
    )
    args = parser.parse_args(flags.rest)

    from t5x_llm.cli.run import load_run
    from t5x_llm.data.prepare import prepare

    run, _ = load_run(flags)
    prepare(run.data, workers=args.workers)


def prepare_in_subprocess(run: Any, operative_config: str) -> None:
    """Runs ``t5x-llm prepare`` for a run whose stores are not there, or not of these inputs.

    Preparation imports TensorFlow and seqio; training must not pay for that in time and memory.
    """
    from t5x_llm.data import is_prepared

    if is_prepared(run.data):
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "run.gin")
        with open(path, "w", encoding="utf-8") as file:
            file.write(operative_config)
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "t5x_llm.cli.prepare", f"--gin_file={path}"]
        done = subprocess.run(command, env=environment, check=False)
    if done.returncode == 2:  # a mistake of the user's; the message is printed
        sys.exit(2)
    if done.returncode:
        raise DataError(f"Preparing the data ended with status {done.returncode}; see above.")


if __name__ == "__main__":
    main()
