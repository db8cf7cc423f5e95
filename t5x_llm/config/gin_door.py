"""The gin door: gin files and flags in, one run function with frozen, checked arguments out.

Only dataclasses and run functions that ``register`` was given can be configured. Everything is
built when it is loaded, so that a mistake is a ``ConfigError`` before anything else happens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from t5x_llm.config.describe import to_dict
from t5x_llm.config.parse import Parsed, parse
from t5x_llm.config.resolve import Resolver
from t5x_llm.config.values import format_value
from t5x_llm.core.errors import ConfigError, nearest

_REGISTRY: dict[str, Callable[..., Any]] = {}
_FLAGS = ("gin_file", "gin_bindings", "gin_search_paths", "gin_allow_import")


def register(*objects: Callable[..., Any]) -> None:
    """Makes dataclasses and run functions configurable under their own names.

    Registering an object again changes nothing.

    Raises:
      ValueError: if another object has the name.
    """
    for obj in objects:
        known = _REGISTRY.setdefault(obj.__name__, obj)
        if known is not obj:
            raise ValueError(f"{obj!r} and {known!r} cannot both be configured as {obj.__name__}")


def registered() -> dict[str, Callable[..., Any]]:
    """Returns what ``register`` was given so far, by name."""
    return dict(_REGISTRY)


class Flags(NamedTuple):
    """The command line, taken apart: the first three and the last are arguments of ``load``."""

    gin_files: list[str]
    bindings: list[str]
    search_paths: list[str]
    rest: list[str]
    allow_imports: list[str]


def parse_flags(argv: Sequence[str]) -> Flags:
    """Takes the gin flags out of a command line (without the program's name).

    ``--gin_file=PATH``, ``--gin_bindings="Name.field = value"``, ``--gin.Name.field=value`` and
    ``--gin_allow_import=MODULE`` can be repeated; ``--gin_search_paths=DIR,DIR`` too. A value may
    also be the next argument.

    Raises:
      ConfigError: for a flag that begins with ``--gin`` and is none of these, or has no value.
    """
    flags = Flags([], [], [], [], [])
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        if argument == "--":
            flags.rest.extend([argument, *arguments])
            break
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or name.partition(".")[0] not in ("gin", *_FLAGS):
            if argument.startswith("--gin"):
                choices = [f"--{flag}" for flag in (*_FLAGS, "gin.")]
                raise ConfigError("command line", argument.split("=")[0], choices=choices)
            flags.rest.append(argument)
            continue
        if not equals:
            if not arguments:
                raise ConfigError(argument, None, "a value", f"Write {argument}=VALUE.")
            value = arguments.pop(0)
        if name.startswith("gin."):
            flags.bindings.append(f"{name[4:]} = {value}")
        elif name == "gin_file":
            flags.gin_files.append(value)
        elif name == "gin_bindings":
            flags.bindings.append(value)
        elif name == "gin_search_paths":
            flags.search_paths.extend(p for p in value.split(",") if p)
        elif name == "gin_allow_import":
            flags.allow_imports.append(value)
        else:
            raise ConfigError(argument, value, "--gin.NAME=VALUE")
    return flags


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A run function and its arguments, all built and checked.

    Attributes:
      run: the run function.
      arguments: its keyword arguments: frozen dataclasses and plain values.
      unused: bindings and macros that this run does not look at.
      unused_own: those of them that the command line, or a file named there, set itself: worth a
        warning, unlike what a recipe brings along.
    """

    run: Callable[..., Any]
    arguments: Mapping[str, Any]
    unused: tuple[str, ...]
    unused_own: tuple[str, ...]
    text: str = dataclasses.field(repr=False)

    def call(self, **overrides: Any) -> Any:
        """Calls the run function; ``overrides`` replace arguments."""
        return self.run(**{**self.arguments, **overrides})

    def operative_config_text(self) -> str:
        """A gin file that by itself gives the same arguments, defaults written out, no includes."""
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """The arguments as JSON-able data."""
        return to_dict(dict(self.arguments))


def load(
    run_fn_name: str,
    gin_files: Sequence[str] = (),
    bindings: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    allow_imports: Sequence[str] = (),
) -> Resolved:
    """Reads gin files, then bindings, and builds the arguments of a registered run function.

    A file is looked for beside the file that includes it, in the current directory, in the search
    paths, and in the directory that holds the package.

    Args:
      run_fn_name: name of the run function.
      gin_files: in order; a later binding replaces an earlier one.
      bindings: ``Name.field = value``, after the files.
      search_paths: further directories.
      allow_imports: modules, besides this package's, that a gin file may import.

    Raises:
      ConfigError: for any mistake, naming field, value, what is accepted, and the remedy.
    """
    parsed = parse(gin_files, bindings, search_paths, allow_imports)
    if run_fn_name not in _REGISTRY:
        raise ConfigError("run function", run_fn_name, choices=_REGISTRY)
    resolver = Resolver(_REGISTRY, parsed)
    resolver.check()
    _check_macros_are_used(parsed)
    arguments = resolver.arguments(run_fn_name, ())
    for name, spec in resolver.signatures[run_fn_name].items():
        arguments.setdefault(name, spec.default)
    unused = [b.key for k, b in parsed.bindings.items() if k not in resolver.used]
    own = [b.key for k, b in parsed.bindings.items() if k not in resolver.used and k in parsed.own]
    unused += [b.key for name, b in parsed.macros.items() if name not in resolver.used_macros]
    return Resolved(
        run=_REGISTRY[run_fn_name],
        arguments=arguments,
        unused=tuple(sorted(unused)),
        unused_own=tuple(sorted(own)),
        text=_text(run_fn_name, resolver),
    )


def _check_macros_are_used(parsed: Parsed) -> None:
    """A macro set by the user's own file or flag that nothing asks for is a typo."""
    for name in sorted(parsed.own_macros - parsed.asked_macros):
        macro, asked = parsed.macros[name], sorted(parsed.asked_macros)
        near = nearest(name, asked)
        raise ConfigError(
            name,
            macro.value,
            f"a macro that some binding uses: {', '.join(asked) or 'there is none'}",
            (f"Did you mean {near!r}? " if near else "A field is written Name.field. ")
            + f"({macro.where})",
        )


def _text(run_fn_name: str, resolver: Resolver) -> str:
    """All that was built, macros first, the run function next, then classes by name and scope."""
    lines = [
        "# What this run used, defaults written out. By itself it reproduces the run:",
        "#   t5x-llm train --gin_file=THIS_FILE",
        "",
    ]
    imports = [f"import {module}" for module in resolver.parsed.imports]
    macros = [
        f"{name} = {format_value(resolver.parsed.macros[name].value, len(name) + 3)}"
        for name in sorted(resolver.used_macros)
    ]
    for block in (imports, macros):
        if block:
            lines += [*block, ""]
    order = sorted(resolver.written, key=lambda k: (k[1] != run_fn_name, k[1], k[0]))
    for scope, name in order:
        prefix = f"{scope}/" if scope else ""
        body = [
            line if line.startswith("#") else prefix + line
            for line in resolver.written[scope, name]
        ]
        if body:
            lines += [f"# {prefix}{name}", *body, ""]
    return "\n".join(lines)
