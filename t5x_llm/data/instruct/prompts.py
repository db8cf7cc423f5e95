"""Prompts made of the fields of rows: several templates a task, and translation both ways.

Multitask prompted tuning (FLAN, arXiv 2109.01652; T0, 2110.08207; xP3, 2211.01786; OPT-IML,
2212.12017) writes each example of a task by one of several templates. The template is chosen by a
hash of the fields' values and of the template's text, so an example has the same one on every
machine, and a further template takes only its own share of the examples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence

from t5x_llm.core.errors import ConfigError, check_choice, check_number, nearest
from t5x_llm.data.instruct.records import Dialogue, Unreadable
from t5x_llm.data.instruct.turns import Row, kind
from t5x_llm.text.chat import Conversation, Message

DIRECTIONS = ("both", "one", "forward")
Template = tuple[str, str]
# What templates of parallel text call its parts.
PAIR = ("source_language", "target_language", "source", "target")
TRANSLATION: tuple[Template, ...] = (
    ("Translate from {source_language} to {target_language}:\n\n{source}", "{target}"),
    ("{source}\n\nTranslate this to {target_language}.", "{target}"),
    ("{source}\n\nHow is this said in {target_language}?", "{target}"),
    ("{source_language}: {source}\n\n{target_language}:", "{target}"),
    ("Please translate this {source_language} text into {target_language}.\n{source}", "{target}"),
    ("Write in {target_language} what this text in {source_language} says:\n{source}", "{target}"),
)
_PARTS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")
_NAME = re.compile(r"[^:]+(:options)?")


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Templates that make prompts and answers of the fields of a source's rows.

    Attributes:
      templates: pairs (prompt, answer) with ``{field}`` for a field of the row; dots lead into
        objects and lists (``{answers.text.0}``), ``{{`` and ``}}`` are braces, and
        ``{field:options}`` lists the names that ``choices`` gives the field, a line each.
      per_row: templates by which each row is written, different ones, each a document of its own.
      choices: names of a field's values 0, 1, ..., such as ``{'label': ('negative', 'positive')}``.
      languages: of parallel text, ((field, language), (field, language)), such as ``(('en',
        'English'), ('zh', 'Chinese'))``. Templates then say ``{source_language}``,
        ``{target_language}``, ``{source}`` and ``{target}``; built-in ones if ``templates`` is ().
      directions: of parallel text: every row is translated in ``both`` directions, in ``one`` of
        them by hash, or ``forward`` from the first language to the second.
      columns: names of the values of a tab-separated file's lines; () for rows with fields. A first
        line that holds these names is left out.
    """

    templates: tuple[Template, ...] = ()
    per_row: int = 1
    choices: dict[str, tuple[str, ...]] | None = None
    languages: tuple[tuple[str, str], ...] = ()
    directions: str = "both"
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("templates", "languages"):
            given = getattr(self, name)
            pairs = tuple(tuple(pair) if _is_list(pair) else pair for pair in given)
            object.__setattr__(self, name, pairs)
            for pair in pairs:
                texts = _is_list(pair) and [type(part) for part in pair] == [str, str]
                if not texts or not all(part.strip() for part in pair):
                    raise ConfigError(
                        f"Prompts.{name}", pair, "(prompt, answer), two texts"
                        if name == "templates" else "(field, name of the language), two texts",
                    )  # fmt: skip
        self._check_choices()
        self._check_languages()
        object.__setattr__(self, "columns", tuple(self.columns))
        if len(set(self.columns)) < len(self.columns) or not all(self.columns):
            raise ConfigError("Prompts.columns", self.columns, "names that differ")
        for field, _ in self.languages:
            if self.columns and field not in self.columns:
                raise ConfigError("Prompts.languages", field, choices=self.columns)
        self._check_templates()
        check_number("Prompts.per_row", self.per_row, low=1, integer=True)
        if self.per_row > len(self.bank):
            raise ConfigError(
                "Prompts.per_row", self.per_row,
                f"at most {len(self.bank)}, the number of templates, as a row takes different ones",
            )  # fmt: skip

    def _check_choices(self) -> None:
        if self.choices is None:
            return
        made = {field: tuple(names) for field, names in self.choices.items()}
        object.__setattr__(self, "choices", made)
        for field, names in made.items():
            if len(names) < 2 or not all(isinstance(n, str) and n for n in names):
                raise ConfigError("Prompts.choices", names, f"two names or more for {field!r}")

    def _check_languages(self) -> None:
        check_choice("Prompts.directions", self.directions, DIRECTIONS)
        if not self.languages:
            if self.directions != "both":
                raise ConfigError(
                    "Prompts.directions", self.directions, "'both', as Prompts.languages is ()",
                    "Name the fields and languages of parallel text.",
                )  # fmt: skip
            return
        if len(self.languages) != 2 or len({field for field, _ in self.languages}) < 2:
            raise ConfigError(
                "Prompts.languages", self.languages, "two fields with the names of their languages",
                "E.g. (('en', 'English'), ('zh', 'Chinese')).",
            )  # fmt: skip

    def _check_templates(self) -> None:
        if not self.bank:
            raise ConfigError(
                "Prompts.templates", (), "at least one (prompt, answer)",
                "E.g. (('Is this review good?\\n{review}', '{label}'),); parallel text has "
                "built-in ones: set Prompts.languages.",
            )  # fmt: skip
        named: set[str] = set()
        for template in self.bank:
            if self.bank.count(template) > 1:
                raise ConfigError("Prompts.templates", template, "templates that differ")
            for part, name in zip(template, ("prompt", "answer"), strict=True):
                slots = [piece for piece in _pieces(part) if isinstance(piece, _Slot)]
                if not any(not slot.options for slot in slots):
                    raise ConfigError(
                        "Prompts.templates", template, f"a field of the row in the {name}, such as "
                        "{text}", f"This {name} would be the same for every row.",
                    )  # fmt: skip
                for slot in slots:
                    self._check_slot(template, slot)
                    named.add(slot.field)
        for field in self.choices or {}:
            if field not in named:
                raise ConfigError("Prompts.choices", field, choices=named)

    def _check_slot(self, template: Template, slot: _Slot) -> None:
        if self.languages and slot.field in PAIR and not slot.options:
            return
        if slot.options and slot.field not in (self.choices or {}):
            raise ConfigError(
                "Prompts.choices", self.choices, f"names for {slot.field!r}, which "
                f"{template!r} lists",
            )  # fmt: skip
        first = slot.field.split(".")[0]
        if self.columns and first not in self.columns:
            raise ConfigError("Prompts.templates", slot.field, choices=self.columns)

    @property
    def bank(self) -> tuple[Template, ...]:
        """The templates, built-in ones for parallel text that names none."""
        return self.templates or (TRANSLATION if self.languages else ())

    def identity(self) -> list[object]:
        """Returns all that decides what a row becomes, as JSON-able data."""
        chosen = sorted((self.choices or {}).items())
        return [self.bank, self.per_row, chosen, self.languages, self.directions, self.columns]


