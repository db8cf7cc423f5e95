"""Prints the house's figures: sizes, imports and language of a package, and the rules they keep.

    python tests/house/figures.py                  the table
    python tests/house/figures.py --list           with the places that each rule finds
    python tests/house/figures.py --check          ends with 1 where a rule is broken; `make lint`
    python tests/house/figures.py --check any      only the named rules

It reads syntax trees and imports nothing of the package, so it runs in two seconds.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import source

ROOT = Path(__file__).parents[2] / "t5x_llm"
ALLOWED = Path(__file__).with_name("any_allowed.toml")

# First words of docstrings that are no sentence.
FRAGMENTS = frozenset(
    "What Whether Which Of As Its In By How Where When That At For So From".split()
)
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 100, 7
# Rooms where a parameter is Any only with a reason, and rooms of the spine.
TYPED_ROOMS = ("run", "train", "infer", "hf")
SPINE = ("run", "cli", "train")


@dataclass(frozen=True)
class Allowed:
    """Parameters that may be ``Any``, each with the reason: by name, or at one place."""

    names: dict[str, str]
    # "room/file.py:function.parameter".
    places: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Allowed:
        """Reads the file; raises ValueError where a reason is missing."""
        table = tomllib.loads(path.read_text("utf-8"))
        allowed = cls(table.get("names", {}), table.get("places", {}))
        for name, reason in (allowed.names | allowed.places).items():
            if not reason.strip():
                raise ValueError(f"{path.name}: {name} has no reason")
        return allowed


@dataclass(frozen=True)
class Rule:
    """One rule of the house: what breaks it in a package, and the remedy."""

    what: str
    remedy: str
    find: Callable[[source.Package, Allowed], list[str]]


def fragments(package: source.Package, allowed: Allowed) -> list[str]:
    """Docstrings that open with a fragment."""
    found = []
    for module in package.modules.values():
        for line, name, text in module.docstrings():
            if text.split()[0].strip(",.:") in FRAGMENTS:
                found.append(f"{module.file}:{line} {name}: {text.splitlines()[0]}")
    return found


def class_names(package: source.Package, allowed: Allowed) -> list[str]:
    """Public class names that several modules define."""
    where: dict[str, list[str]] = defaultdict(list)
    for module in package.modules.values():
        for one in module.classes:
            if one.public:
                name = one.name.split(".")[-1]
                where[name].append(f"{module.file}:{one.node.lineno}")
    return [f"{n}: {', '.join(at)}" for n, at in sorted(where.items()) if len(at) > 1]


def imported_as(package: source.Package, allowed: Allowed) -> list[str]:
    """Classes of the package that are imported under another name."""
    ours = {c.name for module in package.modules.values() for c in module.classes}
    found = []
    for module in package.modules.values():
        for one in module.imports(package.name):
            if one.alias and one.alias != one.name and one.name in ours:
                found.append(f"{module.file}:{one.line} {one.name} as {one.alias}")
    return found


def any_parameters(package: source.Package, allowed: Allowed) -> list[str]:
    """Parameters typed ``Any`` in the typed rooms without a reason; reasons that nothing needs."""
    found = []
    names, places = set(), set()
    for module in package.modules.values():
        if module.room in TYPED_ROOMS:
            for line, name, parameter in _any(module):
                place = f"{module.file.partition('/')[2]}:{name}.{parameter}"
                names.add(parameter)
                places.add(place)
                if parameter not in allowed.names and place not in allowed.places:
                    found.append(f"{module.file}:{line} {name}({parameter})")
    found += [f"{ALLOWED.name}: names.{n} is not needed" for n in allowed.names if n not in names]
    found += [f"{ALLOWED.name}: {p} is not needed" for p in allowed.places if p not in places]
    return found


def long_files(package: source.Package, allowed: Allowed) -> list[str]:
    """Files of more than FILE_LINES lines."""
    long = [m for m in package.modules.values() if m.lines > FILE_LINES]
    return [f"{m.file}: {m.lines} lines" for m in sorted(long, key=lambda m: -m.lines)]


def long_functions(package: source.Package, allowed: Allowed) -> list[str]:
    """Functions of more than FUNCTION_LINES lines."""
    return [f"{at}: {n} lines" for n, at in _lengths(package) if n > FUNCTION_LINES]


def mutual_rooms(package: source.Package, allowed: Allowed) -> list[str]:
    """Pairs of rooms that import each other, with one import each way."""
    ways: dict[tuple[str, str], str] = {}
    for module in package.modules.values():
        for one in module.imports(package.name):
            other = package.modules.get(package.target(one))
            if other and other.room and module.room and other.room != module.room:
                ways.setdefault((module.room, other.room), f"{module.file}:{one.line}")
    return [
        f"{a} and {b}: {at}, {ways[b, a]}"
        for (a, b), at in sorted(ways.items())
        if a < b and (b, a) in ways
    ]


def import_circles(package: source.Package, allowed: Allowed) -> list[str]:
    """Circles of modules that import each other when they run."""
    return [" <-> ".join(one) for one in source.circles(package.edges(typing_only=False))]


def wide_functions(package: source.Package, allowed: Allowed) -> list[str]:
    """Functions of the spine with more than PARAMETERS parameters."""
    return [f"{at}: {n}" for n, at, room in _widths(package) if room in SPINE]


RULES: dict[str, Rule] = {
    "docstrings": Rule(
        "docstrings that open with a fragment",
        "Begin with a verb (Returns) or the noun that the thing is (Budget of one source).",
        fragments,
    ),
    "classes": Rule(
        "class names that stand for several classes",
        "One name, one meaning: rename all but one.",
        class_names,
    ),
    "imports": Rule(
        "own classes imported under another name",
        "A class that needs `as` has the wrong name: rename the class.",
        imported_as,
    ),
    "any": Rule(
        f"parameters typed Any without a reason in {', '.join(TYPED_ROOMS)}",
        "Name the type; what JAX's trees demand is allowed in any_allowed.toml, with a reason.",
        any_parameters,
    ),
    "files": Rule(
        f"files over {FILE_LINES} lines", "Split the file by what its parts are for.", long_files
    ),
    "functions": Rule(
        f"functions over {FUNCTION_LINES} lines", "Give its parts names.", long_functions
    ),
    "rooms": Rule(
        "pairs of rooms that import each other",
        "Import leftward only: move what both need to the left one (docs/architecture.md).",
        mutual_rooms,
    ),
    "circles": Rule(
        "circles of modules at run time",
        "Move what both need to a module of its own.",
        import_circles,
    ),
    "parameters": Rule(
        f"functions with over {PARAMETERS} parameters in {', '.join(SPINE)}",
        "Pass the object that holds them.",
        wide_functions,
    ),
}


def _any(module: source.Module) -> list[tuple[int, str, str]]:
    return [
        (p.lineno, one.name, p.arg)
        for one, node in module.functions
        for p in source.parameters(one, node)
        if source.is_any(p.annotation)
    ]


def _lengths(package: source.Package) -> list[tuple[int, str]]:
    found = [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{m.file}:{node.lineno} {one.name}")
        for m in package.modules.values()
        for one, node in m.functions
    ]
    return sorted(found, key=lambda f: -f[0])


def _widths(package: source.Package) -> list[tuple[int, str, str]]:
    """(parameters, place, room) of every function with more than PARAMETERS."""
    found = [
        (len(source.parameters(one, node)), f"{m.file}:{node.lineno} {one.name}", m.room)
        for m in package.modules.values()
        for one, node in m.functions
    ]
    return sorted((f for f in found if f[0] > PARAMETERS), key=lambda f: -f[0])


def table(package: source.Package, allowed: Allowed) -> list[tuple[str, str, list[str]]]:
    """The figures: (what, value, worst places) each."""
    modules = list(package.modules.values())
    lengths = _lengths(package)
    functions = [(m, one, node) for m in modules for one, node in m.functions]
    lines = sorted(((m.lines, m.file) for m in modules), reverse=True)
    wide = _widths(package)
    public = [(m, one) for m in modules for one in m.members if one.public]
    bare = [(m, one) for m, one in public if not ast.get_docstring(one.node)]
    run_time = import_circles(package, allowed)
    whole = [" <-> ".join(one) for one in source.circles(package.edges(typing_only=True))]
    typing_only = [one for one in whole if one not in run_time]
    docstrings = sum(1 for m in modules for _ in m.docstrings())

    def any_share(rooms: tuple[str, ...]) -> tuple[str, list[str]]:
        inside = [m for m in modules if not rooms or m.room in rooms]
        found = [f"{m.file}:{n} {f}({p})" for m in inside for n, f, p in _any(m)]
        total = sum(len(source.parameters(one, node)) for m in inside for one, node in m.functions)
        return _share(len(found), total), found

    long = [f"{at}: {n} lines" for n, at in lengths if n > 60]
    rows: list[tuple[str, str, list[str]]] = [
        ("files", str(len(modules)), []),
        (
            "lines of a file: median, most",
            f"{statistics.median(n for n, _ in lines):.0f}, {lines[0][0]}",
            [f"{file}: {n} lines" for n, file in lines[:10]],
        ),
        ("longest function", str(lengths[0][0] if lengths else 0), []),
        ("functions over 60 lines", str(len(long)), long),
        _row("functions", package, allowed),
        _row("rooms", package, allowed),
        (RULES["circles"].what, str(len(run_time)), run_time),
        ("circles of modules for type checking alone", str(len(typing_only)), typing_only),
    ]
    rows.append(("parameters typed Any", any_share(())[0], []))
    rows += [(f"  in {room}", *any_share((room,))) for room in TYPED_ROOMS]
    rows.append(_row("any", package, allowed))
    rows.append(
        (
            f"functions with over {PARAMETERS} parameters",
            _share(len(wide), len(functions)),
            [f"{at}: {n}" for n, at, _ in wide],
        )
    )
    rows.append(
        (
            "public names with a docstring",
            _share(len(public) - len(bare), len(public)),
            [f"{m.file}:{one.node.lineno} {one.name}" for m, one in bare],
        )
    )
    opened = fragments(package, allowed)
    rows.append((RULES["docstrings"].what, _share(len(opened), docstrings), opened))
    rows += [_row("classes", package, allowed), _row("imports", package, allowed)]
    return rows


def _row(rule: str, package: source.Package, allowed: Allowed) -> tuple[str, str, list[str]]:
    found = RULES[rule].find(package, allowed)
    return RULES[rule].what, str(len(found)), found


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / max(whole, 1):.1f} %)"


def check(package: source.Package, allowed: Allowed, names: list[str]) -> int:
    """Prints what breaks the named rules; returns the exit status, 1 where one is broken."""
    status = 0
    for name in names:
        found = RULES[name].find(package, allowed)
        if found:
            status = 1
            print(f"house/{name}: {len(found)} {RULES[name].what}")
            print("\n".join(f"  {place}" for place in found))
            print(f"  Remedy: {RULES[name].remedy}")
    if not status:
        print(f"house: {len(package.modules)} files keep {', '.join(names)}.")
    return status


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, prints, returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the package's folder")
    parser.add_argument("--allowed", type=Path, default=ALLOWED, help="parameters that may be Any")
    parser.add_argument("--list", action="store_true", help="print the places too")
    parser.add_argument(
        "--check", nargs="*", metavar="RULE", help=f"check rules: {', '.join(RULES)}; all if none"
    )
    args = parser.parse_args(arguments)
    package, allowed = source.read(args.root), Allowed.read(args.allowed)
    if args.check is not None:
        unknown = [name for name in args.check if name not in RULES]
        if unknown:
            parser.error(f"no rule {', '.join(unknown)}; there are {', '.join(RULES)}")
        return check(package, allowed, args.check or list(RULES))
    for what, value, places in table(package, allowed):
        print(f"{what:<64} {value}")
        if args.list:
            print("\n".join(f"    {place}" for place in places), end="\n" if places else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
