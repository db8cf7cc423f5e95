"""Jinja templates of strangers, rendered with what transformers offers them and within limits.

A template sees JSON values alone, cannot load another file, and may write no attribute (jinja2's
ImmutableSandboxedEnvironment). Beyond the sandbox of jinja2, every turn of a loop and every call
is counted, numbers and texts are bounded, and all must end within a few seconds: a template that
loops for ever or doubles a text for ever is an error, never a hung or a swollen process.
"""

from __future__ import annotations

import datetime
import functools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor

from t5x_llm.text.chat.errors import TemplateError
from t5x_llm.text.chat.template import MAX_SOURCE

MAX_STEPS = 2_000_000  # turns of loops and calls
MAX_CHARACTERS = 64_000_000  # of any text that a template makes
MAX_WIDTH = 10_000_000  # that a method or a filter is told
MAX_NUMBER = 2**63  # of arithmetic
MAX_SECONDS = 20.0
# What jinja2 passes to a filter before its value.
_CONTEXTS = (jinja2.Environment, jinja2.nodes.EvalContext, jinja2.runtime.Context)
_FILTERS_OUT = ("random", "urlize", "pprint", "xmlattr", "format", "center", "wordwrap")


def today() -> datetime.datetime:
    """Returns the date that templates write: Llama-3.1's default. A store of conversations must
    not depend on the day on which it was made.
    """
    return datetime.datetime(2024, 7, 26)


class Exceeded(Exception):
    """A template that went beyond a limit."""


