"""Builds frozen dataclasses from bindings: every name, type and missing value is checked here.

The meaning of scopes, references and macros is gin's: ``@a/X()`` is built in scope ``a``, ``@X()``
in the scope of whoever holds it, what a macro holds in the scope of the macro's name; a binding
for a scope comes before one for a wider scope.

One rule is added: a field annotated with a registered dataclass that nobody bound, and that has no
default or a default equal to ``X()``, is ``@X()``. So ``Schedule.peak = 1e-3`` takes effect without
any plumbing.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from t5x_llm.config.parse import Binding, Parsed
from t5x_llm.config.values import (
    Macro,
    MismatchError,
    Reference,
    conform,
    format_value,
    walk,
    words,
)
from t5x_llm.core.errors import ConfigError, check_representable, nearest

REQUIRED = "gin.REQUIRED"


class _Unset:
    def __repr__(self) -> str:
        return "(not set)"


UNSET = _Unset()


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a configurable: its annotation, and its default or UNSET."""

    hint: Any
    default: Any


@functools.cache
def parameters(target: Callable[..., Any]) -> dict[str, Parameter]:
    """The named parameters of a dataclass or function, in order."""
    function = vars(target).get("__init__", target) if isinstance(target, type) else target
    try:
        hints = typing.get_type_hints(function)
    except NameError:
        hints = {}
    found = {}
    for name, p in inspect.signature(target).parameters.items():
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            default = UNSET if p.default is p.empty else p.default
            found[name] = Parameter(hints.get(name, Any), default)
    if isinstance(target, type) and dataclasses.is_dataclass(target):
        for field in dataclasses.fields(target):
            if field.name in found and field.default_factory is not dataclasses.MISSING:
                found[field.name] = Parameter(found[field.name].hint, field.default_factory())
    return found


