"""Names and patterns by which a PEFT config picks modules."""

from __future__ import annotations

import collections
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from t5x_llm.core.errors import ConfigError

T = TypeVar("T")
_MOST_CHARACTERS, _MOST_REPEATS = 300, 3


def pattern_value(patterns: Mapping[str, T], module: str, default: T) -> T:
    """Value of the first pattern that matches a module's name or its end, as peft reads them."""
    for pattern, value in patterns.items():
        if compiled(rf"(.*\.)?({pattern})$").match(module):
            return value
    return default


def matches(targets: tuple[str, ...] | str, module: str) -> bool:
    """Returns whether names, each whole or an end, or a pattern, name a module."""
    if isinstance(targets, str):
        return compiled(targets).fullmatch(module) is not None
    return any(module == name or module.endswith(f".{name}") for name in targets)


_COMPILED: dict[str, re.Pattern[str]] = {}


def compiled(pattern: str) -> re.Pattern[str]:
    """Returns the compiled pattern of a file, if it is one that cannot take forever.

    Raises:
      ConfigError: it is none, or repeats a group, or repeats too often.
    """
    if pattern not in _COMPILED:
        repeats = len(re.findall(r"(?<!\\)[*+{]", pattern))
        grouped = re.search(r"\)[*+{]", pattern)
        if len(pattern) > _MOST_CHARACTERS or repeats > 1 + _MOST_REPEATS or grouped:
            raise ConfigError(
                "adapter_config.json", pattern[:80], "names, or patterns without nested repetition"
            )
        try:
            _COMPILED[pattern] = re.compile(pattern)
        except re.error as e:
            raise ConfigError("adapter_config.json", pattern[:80], f"a pattern ({e})") from e
    return _COMPILED[pattern]


def suffixes(chosen: Collection[str], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The shortest ends of names that name exactly the chosen ones.

    Args:
      chosen: names of modules.
      names: of all modules, the chosen ones among them.

    Returns:
      Each end, without a layer's number where it can be, to the chosen names that it names.
    """
    ends: dict[str, list[str]] = collections.defaultdict(list)
    for name in names:
        parts = name.split(".")
        for first in range(len(parts)):
            ends[".".join(parts[first:])].append(name)
    chosen = set(chosen)
    found: dict[str, tuple[str, ...]] = {}
    for name in sorted(chosen):
        if any(name in named for named in found.values()):
            continue
        parts = name.split(".")
        for first in reversed(range(len(parts))):
            end = ".".join(parts[first:])
            if chosen.issuperset(ends[end]):
                found[end] = tuple(ends[end])
                break
    return found


def patterns_of(values: Mapping[str, T], default: T, names: Iterable[str]) -> dict[str, T]:
    """Patterns that give modules other values than the default.

    Args:
      values: of each adapted module.
      default: what needs no pattern.
      names: of all modules.
    """
    every = list(names)
    found: dict[str, T] = {}
    for value in dict.fromkeys(values.values()):
        if value == default:
            continue
        chosen = [name for name, its in values.items() if its == value]
        unadapted = [name for name in every if name not in values]
        # An end may also name modules without an adapter.
        for end, named in suffixes([*chosen, *unadapted], every).items():
            if set(named) & set(chosen):
                found[re.escape(end)] = value
    return found


def common_value(values: Iterable[T]) -> T:
    """Returns the value that most have, the first of equals."""
    return collections.Counter(values).most_common(1)[0][0]
