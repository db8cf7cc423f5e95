"""The operative config reproduces the run, and bindings mean what gin itself makes of them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import gin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_llm.config import gin_door, load, register, to_dict
from t5x_llm.config.values import format_value


@dataclasses.dataclass(frozen=True)
class Leaf:
    a: Any = None
    b: Any = 1


@dataclasses.dataclass(frozen=True)
class Node:
    left: Any = None
    right: Any = None


@dataclasses.dataclass(frozen=True)
class Typed:
    number: float = 1.0
    count: int | None = None
    words: tuple[str, ...] = ("a",)
    leaf: Leaf = dataclasses.field(default_factory=Leaf)


@dataclasses.dataclass(frozen=True)
class Special:
    leaf: Leaf = Leaf(a=3)


def run(node: Any = None, typed: Typed = Typed(), other: Any = 0):
    return node, typed, other


@pytest.fixture(autouse=True, scope="module")
def registry():
    saved = dict(gin_door._REGISTRY)
    gin_door._REGISTRY.clear()
    register(Leaf, Node, Typed, Special, run)
    yield
    gin_door._REGISTRY.clear()
    gin_door._REGISTRY.update(saved)


LITERALS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.text(st.characters(blacklist_categories=("Cs",)), max_size=8)
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=25,
)


def reload(resolved):
    """The configuration that the operative text alone gives."""
    return load("run", [], [resolved.operative_config_text()])


@settings(max_examples=150, deadline=None)
@given(LITERALS)
def test_any_literal_is_read_back(value):
    text = format_value(value)
    got = load("run", [], [f"run.other = {text}"])
    assert got.arguments["other"] == value
    assert repr(got.arguments["other"]) == repr(value)  # 1 is not 1.0 nor True
    again = reload(got)
    assert repr(again.arguments["other"]) == repr(value)
    assert again.operative_config_text() == got.operative_config_text()


SCOPES = ["", "x", "y", "x/y", "y/x"]
REFERENCES = [f"@{s}/Leaf()".replace("@/", "@") for s in SCOPES]


@st.composite
def programs(draw):
    """Bindings over a few classes, scopes, references and macros; no circles."""
    simple = st.integers(0, 9).map(str) | st.sampled_from(["'s'", "None", "[1, 'q']", "%M", "%N"])
    lines = ["M = 5", f"N = {draw(st.sampled_from(['%M', '(1, 2)', '[@Leaf()]', '@y/Leaf()']))}"]
    for scope in SCOPES + ["N"]:
        for field in ("a", "b"):
            if draw(st.booleans()):
                value = draw(simple if scope != "N" else st.integers(0, 9).map(str))
                value = "7" if value == "%N" else value
                lines.append(f"{scope}/Leaf.{field} = {value}".lstrip("/"))
    leaf = st.sampled_from(REFERENCES + ["%N", "3"])
    for scope in SCOPES:
        for field in ("left", "right"):
            if draw(st.booleans()):
                value = draw(leaf | st.lists(leaf, max_size=2).map(lambda x: f"[{', '.join(x)}]"))
                lines.append(f"{scope}/Node.{field} = {value}".lstrip("/"))
    lines.append(f"run.node = {draw(st.sampled_from(['@Node()', '@x/Node()', '@x/y/Node()']))}")
    lines.append(f"run.other = {draw(leaf)}")
    lines.append("unused/Leaf.a = (%M, %N)")
    return draw(st.permutations(lines))


@settings(max_examples=150, deadline=None)
@given(programs())
def test_bindings_mean_what_gin_makes_of_them(lines):
    ours = load("run", [], lines)
    with gin.unlock_config():
        gin.clear_config()
        for cls in (Leaf, Node):
            if not gin.config._REGISTRY.get_match(cls.__name__):
                gin.external_configurable(cls)
        if not gin.config._REGISTRY.get_match("run"):
            gin.external_configurable(run, name="run")
        gin.parse_config("\n".join(lines))
        node, _, other = gin.get_configurable("run")()
        gin.clear_config()
    assert to_dict(ours.arguments["node"]) == to_dict(node)
    assert to_dict(ours.arguments["other"]) == to_dict(other)
    again = reload(ours)
    assert again.arguments == ours.arguments
    assert again.operative_config_text() == ours.operative_config_text()
    assert again.unused == ()


def test_defaults_are_written_out():
    text = load("run", [], ["Typed.count = 3", "run.other = @Special()"]).operative_config_text()
    for line in (
        "Typed.number = 1.0",
        "Typed.count = 3",
        "Typed.words = ('a',)",
        "Typed.leaf = @Leaf()",
        "Leaf.b = 1",
        "# Special.leaf keeps its default.",
    ):
        assert line in text.splitlines()


def test_text_is_for_readers():
    long = [f"corpus-{i}.jsonl" for i in range(20)]
    got = load("run", [], [f"Typed.words = {long}", "LR = 0.5", "Typed.number = %LR"])
    text = got.operative_config_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "LR = 0.5" in text and "Typed.number = %LR" in text
    assert load("run", [], [text, "LR = 0.25"]).arguments["typed"].number == 0.25


def test_to_dict_is_json():
    old = to_dict({"typed": Typed(), "n": Node(left=[Leaf(), 3], right={"k": (1, 2)})})
    assert json.loads(json.dumps(old)) == old
    assert old["typed"]["class"] == "Typed" and old["typed"]["words"] == ["a"]


@given(LITERALS.filter(lambda v: "b'" not in repr(v) and 'b"' not in repr(v)))
def test_a_json_copy_is_the_same(value):
    plain = to_dict(Leaf(a=value))
    assert json.loads(json.dumps(plain)) == plain
