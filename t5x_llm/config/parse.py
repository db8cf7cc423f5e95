"""Reading gin: files, includes and command-line bindings into one table of bindings.

gin-config's own parser reads the syntax; nothing else of gin is used, so there is no global state.
A file cannot run code: values are literals, and ``import`` takes only modules that are allowed.
"""

from __future__ import annotations

import codecs
import dataclasses
import difflib
import importlib
import itertools
import os
import tokenize
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gin import config_parser

from t5x_llm.config.values import Macro, Reference, walk
from t5x_llm.core.errors import ConfigError
from t5x_llm.core.paths import SHIPPED, as_path, check_place

PACKAGE = "t5x_llm"


@dataclasses.dataclass(frozen=True)
class Binding:
    """One ``scope/Name.param = value``; for a macro ``param`` is empty and ``name`` is whole."""

    scope: str
    name: str
    param: str
    value: Any
    where: str

    @property
    def key(self) -> str:
        """The left side as it was written."""
        return "/".join(filter(None, (self.scope, self.name))) + (self.param and f".{self.param}")


@dataclasses.dataclass
class Parsed:
    """Everything that was read. A later binding of the same key replaces an earlier one.

    ``asked_macros`` are all that any binding, replaced or not, refers to; ``own`` are the
    bindings, ``own_macros`` the macros, that were last set by a file named on the command line or
    by a flag, not by an included file.
    """

    bindings: dict[tuple[str, str, str], Binding] = dataclasses.field(default_factory=dict)
    macros: dict[str, Binding] = dataclasses.field(default_factory=dict)
    imports: list[str] = dataclasses.field(default_factory=list)
    blocks: list[Binding] = dataclasses.field(default_factory=list)
    asked_macros: set[str] = dataclasses.field(default_factory=set)
    own: set[tuple[str, str, str]] = dataclasses.field(default_factory=set)
    own_macros: set[str] = dataclasses.field(default_factory=set)


