"""Reads a package as syntax trees: modules, functions, classes, imports. It imports none."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef | ast.Module


@dataclass(frozen=True)
class Import:
    """One imported name of our own package: module imported, name taken of it, name it gets."""

    line: int
    module: str
    name: str | None
    alias: str | None
    # Under `if TYPE_CHECKING:`, so that it never runs.
    typing_only: bool


@dataclass(frozen=True)
class Named:
    """A function or class with the dotted name it has in its module."""

    name: str
    node: Function | ast.ClassDef

    @property
    def public(self) -> bool:
        """True where no part of the name is private and no function encloses it."""
        return not any(part.startswith("_") or part == "<locals>" for part in self.name.split("."))


class Module:
    """One source file of the package."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        parts = path.relative_to(root.parent).with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.is_package = parts[-1] == "__init__"
        # The top-level subpackage; a file beside them is a room of its own.
        self.room = parts[1] if len(parts) > 1 else ""
        text = path.read_text("utf-8")
        self.lines = len(text.splitlines())
        self.tree = ast.parse(text, str(path))
        self.file = path.relative_to(root.parent).as_posix()
        self.members = list(_members(self.tree, ""))

    @property
    def functions(self) -> list[tuple[Named, Function]]:
        """Functions and methods, those inside others among them."""
        return [(m, m.node) for m in self.members if not isinstance(m.node, ast.ClassDef)]

    @property
    def classes(self) -> list[Named]:
        """Classes, those inside others among them."""
        return [m for m in self.members if isinstance(m.node, ast.ClassDef)]

    def docstrings(self) -> Iterator[tuple[int, str, str]]:
        """(line, name, docstring) of the module and of whatever in it has one."""
        documented: list[tuple[str, Documented]] = [("module", self.tree)]
        documented += [(m.name, m.node) for m in self.members]
        for name, node in documented:
            text = ast.get_docstring(node)
            if text and text.strip():
                yield node.body[0].lineno, name, text

    def imports(self, package: str) -> Iterator[Import]:
        """Imports of modules of ``package``, wherever in the file they stand."""
        below = _typing_only(self.tree)
        for node in ast.walk(self.tree):
            typing_only = id(node) in below
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(node.lineno, alias.name, None, alias.asname, typing_only)
            elif isinstance(node, ast.ImportFrom):
                source = node.module or ""
                if node.level:
                    parts = self.name.split(".")
                    kept = parts[: len(parts) - node.level + self.is_package]
                    source = ".".join([*kept, *([node.module] if node.module else [])])
                if source.split(".")[0] == package:
                    for alias in node.names:
                        yield Import(node.lineno, source, alias.name, alias.asname, typing_only)


@dataclass(frozen=True)
class Package:
    """A package's modules by dotted name."""

    name: str
    modules: dict[str, Module]

    def edges(self, *, typing_only: bool) -> dict[str, set[str]]:
        """Modules that each module imports; with those of type checking alone where asked."""
        edges: dict[str, set[str]] = {}
        for module in self.modules.values():
            to = edges.setdefault(module.name, set())
            for found in module.imports(self.name):
                if typing_only or not found.typing_only:
                    to.add(self.target(found))
            to &= self.modules.keys()
            to.discard(module.name)
        return edges

    def target(self, found: Import) -> str:
        """The module that an import reads: a submodule where the name taken is one."""
        below = f"{found.module}.{found.name}"
        return below if below in self.modules else found.module


def read(root: Path) -> Package:
    """Reads every file of the package that lies in ``root``."""
    files = [Module(path, root) for path in sorted(root.rglob("*.py"))]
    return Package(root.name, {module.name: module for module in files})


def parameters(function: Named, node: Function) -> list[ast.arg]:
    """Parameters of a function, ``self`` and ``cls`` of a method left out."""
    a = node.args
    found = [*a.posonlyargs, *a.args, *a.kwonlyargs]
    found += [star for star in (a.vararg, a.kwarg) if star is not None]
    if found and "." in function.name and found[0].arg in ("self", "cls"):
        del found[0]
    return found


def is_any(annotation: ast.expr | None) -> bool:
    """True for ``Any`` itself, alone or in a union; ``dict[str, Any]`` says something."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return is_any(annotation.left) or is_any(annotation.right)
    if isinstance(annotation, ast.Attribute):
        return annotation.attr == "Any"
    return isinstance(annotation, ast.Name) and annotation.id == "Any"


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan 1972), each sorted."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in sorted(edges.get(node, ())):
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            component: list[str] = []
            while not component or component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(edges):
        if node not in number:
            visit(node)
    return sorted(found)


def _members(node: ast.AST, prefix: str) -> Iterator[Named]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield Named(prefix + child.name, child)
            inner = "." if isinstance(child, ast.ClassDef) else ".<locals>."
            yield from _members(child, prefix + child.name + inner)
        else:
            yield from _members(child, prefix)


def _typing_only(tree: ast.Module) -> set[int]:
    """Identities of the nodes below ``if TYPE_CHECKING:``."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            found |= {id(below) for statement in node.body for below in ast.walk(statement)}
    return found
