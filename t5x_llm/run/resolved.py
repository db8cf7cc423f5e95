"""A run's configuration together with the gin text that reproduces it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence

from t5x_llm.config import Flags, Resolved
from t5x_llm.config.values import Macro, Reference, format_value
from t5x_llm.core.errors import ConfigError
from t5x_llm.run.config import OPERATIVE_CONFIG, Run, load_run
from t5x_llm.run.load import is_run

_REFERENCE = re.compile(r"@((?:[\w.]+/)*)([A-Za-z_][\w.]*)\(\)")
_MACRO = re.compile(r"%([A-Za-z_][\w./]*)")
Bindings = Mapping[str, object] | Sequence[str]


@dataclasses.dataclass(frozen=True)
class ResolvedRun:
    """A run's configuration, checked, with the gin text that reproduces it.

    Attributes:
      config: everything that decides what the run does.
      resolved: what gin made of files and bindings.
      flags: the files and bindings themselves.
    """

    config: Run
    resolved: Resolved = dataclasses.field(repr=False)
    flags: Flags = dataclasses.field(repr=False)

    @property
    def directory(self) -> str:
        """The directory the run writes to."""
        return self.config.directory

    @property
    def operative_config(self) -> str:
        """Gin text, defaults written out; saved with the run, alone it reproduces it."""
        return self.resolved.operative_config_text()

    def with_bindings(self, bindings: Bindings) -> ResolvedRun:
        """Returns the run of the same files with further bindings, which win over earlier ones.

        Raises:
          ConfigError: for any mistake in them.

        Example:
          short = run.with_bindings({"Loop.steps": 30, "Run.directory": "runs/short"})
        """
        more = [*self.flags.bindings, *binding_lines(bindings)]
        return resolve(self.flags._replace(bindings=more))


def resolve(flags: Flags) -> ResolvedRun:
    """Returns the run that gin flags describe; a run directory stands for its operative config.

    Raises:
      ConfigError: for any mistake in it, naming the field and the remedy.
    """
    files = [
        f"{name.rstrip('/')}/{OPERATIVE_CONFIG}" if is_run(name) else name
        for name in flags.gin_files
    ]
    flags = flags._replace(gin_files=files)
    return ResolvedRun(*load_run(flags), flags)


def resolve_files(
    gin_files: Sequence[str | os.PathLike[str]],
    bindings: Bindings,
    search_paths: Sequence[str | os.PathLike[str]],
    allow_imports: Sequence[str],
) -> ResolvedRun:
    """Returns the run of gin files, bindings after them; raises as ``resolve``."""
    files, places = ([os.fspath(path) for path in paths] for paths in (gin_files, search_paths))
    return resolve(Flags(files, binding_lines(bindings), places, [], list(allow_imports)))


def binding_lines(bindings: Bindings) -> list[str]:
    """Returns bindings as gin writes them, such as ``Loop.steps = 10``.

    Args:
      bindings: lines already, or values by name; in these a string such as ``"@en/Source()"`` or
        ``"%name"`` is a gin reference.

    Raises:
      ConfigError: a value that gin cannot write.
    """
    if isinstance(bindings, str):
        return [bindings]
    if not isinstance(bindings, Mapping):
        return list(bindings)
    lines = []
    for name, value in bindings.items():
        try:
            lines.append(f"{name} = {format_value(_with_references(value), width=1 << 30)}")
        except ValueError as e:
            expected = "numbers, strings, booleans, None, and tuples, lists and dicts of these"
            raise ConfigError(name, value, expected) from e
    return lines


def _with_references(value: object) -> object:
    """Returns a value with the references that its strings write."""
    if isinstance(value, str):
        if found := _REFERENCE.fullmatch(value):
            return Reference(tuple(found[1].split("/")[:-1]), found[2])
        return Macro(found[1]) if (found := _MACRO.fullmatch(value)) else value
    if type(value) is list:
        return [_with_references(held) for held in value]
    if type(value) is tuple:
        return tuple(_with_references(held) for held in value)
    if type(value) is dict:
        return {key: _with_references(held) for key, held in value.items()}
    return value