class MissingField(Unreadable):
    """A row without a field that a template names."""


@dataclasses.dataclass(frozen=True)
class _Slot:
    """A field in a template, or the list of its choices."""

    field: str
    options: bool = False


def check_prompts(
    prompts: object, files: Sequence[str], told: Mapping[str, object], where: str
) -> None:
    """Checks the prompts of a source of kind ``chat``.

    Args:
      prompts: ``Source.prompts``.
      files: ``Source.files``.
      told: values of other fields that say how a row is read; each must be empty.
      where: name of the source.

    Raises:
      ConfigError: no Prompts, another way to read rows beside it, or a .tsv file without columns.
    """
    if prompts is None:
        return
    if not isinstance(prompts, Prompts):
        raise ConfigError("Source.prompts", prompts, "a Prompts, or None")
    for name, value in told.items():
        if value:
            raise ConfigError(
                f"Source.{name}", value, f"nothing, as Source.prompts is set of {where!r}",
                "Name fields of the rows in Prompts.templates.",
            )  # fmt: skip
    for file in files:
        if re.search(r"\.tsv(\.\w+)?$", file, re.I) and not prompts.columns:
            raise ConfigError(
                "Prompts.columns", (), f"the names of the columns of {file}", "E.g. ('en', 'zh')."
            )


def _is_list(value: object) -> bool:
    return isinstance(value, (tuple, list))


def _pieces(part: str) -> Iterator[str | _Slot]:
    """Yields texts and fields of one part of a template."""
    for match in _PARTS.finditer(part):
        whole, name = match.group(), match.group(1)
        if whole in ("{{", "}}"):
            yield whole[0]
        elif name is not None and _NAME.fullmatch(name) and not name[0].isspace():
            yield _Slot(name.removesuffix(":options"), name.endswith(":options"))
        elif name is not None or whole in "{}":
            raise ConfigError(
                "Prompts.templates", part, f"{{field}} or {{field:options}}, not {whole!r}",
                "Write {{ and }} for braces.",
            )  # fmt: skip
        else:
            yield whole


