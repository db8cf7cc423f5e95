"""One training at a time in a run directory; all processes of a training are one holder."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import jax
from etils import epath

from t5x_llm.checkpoint import agree
from t5x_llm.core.holding import Held, Hold, Holder
from t5x_llm.train.signals import say


@contextlib.contextmanager
def held(directory: epath.Path, distributed: bool) -> Iterator[None]:
    """Holds a run directory while the body runs; the first process holds it for all.

    A job of several processes waits for a silent holder on another machine to become stale: such
    jobs are started again on other machines when one of theirs is lost.

    Args:
      directory: the run directory; it exists.
      distributed: this is one of several processes, which all call this.

    Raises:
      Held: another training, which lives, holds it; in all processes.
    """
    with contextlib.ExitStack() as stack:
        refusal: str | None = None
        if not distributed or jax.process_index() == 0:
            try:
                stack.enter_context(
                    Hold(directory, "training", lost=_leave, patient=distributed, say=_note)
                )
            except Held as e:
                refusal = str(e)
        if distributed:
            refusal = agree.first_text(refusal)
        if refusal is not None:
            raise Held(refusal)
        yield


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _leave(holder: Holder | None) -> None:
    """Ends this process at once: whoever took the directory writes there now."""
    say(f"The run directory was taken over by {holder}. Leaving, with nothing more written.")
    os._exit(Held.exit_code)