class _Delegate(config_parser.ParserDelegate):
    """Tells gin's parser what to put in place of ``@x()`` and ``%x``."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        *scopes, name = scoped_configurable_name.split("/")
        return Reference(tuple(scopes), name, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


def parse(
    gin_files: Sequence[str],
    bindings: Sequence[str],
    search_paths: Sequence[str],
    allow_imports: Sequence[str],
) -> Parsed:
    """Reads files in order, then bindings in order.

    Raises:
      ConfigError: for a file that cannot be found or read, syntax, or an import not allowed.
    """
    reader = _Reader(list(search_paths), list(allow_imports))
    for name in gin_files:
        reader.read_file(name, "--gin_file", None)
    for text in bindings:
        reader.read_text(text, f"--gin_bindings={text}", None)
    return reader.parsed


class _Reader:
    def __init__(self, search_paths: list[str], allow_imports: list[str]):
        self.search_paths, self.allow_imports = search_paths, allow_imports
        self.parsed = Parsed()
        self.open_files: list[str] = []

    def read_file(self, name: str, field: str, including: Any | None) -> None:
        path = self._find(name, field, including)
        if str(path) in self.open_files:
            chain = " -> ".join([*self.open_files, str(path)])
            raise ConfigError(
                field, name, f"a file that does not include itself ({chain})", "Remove one include."
            )
        try:
            text = _text(path.read_bytes())
        except UnicodeDecodeError as e:
            raise ConfigError(
                field,
                str(path),
                f"UTF-8 text (byte {e.start}, on line {e.object.count(10, 0, e.start) + 1}, is "
                f"{e.object[e.start]:#04x})",
                f"Save it as UTF-8; iconv -f {_guess(e.object)} -t UTF-8 {path} writes it so.",
            ) from e
        except OSError as e:
            raise ConfigError(field, str(path), f"a readable file ({e.strerror or e})") from e
        self.open_files.append(str(path))
        self.read_text(text, os.fspath(path), path)
        self.open_files.pop()

    def _find(self, name: str, field: str, including: Any | None) -> Any:
        check_place(field, name)
        roots: list[Any] = [] if including is None else [including.parent]
        places: list[Any] = [".", *self.search_paths, SHIPPED]
        roots += [as_path(place) for place in places]
        tried: list[str] = []
        whole = "://" in name or as_path(name).is_absolute()
        for path in [as_path(name)] if whole else [root / name for root in roots]:
            if str(path) not in tried:
                tried.append(str(path))
                if path.exists() and not path.is_dir():
                    return path
        near = _nearest_file(name, tried, [*self.search_paths, str(SHIPPED / "configs")])
        raise ConfigError(
            field,
            name,
            f"an existing file; tried {', '.join(tried)}",
            (f"Did you mean {near!r}? " if near else "")
            + "Add --gin_search_paths=DIR to search elsewhere.",
        )

    def read_text(self, text: str, origin: str, path: Any | None) -> None:
        """Parses one file, or one binding from the command line (``path`` is None)."""
        field = origin if path is not None else "--gin_bindings"
        try:
            parser = config_parser.ConfigParser(text, _Delegate())
        except (SyntaxError, tokenize.TokenError) as e:
            _raise_syntax(e, text, field, path)
        while True:
            try:
                statement = parser.parse_statement()
            except (
                SyntaxError,
                tokenize.TokenError,
                ValueError,
                AssertionError,
                StopIteration,
                RecursionError,
            ) as e:
                _raise_syntax(e, text, field, path)
            if statement is None:
                return
            line = statement.location.line_num
            self._take(statement, f"{origin}:{line}" if path is not None else origin, path)

    def _take(self, statement: Any, where: str, path: Any | None) -> None:
        if isinstance(statement, config_parser.IncludeStatement):
            self.read_file(statement.filename, f"include at {where}", path)
        elif isinstance(statement, config_parser.ImportStatement):
            self._import(statement.module, where)
        elif isinstance(statement, config_parser.BlockDeclaration):
            self.parsed.blocks.append(Binding(statement.scope, statement.selector, "", None, where))
        else:
            scope, name, param = statement.scope, statement.selector, statement.arg_name
            binding = Binding(scope, name, param, statement.value, where)
            asked = (item.name for item in walk(statement.value) if isinstance(item, Macro))
            self.parsed.asked_macros.update(asked)
            if param:
                self.parsed.bindings[scope, name, param] = binding
                self.parsed.own.discard((scope, name, param))
                if len(self.open_files) <= 1:
                    self.parsed.own.add((scope, name, param))
            else:
                self.parsed.macros[binding.key] = binding
                if len(self.open_files) <= 1:
                    self.parsed.own_macros.add(binding.key)

    def _import(self, module: str, where: str) -> None:
        if module.startswith("__gin__"):
            raise ConfigError(
                f"import at {where}",
                module,
                "names registered by this package; there is no dynamic registration",
                "Remove the line, and write class names alone: Optimizer.name, @Llama().",
            )
        allowed = [PACKAGE, *self.allow_imports]
        if not any(module == name or module.startswith(f"{name}.") for name in allowed):
            raise ConfigError(
                f"import at {where}",
                module,
                f"a module of {' or '.join(allowed)}, because an import runs the module's code",
                f"If you trust it, add --gin_allow_import={module} to the command line.",
            )
        try:
            importlib.import_module(module)
        except ImportError as e:
            raise ConfigError(
                f"import at {where}",
                module,
                f"a module that imports ({e})",
                "Put its directory in PYTHONPATH.",
            ) from e
        if module not in self.parsed.imports:
            self.parsed.imports.append(module)


_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def _text(data: bytes) -> str:
    """Decodes a gin file, by its byte order mark if it has one; line ends become U+000A."""
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), "utf-8")
    text = data.decode(encoding).removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _guess(data: bytes) -> str:
    """Names the encoding that text which is not UTF-8 most likely has."""
    try:
        data.decode("gb18030")
    except UnicodeDecodeError:
        return "latin1"
    pairs = sum(a >= 0x80 and b >= 0x80 for a, b in itertools.pairwise(data))
    return "gb18030" if 2 * pairs > sum(byte >= 0x80 for byte in data) else "latin1"


def _raise_syntax(error: BaseException, text: str, field: str, path: Any | None) -> NoReturn:
    number = getattr(error, "lineno", None)
    if isinstance(error, tokenize.TokenError) and len(error.args) > 1:
        number = error.args[1][0]
    lines = text.splitlines() or [""]
    number = min(number or len(lines), len(lines))
    shown = lines[number - 1].strip()
    message = str(getattr(error, "msg", None) or (error.args or ["unexpected end"])[0])
    message = message.rpartition("\n")[2].strip()  # without the text of Python's own parser
    remedy = "A binding is `Name.field = value`; a string needs quotes."
    key, equals, value = shown.partition("=")
    if equals and value.strip().replace("/", "").replace("-", "").replace(".", "").isidentifier():
        quoted = f"{key.strip()} = '{value.strip()}'"
        remedy = f"A string needs quotes: {quoted}"
        if path is None:
            remedy += f", in a shell --gin.{key.strip()}=\"'{value.strip()}'\""
        remedy += "."
    if shown.startswith("include "):
        remedy = f"Write include '{shown.split(None, 1)[1]}'."
    place = f"{field}:{number}" if path is not None else field
    raise ConfigError(place, shown, f"gin syntax ({message})", remedy) from error


def _nearest_file(name: str, tried: Iterable[str], roots: Iterable[str]) -> str | None:
    """The existing gin file most like ``name``: beside the paths tried, then below the roots."""
    found: dict[str, str] = {}
    for directory in dict.fromkeys(os.path.dirname(p) or "." for p in tried):
        if os.path.isdir(directory):
            for entry in sorted(os.listdir(directory))[:1000]:
                path = os.path.join(directory, entry)
                if entry.endswith(".gin") and os.path.isfile(path):
                    found.setdefault(path, entry)
    for root in roots:
        if os.path.isdir(root):
            for file in sorted(Path(root).rglob("*.gin"))[:1000]:
                found.setdefault(str(file), file.name)
    base = os.path.basename(name)
    scored = [
        (difflib.SequenceMatcher(None, base, entry).ratio(), path) for path, entry in found.items()
    ]
    score, path = max(scored, default=(0.0, ""))
    return os.path.relpath(path) if score >= 0.6 else None