class PromptWriter:
    """Writer of the dialogues of rows by the templates of ``Prompts``."""

    def __init__(self, prompts: Prompts):
        self._prompts = prompts
        self._bank = [(pair, [list(_pieces(part)) for part in pair]) for pair in prompts.bank]
        own = PAIR if prompts.languages else ()
        slots = [p for _, parts in self._bank for part in parts for p in part]
        named = [slot.field for slot in slots if isinstance(slot, _Slot) and slot.field not in own]
        self.fields = tuple(dict.fromkeys([*(field for field, _ in prompts.languages), *named]))

    def read(self, row: Row) -> list[Dialogue]:
        """Returns the dialogues of a row, which are held out together.

        Raises:
          Unreadable: a field is missing or holds no text, or an answer is empty.
        """
        values = {field: self._value(row, field) for field in self.fields}
        given = json.dumps(sorted(values.items()))
        group = hashlib.sha256(given.encode()).hexdigest()
        made = []
        for view in self._views(values, group):
            ranked = sorted(self._bank, key=lambda entry: _rank(group, view, entry[0]))
            for _, parts in ranked[: self._prompts.per_row]:
                prompt, reply = ("".join(self._written(part, view)) for part in parts)
                if not prompt.strip() or not reply.strip():
                    raise Unreadable("an empty answer" if prompt.strip() else "an empty prompt")
                turns = (Message("user", prompt), Message("assistant", reply))
                made.append(Dialogue(Conversation(turns), group))
        return made

    def tab_separated(self, raw: bytes, first: bool) -> Row | str | None:
        """Returns the row in a line of tab-separated values; the reason if there is none.

        Args:
          raw: the line.
          first: True for the first line of a file, which may name the columns: None then.
        """
        try:
            cells = raw.decode("utf-8").rstrip("\r\n").split("\t")
        except UnicodeDecodeError:
            return "not UTF-8"
        columns = self._prompts.columns
        if first and tuple(cells) == columns:
            return None
        if len(cells) != len(columns):
            return f"{len(cells)} values, not {len(columns)}"
        return dict(zip(columns, cells, strict=True))

    def _views(self, values: dict[str, str], group: str) -> list[dict[str, str]]:
        """Returns the values of a row as templates name them, once a direction."""
        if not self._prompts.languages:
            return [values]
        found = []
        (one, first), (other, second) = self._prompts.languages
        for field in (one, other):
            if not values[field].strip():
                raise Unreadable(f"empty {field!r}")
        for names in ((first, second, one, other), (second, first, other, one)):
            pair = (*names[:2], values[names[2]], values[names[3]])
            found.append({**values, **dict(zip(PAIR, pair, strict=True))})
        if self._prompts.directions == "both":
            return found
        forward = self._prompts.directions == "forward" or int(group[:8], 16) % 2 == 0
        return found[:1] if forward else found[1:]

    def _written(self, part: list[str | _Slot], view: Mapping[str, str]) -> Iterator[str]:
        for piece in part:
            if isinstance(piece, str):
                yield piece
            elif piece.options:
                yield "\n".join(f"- {name}" for name in (self._prompts.choices or {})[piece.field])
            else:
                yield view[piece.field]

    def _value(self, row: Row, field: str) -> str:
        """Returns the text of a field of a row."""
        value: object = row
        for key in [field] if field in row else field.split("."):
            if isinstance(value, Mapping) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                have = sorted(map(str, row))
                near = nearest(field, have)
                hint = f", did you mean {near!r}" if near else ""
                told = f"no field {field!r}{hint}; there are {', '.join(have) or 'none'}"
                raise MissingField(told)
        names = (self._prompts.choices or {}).get(field)
        if names is not None:
            return _chosen(field, value, names)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise Unreadable(f"field {field!r} holds {kind(value)}, no text and no number")
        return value


def _chosen(field: str, value: object, names: tuple[str, ...]) -> str:
    """Returns the name of a value that is the number of a choice, or the name itself."""
    if isinstance(value, str) and value in names:
        return value
    for number, name in enumerate(names):
        # True is 1, and so is 1.0, which tables with holes make of numbers.
        if value == number or value == str(number):
            return name
    raise Unreadable(f"field {field!r} holds none of its choices 0 to {len(names) - 1}")


def _rank(group: str, view: Mapping[str, str], template: Template) -> bytes:
    """Returns the hash by which a row's templates are ordered."""
    key = [group, view.get("target_language", ""), *template]
    return hashlib.sha256(json.dumps(key).encode()).digest()