class _Budget(threading.local):
    steps = 0
    deadline = float("inf")
    marks = ("", "")

    def start(self) -> None:
        """Begins a rendering."""
        self.steps, self.deadline = 0, time.monotonic() + MAX_SECONDS

    def step(self) -> None:
        """Counts one turn of a loop or one call."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise Exceeded(f"more than {MAX_STEPS:,} turns of loops and calls")
        if self.steps % 512 == 0 and time.monotonic() > self.deadline:
            raise Exceeded(f"more than {MAX_SECONDS:g} seconds")


_budget = _Budget()


def _bounded(value: Any) -> Any:
    """Returns ``value``, which arithmetic, a filter or a call made, if it is small enough."""
    if isinstance(value, (str, list, tuple, dict)):
        if len(value) > MAX_CHARACTERS:
            raise Exceeded(f"a value of more than {MAX_CHARACTERS:,} characters or items")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if abs(value) > MAX_NUMBER:
            raise Exceeded("a number of more than 64 bits")
    return value


def _check_widths(values: Iterable[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > MAX_WIDTH for value in values):
        raise Exceeded(f"a text or a list wider than {MAX_WIDTH:,}")


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _budget.step()
        yield value


def _joined(*parts: Any) -> str:
    texts = [str(p) for p in parts]
    if sum(map(len, texts)) > MAX_CHARACTERS:
        raise Exceeded(f"a text of more than {MAX_CHARACTERS:,} characters")
    return "".join(texts)


class _Limits(jinja2.visitor.NodeTransformer):
    """Puts a counter into every loop, and a bound on every ``a ~ b``."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:
        self.generic_visit(node)
        counter = jinja2.nodes.EnvironmentAttribute("counted")
        node.iter = jinja2.nodes.Call(counter, [node.iter], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        joined = jinja2.nodes.EnvironmentAttribute("joined")
        return jinja2.nodes.Call(joined, list(node.nodes), [], None, None, lineno=node.lineno)


class _Generation(jinja2.ext.Extension):
    """``{% generation %}``: the body is what the assistant generates."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_mark")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        begin, end = _budget.marks
        return f"{begin}{caller()}{end}"


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment of transformers' ``apply_chat_template``, with limits."""

    intercepted_binops = frozenset({"+", "*", "**", "%", "//", "-"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        self.counted, self.joined = _counted, _joined
        for name in _FILTERS_OUT:
            self.filters.pop(name, None)
        for name, found in list(self.filters.items()):
            self.filters[name] = _guarded(found)
        self.filters["tojson"] = _tojson
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": lambda form: today().strftime(form),
            "namespace": _Namespace,
            "dict": _Dict(),
        }
        for name in ("lipsum", "cycler", "joiner"):
            self.globals.pop(name, None)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        _Limits().visit(tree)
        jinja2.nodes.Node.set_environment(tree, self)
        return tree

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Refuses ``str.format``, whose widths are not bounded."""
        if super().wrap_str_format(value) is not None:
            raise Exceeded("a use of str.format, which no chat template needs")
        return None

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise Exceeded("a power, which no chat template needs")
        if operator == "*":
            _product(left, right)
            _product(right, left)
        if operator == "%" and isinstance(left, str):
            raise Exceeded("a text formatted by %, which no chat template needs")
        return _bounded(super().call_binop(context, operator, left, right))

    def call(self, context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:
        _budget.step()
        owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if isinstance(owner, str):
            _check_widths((*args, *kwargs.values()))
            if name in ("translate", "encode", "maketrans"):
                raise Exceeded(f"a use of str.{name}, which no chat template needs")
            if name == "replace" and len(args) > 1:
                _bounded_replace(owner, str(args[0]), str(args[1]))
            if name == "join" and args:
                parts = [str(p) for p in args[0]]
                if sum(len(p) + len(owner) for p in parts) > MAX_CHARACTERS:
                    raise Exceeded(f"a text of more than {MAX_CHARACTERS:,} characters")
                args = (parts, *args[1:])
        result = super().call(context, called, *args, **kwargs)
        return result if called is _counted else _bounded(result)


def _product(text: Any, times: Any) -> None:
    if isinstance(text, (str, list, tuple)) and isinstance(times, int):
        if len(text) * times > MAX_CHARACTERS:
            raise Exceeded(f"a value of more than {MAX_CHARACTERS:,} characters or items")


def _bounded_replace(text: str, old: str, new: str) -> None:
    if (text.count(old) if old else len(text) + 1) * len(new) > MAX_CHARACTERS:
        raise Exceeded(f"a text of more than {MAX_CHARACTERS:,} characters")


def _guarded(found: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a filter that counts as a step and whose arguments and result are bounded."""

    @functools.wraps(found)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _budget.step()
        given = [a for a in args if not isinstance(a, _CONTEXTS)]
        _check_widths((*given[1:], *kwargs.values()))
        if getattr(found, "__name__", "") == "do_replace":
            texts = [str(a) for a in given[:3]]
            _bounded_replace(*texts, *("" for _ in range(3 - len(texts))))
        return _bounded(found(*args, **kwargs))

    return bounded


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Writes JSON as transformers does: characters as they are, nothing escaped for HTML."""
    if isinstance(indent, int) and indent > 64:
        raise Exceeded("an indentation of more than 64")
    return _bounded(
        json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(str(message))


class _Dict:
    """Makes a dict, and has no attribute that a template could reach."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """A namespace without underscored names, as that of transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        found = dict(*args, **kwargs)
        for name in found:
            _Namespace._check(name)
        jinja2.utils.Namespace.__init__(self, found)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.sandbox.SecurityError(f"a namespace has no attribute {name!r}")


@functools.lru_cache(maxsize=64)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@functools.cache
def _environment() -> _Environment:
    return _Environment()


def run(
    source: str, name: str, values: Mapping[str, Any], marks: tuple[str, str] = ("", "")
) -> str:
    """Renders a template.

    Args:
      source: jinja text.
      name: of the template, for messages.
      values: what it sees: JSON values.
      marks: characters put around the body of every ``{% generation %}``.

    Raises:
      TemplateError: it is malformed, raised, reached for what it may not, or exceeded a limit.
    """
    if len(source) > MAX_SOURCE:
        raise TemplateError(f"Chat template {name} has {len(source):,} characters.")
    _budget.start()
    _budget.marks = marks
    try:
        pieces, size = [], 0
        for piece in _compiled(source).generate(**values):
            size += len(piece)
            if size > MAX_CHARACTERS:
                raise Exceeded(f"a text of more than {MAX_CHARACTERS:,} characters")
            pieces.append(piece)
        return "".join(pieces)
    except Exceeded as e:
        raise TemplateError(
            f"Chat template {name} was stopped: it made {e}. A template writes each message once; "
            "this one loops, or is not meant to be used."
        ) from e
    except jinja2.TemplateSyntaxError as e:
        raise TemplateError(f"Chat template {name}, line {e.lineno}: {e.message}.") from e
    except jinja2.sandbox.SecurityError as e:
        raise TemplateError(
            f"Chat template {name} reaches for what the sandbox forbids: {e}. Use a template from "
            "a source that you trust, or a built-in one."
        ) from e
    except (RecursionError, MemoryError) as e:
        raise TemplateError(f"Chat template {name} recurses or grows without end.") from e
    except jinja2.TemplateError as e:
        raise TemplateError(f"Chat template {name} says: {e.message or e}.") from e
    except Exception as e:  # any error of Python's that a stranger's template can cause
        raise TemplateError(f"Chat template {name} failed: {type(e).__name__}: {e}.") from e
    finally:
        _budget.deadline = float("inf")
