"""The figures of made-up packages, and that the rules find what breaks them and nothing else."""

import subprocess
import sys
from pathlib import Path

import figures
import pytest
import source

NOTHING = figures.Allowed({}, {})


@pytest.fixture
def package(tmp_path):
    def make(files: dict[str, str]) -> source.Package:
        for name, text in files.items():
            file = tmp_path / "house" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parent / "__init__.py").touch()
            file.write_text(text, "utf-8")
        (tmp_path / "house/__init__.py").touch()
        return source.read(tmp_path / "house")

    return make


def found(rule: str, package: source.Package, allowed: figures.Allowed = NOTHING) -> list[str]:
    return figures.RULES[rule].find(package, allowed)


def test_fragments_are_found_in_modules_classes_and_functions(package):
    text = '''"""What a thing is."""
class A:
    """Of a device."""
    def f(self):
        """Whether such a piece may be."""
        def inner():
            """As above, inside."""
def g():
    """Returns what, of all things, is whole. Which is a sentence, too."""
def h():
    """Whatever begins with a longer word is none of them."""
'''
    places = found("docstrings", package({"core/a.py": text}))
    assert [p.split(":")[1].split()[0] for p in places] == ["1", "3", "5", "7"]
    assert places[3].endswith("A.f.<locals>.inner: As above, inside.")


def test_one_class_name_in_two_modules(package):
    both = "class Plan: ...\nclass _Private: ...\n"
    alone = "class Alone: ...\ndef f():\n    class Plan: ...\n"
    house = package({"a/x.py": both, "b/x.py": both, "b/y.py": alone})
    assert found("classes", house) == ["Plan: house/a/x.py:1, house/b/x.py:1"]


def test_own_class_under_another_name(package):
    user = (
        "import numpy as np\nfrom optax import Schedule as Other\n"
        "from house.a.x import Plan as Other, Plan, helper as h\n"
    )
    house = package({"a/x.py": "class Plan: ...\ndef helper(): ...\n", "b/y.py": user})
    assert found("imports", house) == ["house/b/y.py:3 Plan as Other"]


@pytest.mark.parametrize(
    ("annotation", "is_any"),
    [
        ("Any", True),
        ("typing.Any", True),
        ("Any | None", True),
        ("'Any'", True),
        ("dict[str, Any]", False),
        ("Callable[[Any], Any]", False),
        ("'Array | None'", False),
        ("Anything", False),
    ],
)
def test_any_alone_or_in_a_union(package, annotation, is_any):
    house = package({"train/x.py": f"def f(self, value: {annotation}): ..."})
    assert found("any", house) == (["house/train/x.py:1 f(value)"] if is_any else [])


def test_any_is_allowed_by_name_and_place_and_elsewhere(package):
    text = "class A:\n    def f(self, params: Any, *rest: Any, key: Any): ...\n"
    house = package({"train/x.py": text, "nn/x.py": text})
    assert [p.split("(")[1] for p in found("any", house)] == ["params)", "key)", "rest)"]
    reasons = figures.Allowed({"params": "a tree"}, {"train/x.py:A.f.key": "any key"})
    assert found("any", house, reasons) == ["house/train/x.py:2 A.f(rest)"]


def test_a_reason_that_nothing_needs_is_found(package):
    house = package({"train/x.py": "def f(params: Tree): ..."})
    reasons = figures.Allowed({"params": "a tree"}, {"train/x.py:f.params": "a tree"})
    assert len(found("any", house, reasons)) == 2


def test_a_reason_must_be_given(tmp_path):
    (tmp_path / "allowed.toml").write_text('[names]\nparams = " "\n')
    with pytest.raises(ValueError, match="params has no reason"):
        figures.Allowed.read(tmp_path / "allowed.toml")


