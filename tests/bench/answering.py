"""Answers of a process that takes one step for each line it is sent; see ``w1.Runner``."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable


def answer(begin: float, step: Callable[[], float]) -> None:
    """Takes a step for each line of stdin and prints its measurements as a line of JSON.

    Args:
      begin: ``time.perf_counter`` before the imports.
      step: takes a step, waits for all of it, and returns the loss.
    """
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = step()
        end = time.perf_counter()
        found = {
            "seconds": end - start,
            "since_start": end - begin,
            "loss": loss,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps(found), flush=True)
