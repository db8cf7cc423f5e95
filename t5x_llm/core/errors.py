"""Errors a user can act on: what was wrong, what was expected, what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class T5xLLMError(Exception):
    """Base of all errors raised on purpose; the command line prints them without a traceback.

    Attributes:
      exit_code: the process's status; launchers start again what ends with one of ``RESTARTABLE``.
    """

    exit_code = 2


class ConfigError(T5xLLMError):
    """A configuration value that cannot work, found before anything expensive starts.

    ``arguments`` are those that it was made with, in order.

    Args:
      field: dotted name as the user writes it in gin, e.g. ``Optimizer.name``.
      value: what was received.
      expected: what is accepted, in words.
      remedy: what to change.
      choices: accepted names; the nearest one is suggested.
    """

    def __init__(
        self,
        field: str,
        value: Any,
        expected: str = "",
        remedy: str = "",
        choices: Iterable[str] = (),
    ):
        self.field, self.value = field, value
        choices = sorted(map(str, choices))
        self.arguments = (field, value, expected, remedy, choices)
        if choices:
            expected = expected or f"one of {', '.join(choices)}"
        parts = [f"{field} = {value!r}: expected {expected}."]
        near = nearest(str(value), choices)
        if near:
            parts.append(f"Did you mean {near!r}?")
        if remedy:
            parts.append(remedy)
        super().__init__(" ".join(parts))

    def __reduce__(self) -> Any:
        """Pickles the error with all its arguments, so that one raised in a worker process arrives
        whole.
        """
        return type(self), self.arguments


class DataError(T5xLLMError):
    """Input text, a token store or a mixture that cannot be used."""


class CheckpointError(T5xLLMError):
    """A checkpoint that is missing, damaged, or of another model."""


class OutOfMemory(T5xLLMError):
    """Something that does not fit into the memory of the host or of a device."""


class ParityError(T5xLLMError):
    """A converted model whose numbers do not match the original's."""


class SpikeError(T5xLLMError):
    """A run that spikes again and again; rewinding further is no help."""


class Preempted(T5xLLMError):
    """The machine is taken away; the run was saved and goes on when it is started again."""

    exit_code = 75  # EX_TEMPFAIL


class PeerLost(T5xLLMError):
    """Another process of the run is gone; all must start again."""

    exit_code = 76


class Stuck(T5xLLMError):
    """No step was made for too long."""

    exit_code = 77


RESTARTABLE = (Preempted.exit_code, PeerLost.exit_code, Stuck.exit_code)


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The accepted name most like ``name``, or None if nothing is close."""
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


def check_choice(field: str, value: str, choices: Iterable[str]) -> None:
    """Raises ConfigError unless ``value`` is one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        raise ConfigError(field, value, choices=choices)


# Counts of steps, rows and sizes go to the device as int32; bytes and tokens are counted in int64.
INT32_MAX, INT64_MAX = 2**31 - 1, 2**63 - 1
# The largest number of float32, and the smallest that it keeps in full.
FLOAT32_MAX, FLOAT32_TINY = 3.4028234663852886e38, 1.1754943508222875e-38


def check_number(
    field: str,
    value: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    integer: bool = False,
    remedy: str = "",
) -> None:
    """Raises ConfigError unless ``value`` is a number within the bounds; ``above`` is strict.

    An integer without another bound must be one of int32, other numbers of float32: finite, and not
    so small that they would become 0.
    """
    kind = "an integer" if integer else "a finite number"
    bounds = [
        f"{word} {bound if isinstance(bound, int) else f'{bound:g}'}"
        for word, bound in (("at least", low), ("above", above), ("at most", high))
        if bound is not None
    ]
    expected = " ".join([kind, " and ".join(bounds)]).strip()
    ok = isinstance(value, int if integer else (int, float)) and not isinstance(value, bool)
    if ok:
        ok = (
            (low is None or value >= low)
            and (above is None or value > above)
            and (high is None or value <= high)
        )
    if not ok:
        raise ConfigError(field, value, expected, remedy)
    if integer and high is None and value > INT32_MAX:
        raise ConfigError(field, value, f"an integer of at most {INT32_MAX}", remedy)
    check_representable(field, value, remedy)


def check_count(field: str, value: Any, low: int) -> None:
    """Raises ConfigError unless ``value`` is a number of bytes or tokens, of ``low`` on."""
    check_number(field, value, low=low, high=INT64_MAX, integer=True)


def check_representable(field: str, value: Any, remedy: str = "") -> None:
    """Raises ConfigError for a number that the types of training cannot hold.

    Args:
      field: its name.
      value: a number, or a container of numbers; anything else passes.
      remedy: what to change.
    """
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        for item in value:
            check_representable(field, item, remedy)
    elif isinstance(value, int) and abs(value) > INT64_MAX:
        raise ConfigError(field, value, "an integer of at most 2^63 - 1", remedy)
    elif isinstance(value, float) and not abs(value) <= FLOAT32_MAX:
        raise ConfigError(field, value, f"a finite number of at most {FLOAT32_MAX:.1e}", remedy)
    elif isinstance(value, float) and 0 < abs(value) < FLOAT32_TINY:
        raise ConfigError(field, value, f"0, or a number from {FLOAT32_TINY:.1e} on", remedy)
