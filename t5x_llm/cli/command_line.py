"""Commands, sub-commands, flags and values, as their argparse parsers have them."""

from __future__ import annotations

import argparse
import dataclasses
import importlib

from t5x_llm.cli.arguments import GIN_FLAGS, takes_gin_flags
from t5x_llm.cli.main import COMMANDS

FILES = "files"
# Flags whose value is a text of the user's, not the name of a file.
_TEXTS = ("--prompt", "--stop", "--slice", "--rows", "--field")


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of a command.

    Attributes:
      name: with its dashes.
      help: on one line.
      values: what it takes: None for nothing, ``FILES``, or a tuple of choices; an empty tuple for
        something that cannot be completed, such as a number.
    """

    name: str
    help: str
    values: str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """A command and what may follow it.

    Attributes:
      path: words after ``t5x-llm``; of a sub-command two.
      help: on one line.
      words: its sub-commands with their help, or choices of its first argument.
      flags: its own, and those of gin where it takes them.
      gin: True if it takes ``--gin.NAME=VALUE``.
    """

    path: tuple[str, ...]
    help: str
    words: tuple[tuple[str, str], ...] = ()
    flags: tuple[Flag, ...] = ()
    gin: bool = False


def command_lines() -> list[CommandLine]:
    """Returns every command, each followed by its sub-commands."""
    found = []
    for name, (module, text) in COMMANDS.items():
        if name == "data":
            found += _data_commands(text)
        else:
            parser = importlib.import_module(f"t5x_llm.cli.{module}").build_parser()
            found += of_parser((name,), text, parser)
    return found


def _data_commands(text: str) -> list[CommandLine]:
    from t5x_llm.cli.data import COMMANDS as data_commands

    words = tuple((name, each) for name, (_, each) in data_commands.items())
    found = [CommandLine(("data",), text, words)]
    for name, (module, each) in data_commands.items():
        parser = importlib.import_module(f"t5x_llm.cli.{module}").build_parser(name)
        found += of_parser(("data", name), each, parser)
    return found


def of_parser(
    path: tuple[str, ...], text: str, parser: argparse.ArgumentParser
) -> list[CommandLine]:
    """Returns the command of a parser, and of each of its sub-parsers."""
    words: list[tuple[str, str]] = []
    flags, below = [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, sub in action.choices.items():
                words.append((name, helps.get(name, "")))
                below += of_parser((*path, name), helps.get(name, ""), sub)
        elif action.option_strings:
            flags.append(Flag(action.option_strings[-1], _one_line(action.help), _values(action)))
        elif action.choices is not None and not words:
            words += [(str(choice), "") for choice in action.choices]
    gin = takes_gin_flags(parser)
    if gin:
        flags += [Flag(name, help, values) for name, help, values in GIN_FLAGS]
    return [CommandLine(path, text, tuple(words), tuple(flags), gin), *below]


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("%%", "%")


def _values(action: argparse.Action) -> str | tuple[str, ...] | None:
    if action.nargs == 0:
        return None
    if action.choices is not None:
        return tuple(map(str, action.choices))
    number = action.type in (int, float)
    return () if number or action.option_strings[-1] in _TEXTS else FILES
