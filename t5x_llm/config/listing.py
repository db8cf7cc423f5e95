"""Registered classes as a reader looks them up: fields, types, defaults, and what they are for."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable

from t5x_llm.config.resolve import UNSET, Parameter, parameters
from t5x_llm.config.values import format_value

_SECTION = re.compile(r"^(Attributes|Args):$")
_ENTRY = re.compile(r"^ {2}(\w+(?:, \w+)*): (.*)$")


@dataclasses.dataclass(frozen=True)
class FieldEntry:
    """One field of a registered class.

    Attributes:
      name: of the field alone.
      type: annotation, such as ``int | None``.
      default: as gin writes it; None if the field must be set.
      help: text of the class docstring, on one line; empty if it has none.
    """

    name: str
    type: str
    default: str | None
    help: str


@dataclasses.dataclass(frozen=True)
class ClassEntry:
    """One registered class.

    Attributes:
      name: as gin writes it.
      room: part of the package it belongs to, such as ``data``.
      summary: first sentence of its docstring.
      fields: in order.
    """

    name: str
    room: str
    summary: str
    fields: tuple[FieldEntry, ...]


def class_entry(target: Callable[..., object]) -> ClassEntry:
    """Returns the entry of a dataclass or a run function."""
    documented = field_texts(target)
    fields = [
        FieldEntry(name, type_text(spec.hint), default_text(spec), documented.get(name, ""))
        for name, spec in parameters(target).items()
    ]
    summary = (inspect.getdoc(target) or "").partition("\n\n")[0].replace("\n", " ")
    room = target.__module__.split(".")[1] if "." in target.__module__ else target.__module__
    return ClassEntry(target.__name__, room, summary, tuple(fields))


def field_texts(target: Callable[..., object]) -> dict[str, str]:
    """Returns what docstrings say of fields: the class's own, then those of its bases."""
    bases = inspect.getmro(target) if isinstance(target, type) else (target,)
    found: dict[str, str] = {}
    for base in bases:
        for name, text in _section(base.__doc__ or "").items():
            found.setdefault(name, text)
    return found


def _section(docstring: str) -> dict[str, str]:
    """Returns the entries of "Attributes:" or "Args:"; ``a, b: text`` is an entry for both."""
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in inspect.cleandoc(docstring).splitlines():
        if _SECTION.match(line):
            inside = True
        elif line and not line.startswith(" "):
            inside = False
        elif inside and (entry := _ENTRY.match(line)):
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif inside and line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def type_text(hint: object) -> str:
    """Returns an annotation as source code writes it, without module names."""
    if hint is Ellipsis:
        return "..."
    if hint is types.NoneType:
        return "None"
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_text(arg) for arg in args)
    if origin is typing.Annotated:
        return type_text(args[0])
    if origin is typing.Literal:
        return " | ".join(map(repr, args))
    name = getattr(origin or hint, "__name__", str(hint))
    return f"{name}[{', '.join(type_text(arg) for arg in args)}]" if args else name


def default_text(spec: Parameter) -> str | None:
    """Returns a default as gin writes it, None if there is none."""
    if spec.default is UNSET:
        return None
    if dataclasses.is_dataclass(spec.default):
        return f"@{type(spec.default).__name__}()"
    try:
        return format_value(spec.default, width=1 << 30)
    except ValueError:
        return repr(spec.default)


def bindings_of(value: object) -> list[str]:
    """Returns gin lines that give a dataclass its fields, those at their defaults left out.

    Dataclasses inside become references, with lines of their own.

    Raises:
      ValueError: a field that gin cannot write.
    """
    assert dataclasses.is_dataclass(value) and not isinstance(value, type)
    lines, inner = [], []
    name = type(value).__name__
    for field, spec in parameters(type(value)).items():
        held = getattr(value, field)
        if held == spec.default:
            continue
        if dataclasses.is_dataclass(held) and not isinstance(held, type):
            lines.append(f"{name}.{field} = @{type(held).__name__}()")
            inner += bindings_of(held)
        else:
            lines.append(f"{name}.{field} = {format_value(held, width=1 << 30)}")
    return [*lines, *inner]
