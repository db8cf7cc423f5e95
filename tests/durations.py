"""Durations of tests: ``--write-durations=FILE`` keeps CPU and wall seconds of each.

FILE is tab-separated: CPU seconds, wall seconds, test. CPU seconds are those of the process that
runs the test and of its finished children, from setup to teardown, so that a busy machine changes
them little. ``python tests/durations.py`` compares the kept file, ``tests/durations.tsv``, with the
budget of each room and fails where one is over; it measures nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

KEPT = Path(__file__).with_name("durations.tsv")
# CPU seconds of `make test`, room by room. Raise one only together with what it buys.
BUDGETS: dict[str, float] = {
    "checkpoint": 15,
    "cli": 104,
    "config": 6,
    "configs": 35,
    "core": 5,
    "data": 60,
    "docs": 5,
    "evaluate": 10,
    "hf": 35,
    "house": 5,
    "infer": 55,
    "launch": 20,
    "models": 60,
    "nn": 125,
    "objectives": 15,
    "optim": 20,
    "parallel": 45,
    "parity": 40,
    "plan": 20,
    "run": 10,
    "test_interpreter.py": 3,
    "test_no_clock.py": 3,
    "test_shipped_data.py": 3,
    "test_wheel.py": 6,
    "text": 15,
    "train": 125,
    "zoo": 90,
}


def room_of(test):
    """Returns the directory below tests/ of a test's id, or its file where it has none."""
    return test.split("::")[0].split("/")[1]


def by_room(rows):
    """Returns {room: [tests, CPU seconds, wall seconds]} of rows of the file."""
    found = defaultdict(lambda: [0, 0.0, 0.0])
    for cpu, wall, test in rows:
        room = found[room_of(test)]
        room[0] += 1
        room[1] += cpu
        room[2] += wall
    return dict(found)


def read(path=KEPT):
    """Returns rows (CPU seconds, wall seconds, test) of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    return [(float(cpu), float(wall), test) for cpu, wall, test in rows]


class Durations:
    """Plugin that measures every test of a run, and writes them at its end."""

    def __init__(self, config):
        self.config = config
        self.rows = []

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        cpu, wall = _cpu(), time.perf_counter()
        yield
        self.rows.append((_cpu() - cpu, time.perf_counter() - wall, item.nodeid))

    def pytest_sessionfinish(self):
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["durations"] = json.dumps(self.rows)
            return
        lines = [f"{cpu:.2f}\t{wall:.2f}\t{test}\n" for cpu, wall, test in sorted(self.rows)[::-1]]
        path = Path(self.config.getoption("write_durations"))
        path.write_text("".join(lines), encoding="utf-8")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        self.rows += json.loads(getattr(node, "workeroutput", {}).get("durations", "[]"))


def pytest_addoption(parser):
    parser.addoption("--write-durations", metavar="FILE", help="keep seconds of each test here")


def pytest_configure(config):
    if config.getoption("write_durations"):
        config.pluginmanager.register(Durations(config), "durations-recorder")


def _cpu():
    return sum(os.times()[:4])


def main():
    """Prints every room's cost beside its budget; the exit status is 1 where one is over."""
    over = False
    for room, (count, cpu, wall) in sorted(by_room(read()).items(), key=lambda r: -r[1][1]):
        budget = BUDGETS.get(room)
        mark = "" if budget is not None and cpu <= budget else "  over its budget"
        over |= bool(mark)
        print(f"{room:12} {count:5} tests {cpu:7.0f} s CPU of {budget} {wall:7.0f} s{mark}")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
