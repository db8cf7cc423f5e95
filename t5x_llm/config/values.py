"""Values of a configuration: references and macros, writing them down, holding them to a type."""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import math
import types
import typing
from typing import Any


@dataclasses.dataclass(frozen=True)
class Reference:
    """``@scope/Name()``: an instance to be made when the field that holds it is filled."""

    scopes: tuple[str, ...]
    name: str
    called: bool = True

    def __repr__(self) -> str:
        return f"@{'/'.join((*self.scopes, self.name))}{'()' if self.called else ''}"


@dataclasses.dataclass(frozen=True)
class Macro:
    """``%NAME``: a value written elsewhere as ``NAME = value``."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


def walk(value: Any) -> collections.abc.Iterator[Reference | Macro]:
    """Every reference and macro inside ``value``."""
    if isinstance(value, (Reference, Macro)):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from walk(pair)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from walk(item)


def format_value(value: Any, indent: int = 0, width: int = 96) -> str:
    """``value`` as gin reads it back, long containers one item a line.

    Raises:
      ValueError: if gin has no way to write it.
    """
    flat = _flat(value)
    if indent + len(flat) <= width or not isinstance(value, (dict, list, tuple)) or not value:
        return flat
    inner = indent + 4
    pad = "\n" + " " * inner
    if isinstance(value, dict):
        items = [f"{_flat(k)}: {format_value(v, inner, width)}" for k, v in value.items()]
        return "{" + "".join(f"{pad}{item}," for item in items) + "}"
    items = [format_value(item, inner, width) for item in value]
    first, last = "[]" if isinstance(value, list) else "()"
    return first + "".join(f"{pad}{item}," for item in items) + last


def _flat(value: Any) -> str:
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    if type(value) is dict:
        return "{" + ", ".join(f"{_flat(k)}: {_flat(v)}" for k, v in value.items()) + "}"
    if type(value) is list:
        return "[" + ", ".join(map(_flat, value)) + "]"
    if type(value) is tuple:
        return "(" + ", ".join(map(_flat, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, (Reference, Macro)):
        return repr(value)
    if type(value) in (int, float, bool, str, bytes, types.NoneType) and value == value:
        text = repr(value)
        if ast.literal_eval(text) == value:
            return text
    raise ValueError(f"{value!r} cannot be written in gin")


class MismatchError(Exception):
    """A value that is not of the type asked for; its text says what was expected."""


_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a string",
    types.NoneType: "None",
    None: "None",
}


def words(hint: Any) -> str:
    """A type annotation in words for an error message."""
    if hint in _WORDS:
        return _WORDS[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words(arg) for arg in args)
    if origin is typing.Literal:
        return " or ".join(map(repr, args))
    if origin is typing.Annotated:
        return words(args[0])
    base = origin if isinstance(origin, type) else hint
    if base is tuple and args and args[-1] is Ellipsis:
        return f"a tuple, every item {words(args[0])}"
    if base is tuple and args:
        return f"a tuple ({', '.join(words(arg) for arg in args)})"
    if isinstance(base, type):
        article = "an" if base.__name__[0].lower() in "aeiou" else "a"
        plural = f", every item {words(args[0])}" if len(args) == 1 else ""
        return f"{article} {base.__name__}{plural}"
    return str(hint)


def conform(value: Any, hint: Any) -> Any:
    """``value`` as a field annotated ``hint`` takes it: lists become tuples, integers numbers.

    Annotations this function does not know accept everything.

    Raises:
      MismatchError: if it is of another type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return conform(value, args[0])
    if origin in (typing.Union, types.UnionType):
        for arg in args:
            try:
                return conform(value, arg)
            except MismatchError:
                continue
        raise MismatchError(words(hint))
    if origin is typing.Literal:
        ok = any(value == arg and type(value) is type(arg) for arg in args)
    elif hint in (int, float, bool, str, None, types.NoneType):
        return _conform_scalar(value, hint)
    elif (origin or hint) in (tuple, list, collections.abc.Sequence):
        return _conform_sequence(value, hint, origin or hint, args)
    elif (origin or hint) in (dict, collections.abc.Mapping):
        if not isinstance(value, dict):
            raise MismatchError(words(hint))
        key, item = args if len(args) == 2 else (Any, Any)
        return {conform(k, key): conform(v, item) for k, v in value.items()}
    elif isinstance(hint, type) and hint is not Any:
        try:
            ok = isinstance(value, hint)
        except TypeError:
            ok = True
    else:
        ok = True
    if not ok:
        raise MismatchError(words(hint))
    return value


def _conform_scalar(value: Any, hint: Any) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = types.NoneType if hint is None else hint
    if not isinstance(value, wanted) or (hint is not bool and isinstance(value, bool)):
        raise MismatchError(words(hint))
    return value


def _conform_sequence(value: Any, hint: Any, kind: Any, args: tuple[Any, ...]) -> Any:
    if not isinstance(value, (list, tuple)):
        raise MismatchError(words(hint))
    if kind is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise MismatchError(words(hint))
        return tuple(conform(v, arg) for v, arg in zip(value, args, strict=True))
    item = args[0] if args else Any
    try:
        items = [conform(v, item) for v in value]
    except MismatchError:
        raise MismatchError(words(hint)) from None
    return items if kind is list else tuple(items)