def test_sizes_at_their_limits(package):
    def function(lines: int) -> str:
        return f"def f{lines}():\n" + "    pass\n" * (lines - 1)

    house = package(
        {"a/x.py": function(100) + function(101), "b/y.py": "#\n" * 400, "b/z.py": "#\n" * 401}
    )
    assert found("functions", house) == ["house/a/x.py:101 f101: 101 lines"]
    assert found("files", house) == ["house/b/z.py: 401 lines"]


def test_parameters_of_the_spine_without_self(package):
    names = "a, b, /, c, d, *, e, f, g"
    text = (
        f"class A:\n    def fits(self, {names}): ...\n    def wide(self, {names}, **more): ...\n"
        f"def lone(self, {names}): ...\n"
    )
    house = package({"train/x.py": text, "nn/x.py": text})
    assert found("parameters", house) == [
        "house/train/x.py:3 A.wide: 8",
        "house/train/x.py:4 lone: 8",
    ]


def test_rooms_that_import_each_other(package):
    house = package(
        {
            "a/x.py": "def f():\n    from house.b import y\n",
            "a/z.py": "from . import x\nimport house.c.x\n",
            "b/y.py": "from ..a.z import thing\n",
            "c/x.py": "import houses.a\n",
        }
    )
    assert found("rooms", house) == ["a and b: house/a/x.py:2, house/b/y.py:1"]


def test_circles_at_run_time_and_for_types_alone(package):
    types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.a.{} import T\n"
    house = package(
        {
            "a/p.py": "from house.a import q",
            "a/q.py": "from house.a.r import f",
            "a/r.py": "def f():\n    import house.a.p\n",
            "a/s.py": types.format("t"),
            "a/t.py": "from house.a.s import U",
            "a/u.py": "from house.a.p import x",
        }
    )
    assert found("circles", house) == ["house.a.p <-> house.a.q <-> house.a.r"]
    rows = {what: places for what, _, places in figures.table(house, NOTHING)}
    whole = rows["circles of modules for type checking alone"]
    assert whole == ["house.a.s <-> house.a.t"]


def test_shares_of_the_table(package):
    text = (
        '"""Module."""\ndef documented(a: Any, b: int):\n    """Returns."""\n'
        "def bare(c: int, d: int): ...\ndef _private(): ...\n"
        'class A:\n    """Class."""\n    def __init__(self): ...\n    def method(self): ...\n'
    )
    rows = {
        what.strip(): value for what, value, _ in figures.table(package({"hf/x.py": text}), NOTHING)
    }
    assert rows["files"] == "3"
    assert rows["lines of a file: median, most"] == "0, 9"
    assert rows["in hf"] == rows["parameters typed Any"] == "1 of 4 (25.0 %)"
    # documented and A have one; bare and A.method have none.
    assert rows["public names with a docstring"] == "2 of 4 (50.0 %)"


def test_check_names_rule_place_and_remedy_and_ends_with_1(package, capsys):
    house = package({"a/x.py": '"""What it is."""\n' + "#\n" * 400})
    assert figures.check(house, NOTHING, ["docstrings", "files", "rooms"]) == 1
    told = capsys.readouterr().out
    assert "house/docstrings: 1 " in told and "house/files: 1 " in told
    assert "house/rooms" not in told
    assert "house/a/x.py:1 module: What it is." in told
    assert told.count("Remedy: ") == 2
    assert figures.check(house, NOTHING, ["rooms"]) == 0


def test_as_a_command(package, tmp_path):
    package({"a/x.py": '"""What it is."""\n'})
    (tmp_path / "allowed.toml").touch()
    command = [sys.executable, Path(figures.__file__), "--root", tmp_path / "house"]
    command += ["--allowed", tmp_path / "allowed.toml"]

    def run(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run([*command, *more], capture_output=True, text=True)

    assert run("--check").returncode == 1
    assert run("--check", "rooms", "any").returncode == 0
    assert run("--check", "room").returncode == 2
    assert "house/a/x.py:1 module: What it is." in run("--list").stdout
