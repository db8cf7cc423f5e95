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
    """Raises ConfigError unless ``value`` is a number within the bounds; ``above`` is strict."""
    kind = "an integer" if integer else "a number"
    bounds = [
        f"{word} {bound:g}"
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
            and value == value
        )
    if not ok:
        raise ConfigError(field, value, expected, remedy)
