"""Prepares a run's data in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from t5x_llm.core.errors import DataError
from t5x_llm.data.sources import Data
from t5x_llm.run.config import Run


def prepare_in_subprocess(run: Run, operative_config: str, process_index: int = 0) -> None:
    """Runs ``t5x-llm prepare``, which does nothing where the stores are those of the inputs.

    A process of its own, since building imports TensorFlow and seqio, and training must not pay
    for them in time and memory. Where there is a store but none of its inputs (a pod that was
    given the store alone), the store is taken as it is. Of several processes of a run each calls
    this: those that share a directory wait for the one that builds.
    """
    if inputs_are_elsewhere(run.data):
        return
    flags = ["--quick", f"--process_index={process_index}"]
    run_preparation(operative_config, "t5x_llm.cli.prepare", flags, quiet=process_index > 0)


def run_preparation(
    operative_config: str, module: str, flags: Sequence[str], quiet: bool = False
) -> None:
    """Runs a module that prepares data in a process of its own; see ``prepare_in_subprocess``.

    Args:
      operative_config: gin text of the run, which the module gets as a file.
      module: its name; its first argument is the file, as ``--gin_file=...``.
      flags: its further arguments.
      quiet: True drops what it prints.

    Raises:
      DataError: it failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "run.gin")
        with open(path, "w", encoding="utf-8") as file:
            file.write(operative_config)
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", module, f"--gin_file={path}", *flags]
        out = subprocess.DEVNULL if quiet else None  # one of them reports
        done = subprocess.run(command, env=environment, stdout=out, check=False)
    if done.returncode == 2:  # a mistake of the user's; the message is printed
        sys.exit(2)
    if done.returncode:
        raise DataError(f"Preparing the data ended with status {done.returncode}; see above.")


def inputs_are_elsewhere(data: Data) -> bool:
    """Returns True if there are stores of sources whose files are not here."""
    from t5x_llm.data.catalog import open_stores
    from t5x_llm.data.reading import find_files

    if data.mixture is None:
        return False
    for source in data.mixture.sources:
        if source.kind == "tfds":
            return False
        try:
            find_files(source)
        except DataError:
            continue
        return False
    try:
        open_stores(data)
    except DataError:
        return False
    return True