class Resolver:
    """Builds objects from ``parsed``, remembering what was used and how it can be written down."""

    def __init__(self, registry: Mapping[str, Callable[..., Any]], parsed: Parsed):
        self.registry, self.parsed = dict(registry), parsed
        self.signatures = {name: parameters(obj) for name, obj in registry.items()}
        self.written: dict[tuple[str, str], list[str]] = {}
        self.used: set[tuple[str, str, str]] = set()
        self.used_macros: dict[str, None] = {}
        self.building: list[str] = []

    # Names: all of them, also of classes that this run does not build.

    def check(self) -> None:
        """Raises ConfigError for any name that does not exist."""
        renamed = {}
        for binding in self.parsed.bindings.values():
            name = self._class(binding.name, binding, f"{binding.name}.{binding.param}")
            if binding.param not in self.signatures[name]:
                known = list(self.signatures[name])
                near = nearest(binding.param, known)
                raise ConfigError(
                    binding.key,
                    binding.value,
                    f"a field that {name} has: {', '.join(known)}",
                    f"{f'Did you mean {name}.{near}? ' if near else ''}({binding.where})",
                )
            renamed[binding.scope, name, binding.param] = binding
        self.parsed.bindings = renamed
        for block in self.parsed.blocks:
            self._class(block.name, block, block.name)
        macros = self.parsed.macros
        for binding in [*self.parsed.bindings.values(), *macros.values()]:
            for item in walk(binding.value):
                if isinstance(item, Reference):
                    self._class(item.name, binding, binding.key)
                elif item.name not in macros and item.name != REQUIRED:
                    near = nearest(item.name, macros)
                    raise ConfigError(
                        binding.key,
                        item,
                        f"a macro that is defined: {', '.join(sorted(macros)) or 'there is none'}",
                        (f"Did you mean %{near}? " if near else "")
                        + f"Else add `{item.name} = ...`. ({binding.where})",
                    )

    def _class(self, written: str, binding: Binding, field: str) -> str:
        """The registered name of ``Name`` or ``module.Name``."""
        name = written.rsplit(".", 1)[-1]
        if name in self.registry:
            module = getattr(self.registry[name], "__module__", "")
            if written == name or f".{module}.{name}".endswith(f".{written}"):
                return name
        near = nearest(name, self.registry)
        raise ConfigError(
            field,
            binding.value if field != written else written,
            f"one of the configurable names {', '.join(sorted(self.registry))}, not {written!r}",
            f"{f'Did you mean {near!r}? ' if near else ''}({binding.where})",
        )

    # Values.

    def build(self, name: str, scope: tuple[str, ...]) -> Any:
        """An instance of a registered class."""
        kwargs = self.arguments(name, scope)
        try:
            return self.registry[name](**kwargs)
        except ConfigError as e:
            binding = self._bound(name, e.field.rsplit(".", 1)[-1].split("[")[0], scope)
            if binding is not None and e.field.startswith(f"{name}."):
                e.args = (f"{e.args[0]} ({binding.where})",)
            raise
        except (TypeError, ValueError, ArithmeticError) as e:
            raise ConfigError(name, kwargs, f"fields that fit together: {e}") from e

    def arguments(self, name: str, scope: tuple[str, ...]) -> dict[str, Any]:
        """The keyword arguments of a registered class or function, built and checked."""
        written = f"@{'/'.join((*scope, name))}()"
        if written in self.building:
            chain = " -> ".join([*self.building, written])
            raise ConfigError(written, chain, "references that do not run in a circle")
        self.building.append(written)
        kwargs = {}
        lines = []
        for param, spec in self.signatures[name].items():
            field = f"{name}.{param}"
            raw, where = self._raw(name, param, spec, scope)
            if isinstance(raw, Macro) and raw.name == REQUIRED:
                raw = UNSET
            if raw is UNSET:
                raise ConfigError(
                    field, UNSET, words(spec.hint), self._how_to_set(field, spec.hint, where)
                )
            if where is not None or isinstance(raw, Reference):
                value = self._value(raw, scope, field, where)
                try:
                    kwargs[param] = conform(value, spec.hint)
                except MismatchError as e:
                    raise ConfigError(
                        field, value, str(e), self._type_remedy(field, value, spec.hint, where)
                    ) from None
                if spec.hint is not Any:
                    check_representable(field, kwargs[param], f"({where})" if where else "")
            try:
                lines.append(f"{field} = {format_value(raw, len(field) + 3)}")
            except ValueError:
                lines.append(f"# {field} keeps its default.")
        self.building.pop()
        self.written.setdefault(("/".join(scope), name), lines)
        return kwargs

    def _raw(
        self, name: str, param: str, spec: Parameter, scope: tuple[str, ...]
    ) -> tuple[Any, str | None]:
        """Returns (unevaluated value of a field, place of its binding); its default, None without
        one.
        """
        binding = self._bound(name, param, scope)
        if binding is not None:
            self.used.add((binding.scope, name, param))
            return binding.value, binding.where
        child = getattr(spec.hint, "__name__", "")
        if self.registry.get(child) is spec.hint and dataclasses.is_dataclass(spec.hint):
            if spec.default is UNSET or _is_plain(spec.default, spec.hint):
                return Reference((), child), None
        return spec.default, None

    def _bound(self, name: str, param: str, scope: tuple[str, ...]) -> Binding | None:
        for depth in range(len(scope), -1, -1):
            binding = self.parsed.bindings.get(("/".join(scope[:depth]), name, param))
            if binding is not None:
                return binding
        return None

    def _value(self, raw: Any, scope: tuple[str, ...], field: str, where: str | None) -> Any:
        if isinstance(raw, Reference):
            name = raw.name.rsplit(".", 1)[-1]
            if not raw.called or not isinstance(self.registry[name], type):
                raise ConfigError(
                    field, raw, "an instance of a class", f"Write @{name}(). ({where})"
                )
            return self.build(name, raw.scopes or scope)
        if isinstance(raw, Macro):
            if raw.name == REQUIRED:
                raise ConfigError(field, UNSET, "a value", f"({where})")
            inner = f"%{raw.name}"
            if inner in self.building:
                chain = " -> ".join([*self.building, inner])
                raise ConfigError(field, chain, "macros that do not run in a circle", f"({where})")
            self.used_macros[raw.name] = None
            binding = self.parsed.macros[raw.name]
            if isinstance(binding.value, Macro) and binding.value.name == REQUIRED:
                raise ConfigError(
                    raw.name,
                    UNSET,
                    f"a value, as {field} uses it",
                    f"Add `{raw.name} = ...` or --gin.{raw.name}=... ({binding.where})",
                )
            self.building.append(inner)
            value = self._value(binding.value, tuple(raw.name.split("/")), field, binding.where)
            self.building.pop()
            return value
        if isinstance(raw, dict):
            return {
                self._value(k, scope, field, where): self._value(v, scope, field, where)
                for k, v in raw.items()
            }
        if isinstance(raw, (list, tuple)):
            return type(raw)(self._value(v, scope, field, where) for v in raw)
        return raw

    # Words for mistakes.

    def _how_to_set(self, field: str, hint: Any, where: str | None) -> str:
        fitting = self._fitting(hint)
        example = f"@{fitting[0]}()" if fitting else "..."
        more = f" (one of {', '.join(f'@{n}()' for n in fitting)})" if len(fitting) > 1 else ""
        place = f" ({where})" if where else ""
        return f"Add `{field} = {example}`{more} to the gin file or as --gin.{field}=...{place}"

    def _type_remedy(self, field: str, value: Any, hint: Any, where: str | None) -> str:
        remedy = ""
        if isinstance(value, str):
            try:
                conform(eval_literal(value), hint)
                remedy = f"Write it without quotes: {field} = {value}. "
            except (MismatchError, ValueError, SyntaxError):
                fitting = self._fitting(hint)
                remedy = f"Write {field} = @{fitting[0]}(). " if fitting else ""
        elif isinstance(value, float) and value.is_integer():
            remedy = f"Write {field} = {int(value)}. "
        return f"{remedy}({where})"

    def _fitting(self, hint: Any) -> list[str]:
        """Registered classes that a field of this annotation takes."""
        options = typing.get_args(hint) or (hint,)
        return [
            name
            for name, obj in self.registry.items()
            if isinstance(obj, type)
            and any(isinstance(o, type) and o is not object and _subclass(obj, o) for o in options)
        ]


def eval_literal(text: str) -> Any:
    """A Python literal; raises ValueError or SyntaxError for anything else."""
    import ast

    return ast.literal_eval(text)


def _subclass(child: type, parent: type) -> bool:
    try:
        return issubclass(child, parent)
    except TypeError:
        return False


def _is_plain(default: Any, cls: Any) -> bool:
    try:
        return bool(default == cls())
    except Exception:
        return False
