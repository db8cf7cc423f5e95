"""No test reads the wall clock, nor sleeps but between two looks at a condition."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CLOCKS = {"time", "monotonic", "perf_counter", "process_time", "thread_time", "clock_gettime"}
CLOCKS |= {f"{name}_ns" for name in CLOCKS}
# The guards against hanging; what measures durations, and is no test.
ALLOWED = {"clocks.py", "durations.py", "test_no_clock.py"}


def faults(source, first=1):
    """Returns (line, what) for each reading of a clock or bare sleep, programs in strings too."""
    tree = ast.parse(source)
    polls = {
        id(node)
        for loop in ast.walk(tree)
        if isinstance(loop, ast.While) and not isinstance(loop.test, ast.Constant)
        for node in ast.walk(loop)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found.append((node.lineno, "from time import"))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, name = ast.unparse(node.func.value), node.func.attr
            if owner == "time" and name in CLOCKS:
                found.append((node.lineno, f"time.{name}"))
            if owner.endswith("datetime") and name in ("now", "utcnow", "today"):
                found.append((node.lineno, f"{owner}.{name}"))
            if owner == "time" and name == "sleep" and id(node) not in polls:
                found.append((node.lineno, "time.sleep"))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "time." in node.value:
            try:
                inner = faults(node.value)
            except SyntaxError:
                continue
            found += [(node.lineno + line - 1, what) for line, what in inner]
    return found


def test_no_test_reads_the_wall_clock():
    wrong = [
        f"{path.relative_to(TESTS)}:{line} {what}"
        for path in sorted(TESTS.rglob("*.py"))
        if "bench" not in path.parts and path.name not in ALLOWED
        for line, what in faults(path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "use tests/clocks.py:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import time\nbegin = time.monotonic()", 1),
        ("from time import perf_counter", 1),
        ("import datetime\ndatetime.datetime.now()", 1),
        ("time.sleep(1)", 1),
        ("while True:\n    time.sleep(1)", 1),
        ("while not done():\n    time.sleep(0.1)", 0),
        ("P = '''\nimport time\ntime.sleep(1)\n'''", 1),
        ("P = 'run; time.time of the day'", 0),
    ],
)
def test_what_counts_as_reading_one(source, count):
    assert len(faults(source)) == count
