"""The command ``t5x-llm fields``: what a gin file can set."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence

from t5x_llm.cli.arguments import plain_parser
from t5x_llm.cli.main import guard
from t5x_llm.config import ClassEntry, FieldEntry
from t5x_llm.core.errors import ConfigError, nearest

DESCRIPTION = """List what a gin file can set: names, types, defaults and meaning.

  t5x-llm fields                  every class, by the part of the package it belongs to
  t5x-llm fields Loop             the fields of one class
  t5x-llm fields Loop.batch_size  one field

Set one as `Loop.batch_size = 8` in a gin file, or with --gin.Loop.batch_size=8."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm fields``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    parser = plain_parser("t5x-llm fields", DESCRIPTION)
    parser.add_argument("name", nargs="?", help="a class, or a class and one of its fields")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _main(argv: Sequence[str]) -> None:
    from t5x_llm.cli.registered import entries

    args = build_parser().parse_args(argv)
    chosen = select(entries(), args.name)
    if args.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in chosen], indent=1))
    elif args.name is None:
        print(classes_text(chosen))
    else:
        print("\n\n".join(map(class_text, chosen)))


def select(known: Mapping[str, ClassEntry], name: str | None) -> list[ClassEntry]:
    """Returns the classes that a name asks for; of ``Class.field`` with that field alone.

    Raises:
      ConfigError: there is none of that name; it says the nearest, and which classes have a field
        of it.
    """
    if name is None:
        return list(known.values())
    owner, _, field = name.partition(".")
    owner = owner.rpartition("/")[2]  # a scope, as in en/Source.files
    if owner not in known:
        near = nearest(owner, known)
        having = [
            f"{e.name}.{owner}" for e in known.values() if owner in {f.name for f in e.fields}
        ]
        remedy = f"Did you mean {near!r}? " if near else ""
        if having:
            remedy += f"As a field it is {' or '.join(having)}."
        expected = "a class of `t5x-llm fields`, such as Run or Loop"
        raise ConfigError("fields", owner, expected, remedy.strip())
    entry = known[owner]
    if not field:
        return [entry]
    found = [f for f in entry.fields if f.name == field]
    if not found:
        raise ConfigError(f"{owner}", field, choices=[f.name for f in entry.fields])
    return [dataclasses.replace(entry, fields=tuple(found))]


def classes_text(entries: Sequence[ClassEntry]) -> str:
    """Returns the classes by room, a line each."""
    width = max(len(entry.name) for entry in entries)
    lines: list[str] = []
    room = ""
    for entry in entries:
        if entry.room != room:
            room = entry.room
            lines += ["", f"{room}:"]
        summary = textwrap.shorten(entry.summary, 96 - width, placeholder=" ...")
        lines.append(f"  {entry.name:<{width}}  {summary}")
    lines += ["", "t5x-llm fields NAME lists the fields of one."]
    return "\n".join(lines[1:])


def class_text(entry: ClassEntry) -> str:
    """Returns a class and its fields, with types, defaults and meaning."""
    lines = [textwrap.fill(f"{entry.name} ({entry.room}): {entry.summary}", 100)]
    for field in entry.fields:
        lines += ["", _head(entry, field)]
        if field.help:
            indent = "    "
            lines.append(
                textwrap.fill(field.help, 100, initial_indent=indent, subsequent_indent=indent)
            )
    return "\n".join(lines)


def _head(entry: ClassEntry, field: FieldEntry) -> str:
    default = "must be set" if field.default is None else f"default {field.default}"
    return f"  {entry.name}.{field.name}: {field.type}, {default}"
