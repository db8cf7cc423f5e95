"""Margins of comparisons: ``--margins=FILE`` writes observed over allowed for each call site.

FILE is tab-separated: margin, kind of comparison, file:line, test. A comparison above a third
passes here by luck of the machine: another one's kernels round otherwise. Comparisons that allow
nothing (``rtol=0, atol=0``) have no margin. Ordinary runs load none of this.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parent
ABOVE = 1 / 3
# Beyond this, a comparison that passed is one that must differ.
APART = 3.0
# A scalar held to more than this share of itself is compared with a published figure, and what it
# may differ by is no rounding.
PUBLISHED = 0.05
# Frames of these are passed over in the search for the line of the test.
HELPERS = {TESTS / name for name in ("margins.py", "close.py", "conftest.py")}


class Margins:
    """Plugin that keeps the largest margin of every call site of a run."""

    def __init__(self, config):
        self.config = config
        self.rows = {}

    def record(self, kind, observed, allowed):
        """Keeps ``observed / allowed`` for the line of the test that is running."""
        observed, allowed = float(observed), float(allowed)
        if allowed <= 0 or not np.isfinite(observed):
            return
        margin = observed / allowed
        site = _site()
        if margin >= self.rows.get((kind, site), (-1, ""))[0]:
            self.rows[kind, site] = (margin, os.environ.get("PYTEST_CURRENT_TEST", "").split()[0])

    @pytest.hookimpl
    def pytest_sessionfinish(self, session):
        if hasattr(self.config, "workeroutput"):
            rows = [[*key, *value] for key, value in self.rows.items()]
            self.config.workeroutput["margins"] = json.dumps(rows)
            return
        rows = sorted(((m, k, s, t) for (k, s), (m, t) in self.rows.items()), reverse=True)
        lines = [f"{m:.4g}\t{kind}\t{site}\t{test}\n" for m, kind, site, test in rows]
        Path(self.config.getoption("margins")).write_text("".join(lines), encoding="utf-8")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        rows = getattr(node, "workeroutput", {}).get("margins", "[]")
        for kind, site, margin, test in json.loads(rows):
            if margin >= self.rows.get((kind, site), (-1, ""))[0]:
                self.rows[kind, site] = (margin, test)

    def pytest_terminal_summary(self, terminalreporter):
        above = sorted(
            ((m, k, s, t) for (k, s), (m, t) in self.rows.items() if ABOVE < m < APART),
            reverse=True,
        )
        terminalreporter.section(f"{len(above)} of {len(self.rows)} comparisons above a third")
        for margin, kind, site, _ in above:
            terminalreporter.write_line(f"{margin:6.3f}  {kind:16} {site}")


def pytest_addoption(parser):
    parser.addoption("--margins", metavar="FILE", help="write observed over allowed here")


def pytest_configure(config):
    if not config.getoption("margins"):
        return
    plugin = Margins(config)
    config.pluginmanager.register(plugin, "margins-recorder")
    _wrap(plugin)


def _wrap(plugin):
    """Has every kind of comparison report to ``plugin``."""
    import close
    from _pytest.approx import ApproxScalar

    close.recorders.append(functools.partial(plugin.record, "assert_close"))
    exact = np.testing.assert_allclose

    @functools.wraps(exact)
    def assert_allclose(actual, desired, rtol=1e-7, atol=0, **more):
        exact(actual, desired, rtol=rtol, atol=atol, **more)
        plugin.record("assert_allclose", _worst(actual, desired, rtol, atol), 1.0)

    np.testing.assert_allclose = assert_allclose
    plain = np.allclose

    @functools.wraps(plain)
    def allclose(a, b, rtol=1e-5, atol=1e-8, **more):
        plugin.record("allclose", _worst(a, b, rtol, atol), 1.0)
        return plain(a, b, rtol=rtol, atol=atol, **more)

    np.allclose = allclose
    equal = ApproxScalar.__eq__

    def __eq__(self, actual):
        if isinstance(self.expected, float | np.floating) and np.isfinite(actual or 0):
            if self.tolerance < PUBLISHED * abs(self.expected):
                observed = abs(float(actual or 0) - float(self.expected))
                plugin.record("approx", observed, self.tolerance)
        return equal(self, actual)

    ApproxScalar.__eq__ = __eq__


def _worst(actual, desired, rtol, atol):
    """Returns the largest difference over what ``rtol`` and ``atol`` allow at its place."""
    actual, desired = (np.asarray(x).astype(np.float64) for x in (actual, desired))
    with np.errstate(all="ignore"):
        ratio = np.abs(actual - desired) / (atol + rtol * np.abs(desired))
    finite = ratio[np.isfinite(ratio)]
    return float(np.max(finite, initial=0.0))


def _site():
    """Returns file:line of the innermost frame that lies in tests and is no helper."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if TESTS in path.parents and path not in HELPERS:
            return f"{path.relative_to(TESTS.parent)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
