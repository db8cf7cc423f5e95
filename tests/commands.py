"""A command run in this process, as its exit status and what it printed."""

import contextlib
import dataclasses
import io

from t5x_llm.cli import main


@dataclasses.dataclass(frozen=True)
class Done:
    """End of a command: its status and its two streams, as ``subprocess.run`` names them."""

    returncode: int
    stdout: str
    stderr: str


def run(*words):
    """Runs ``t5x-llm WORDS``; tests of the process itself, its exit and its imports start one."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.main(list(words))
        except SystemExit as left:
            status = left.code or 0
    return Done(status, out.getvalue(), err.getvalue())
