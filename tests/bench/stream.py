"""Tokens a second that one core gets from the stream, near and far, against what W1 eats.

    python tests/bench/stream.py [STORE_DIR CATALOGUE [T ...]]

STORE_DIR and CATALOGUE as `t5x-llm prepare` left them; those of the quickstart by default.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

from t5x_llm.data.store import TokenStore
from t5x_llm.data.stream import Stream

W1_TOKENS_PER_SECOND = 1087  # the fastest peer of PERFORMANCE.md's W1 on two cores
POSITIONS = (0, 10**6, 10**9)


def measure(stream: Stream, position: int, rows: int, seconds: float = 2.0) -> list[float]:
    """Seconds of each batch, at consecutive positions."""
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        stream.batch(position + rows * len(times), rows)
        times.append(time.perf_counter() - begin)
    return times


def main() -> None:
    """Prints a line for each packing, T and position."""
    directory, name, *lengths = sys.argv[1:] or ("runs/data/quickstart", "quickstart")
    catalogue = Path(directory) / f"{name}.json"
    if not catalogue.exists():
        sys.exit(f"{catalogue} is not there: run `make quickstart`, or name another store.")
    with catalogue.open(encoding="utf-8") as file:
        sources = json.load(file)["sources"]
    stores = {s["name"]: TokenStore.open(f"{directory}/{s['store']}") for s in sources}
    weights = {s["name"]: s["rate"] for s in sources}
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for packing in ("concat", "whole"):
        for length in map(int, lengths or ["512"]):
            begin = time.perf_counter()
            stream = Stream(stores, weights, length, packing=packing)
            opened = time.perf_counter() - begin
            for position in POSITIONS:
                times = measure(stream, position, rows=16)
                rate = 16 * length / statistics.median(times)
                print(
                    f"{packing} T={length} at {position:>13,}: {rate / 1e6:6.2f} M tokens/s, "
                    f"batch of 16 in {statistics.median(times) * 1e3:.2f} ms "
                    f"({min(times) * 1e3:.2f}-{max(times) * 1e3:.2f}), "
                    f"{rate / W1_TOKENS_PER_SECOND:,.0f}x W1; opened in {opened:.2f} s"
                )


if __name__ == "__main__":
    main()
