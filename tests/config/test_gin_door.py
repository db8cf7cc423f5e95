"""The gin door: what a user writes, what the run gets, and what every mistake says."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from t5x_llm.config import gin_door, load, parse_flags, register
from t5x_llm.config.parse import parse
from t5x_llm.core.errors import ConfigError, check_choice, check_number


@dataclasses.dataclass(frozen=True)
class Curve:
    kind: str = "cosine"
    peak: float = 1e-3
    steps: int | None = None

    def __post_init__(self) -> None:
        check_choice("Curve.kind", self.kind, ("cosine", "linear"))
        check_number("Curve.peak", self.peak, above=0)


@dataclasses.dataclass(frozen=True)
class Tuner:
    name: str = "adamw"
    curve: Curve = dataclasses.field(default_factory=Curve)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0


@dataclasses.dataclass(frozen=True)
class Network:
    width: int
    heads: int = 4
    bias: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError("Network.heads", self.heads, f"a divisor of {self.width}")


@dataclasses.dataclass(frozen=True)
class Corpus:
    files: tuple[str, ...] = ()
    rates: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Spare:
    size: int = 1


CALLS: list[dict] = []


def fit(
    model: Network,
    tuner: Tuner,
    steps: int,
    corpora: tuple[Corpus, ...] = (),
    name: str = "run",
    spare: Spare | None = None,
) -> str:
    CALLS.append({"model": model, "steps": steps})
    return name


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(gin_door, "_REGISTRY", {})
    register(Curve, Tuner, Network, Corpus, Spare, fit)


GOOD = ["Network.width = 32", "fit.steps = 10"]


def gin(tmp_path, text, name="recipe.gin"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def mistake(*args, **kwargs) -> str:
    with pytest.raises(ConfigError) as e:
        load("fit", *args, **kwargs)
    return str(e.value)


def test_fields_fill_without_plumbing():
    got = load("fit", [], [*GOOD, "Curve.peak = 1", "Tuner.betas = [0.8, 1]"])
    assert got.arguments == {
        "model": Network(32),
        "tuner": Tuner(curve=Curve(peak=1.0), betas=(0.8, 1.0)),
        "steps": 10,
        "corpora": (),
        "name": "run",
        "spare": None,
    }
    assert isinstance(got.arguments["tuner"].curve.peak, float)
    assert isinstance(got.arguments["tuner"].betas, tuple)
    assert got.unused == ()


def test_call_runs_with_overrides():
    CALLS.clear()
    got = load("fit", [], GOOD)
    assert got.call() == "run" and got.call(name="dry", steps=1) == "dry"
    assert [c["steps"] for c in CALLS] == [10, 1]


def test_later_files_and_bindings_win(tmp_path):
    a = gin(tmp_path, "Network.width = 32\nfit.steps = 1\n", "a.gin")
    b = gin(tmp_path, "fit.steps = 2\nfit:\n  name = 'b'  # a block\n", "b.gin")
    assert load("fit", [a, b]).arguments["steps"] == 2
    assert load("fit", [b, a]).arguments["steps"] == 1
    assert load("fit", [b, a], ["fit.steps = 3", "fit.steps = 4"]).arguments["steps"] == 4


def test_includes_beside_the_file_and_in_search_paths(tmp_path, monkeypatch):
    gin(tmp_path, "Network.width = 64\n", "there/models/m.gin")
    gin(tmp_path, "include 'models/m.gin'\ninclude 'mesh.gin'\n", "there/base.gin")
    gin(tmp_path, "fit.steps = 3\n", "elsewhere/mesh.gin")
    recipe = gin(tmp_path, "include 'there/base.gin'\nNetwork.heads = 8\n")
    got = load("fit", [recipe], (), [str(tmp_path / "elsewhere")])
    assert got.arguments["model"] == Network(64, 8) and got.arguments["steps"] == 3
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load("fit", ["../recipe.gin"]).arguments["steps"] == 3
    assert "elsewhere" not in got.operative_config_text()
    assert "include" not in got.operative_config_text()


def test_scopes_and_macros():
    got = load(
        "fit",
        [],
        [
            *GOOD,
            "fit.corpora = (@en/Corpus(), @zh/Corpus())",
            "Corpus.rates = {'x': %RATE}",
            "en/Corpus.files = ['a.txt']",
            "zh/Corpus.files = %FILES",
            "FILES = ('b.txt', 'c.txt')",
            "RATE = 2",
        ],
    )
    en, zh = got.arguments["corpora"]
    assert en == Corpus(("a.txt",), {"x": 2.0}) and zh == Corpus(("b.txt", "c.txt"), {"x": 2.0})


def test_unused_is_told_apart():
    got = load("fit", [], [*GOOD, "Spare.size = 3", "en/Curve.peak = 2"])
    assert got.unused == got.unused_own == ("Spare.size", "en/Curve.peak")
    got = load("fit", [], [*GOOD, "Spare.size = 3", "fit.spare = @Spare()"])
    assert got.unused == () and got.arguments["spare"] == Spare(3)


def test_what_an_include_brings_along_needs_no_warning(tmp_path):
    gin(tmp_path, "Spare.size = 3\nen/Curve.peak = 2\n", "base.gin")
    recipe = gin(tmp_path, "include 'base.gin'\nen/Curve.peak = 4\n")
    got = load("fit", [recipe], GOOD)
    assert got.unused == ("Spare.size", "en/Curve.peak") and got.unused_own == ("en/Curve.peak",)


@pytest.mark.parametrize(
    ("binding", "words"),
    [
        # Names.
        ("Tuner.nmae = 'x'", ["Tuner.nmae", "'x'", "Did you mean Tuner.name?", "--gin_bindings"]),
        ("Tunr.name = 'x'", ["Tunr.name", "Did you mean 'Tuner'?"]),
        ("fit.step = 3", ["fit.step", "Did you mean fit.steps?"]),
        ("Tuner.curve = @Curv()", ["@Curv()", "Did you mean 'Curve'?"]),
        ("Spare.sizes = 3", ["Spare.sizes", "Did you mean Spare.size?"]),
        ("Spare.size = %NONE", ["%NONE", "NONE = ..."]),
        ("STEP = 4", ["STEP = 4", "macro"]),
        ("other.Tuner.name = 'x'", ["not 'other.Tuner'"]),
        ("nowhere:\n  a = 1", ["nowhere"]),
        # Types.
        ("fit.steps = '10'", ["an integer", "without quotes: fit.steps = 10"]),
        ("fit.steps = 1e3", ["an integer", "fit.steps = 1000"]),
        ("fit.steps = True", ["fit.steps", "an integer"]),
        ("fit.steps = None", ["an integer"]),
        ("fit.name = 3", ["a string"]),
        ("Network.bias = 1", ["True or False"]),
        ("Curve.peak = 'high'", ["a number"]),
        ("Tuner.betas = (0.9,)", ["a tuple (a number, a number)"]),
        ("Tuner.betas = 0.9", ["a tuple"]),
        ("Corpus.files = 'a.txt'\nfit.corpora = [@Corpus()]", ["every item a string"]),
        ("Corpus.rates = {'a': 'b'}\nfit.corpora = [@Corpus()]", ["Corpus.rates", "a number"]),
        ("fit.corpora = [@Corpus(), 1]", ["every item a Corpus"]),
        ("fit.tuner = 'adamw'", ["a Tuner", "fit.tuner = @Tuner()"]),
        ("fit.tuner = @Curve()", ["a Tuner"]),
        ("fit.tuner = @Tuner", ["Write @Tuner()"]),
        ("fit.name = @fit()", ["an instance of a class"]),
        # Values the dataclass refuses.
        ("Curve.kind = 'cosin'", ["Curve.kind", "Did you mean 'cosine'?", "--gin_bindings"]),
        ("Network.heads = 5", ["Network.heads", "a divisor of 32"]),
        # Missing.
        ("fit.steps = %gin.REQUIRED", ["fit.steps = (not set)", "--gin.fit.steps=..."]),
        ("fit.steps = %N\nN = %gin.REQUIRED", ["N = (not set)", "--gin.N=..."]),
        # Circles.
        ("A = %B\nB = %A\nfit.steps = %A", ["circle"]),
        ("Tuner.curve = @Tuner()", ["circle"]),
    ],
)
def test_mistakes_in_bindings(binding, words):
    text = mistake([], [*GOOD, binding])
    for word in words:
        assert word in text, text


def test_missing_arguments_say_how_to_set_them():
    text = mistake([], ["fit.steps = 1"])
    assert "Network.width = (not set)" in text and "--gin.Network.width=..." in text
    assert "fit.steps = (not set)" in mistake([], ["Network.width = 32"])


def test_mistakes_show_file_and_line(tmp_path):
    inner = gin(tmp_path, "# first\nTuner.nmae = 'x'\n", "inner.gin")
    assert "inner.gin:2" in mistake([gin(tmp_path, "include 'inner.gin'\n")])
    for text in ("Curve.kind = 'x'\n", "Curve.peak = 'x'\n", "Curve.steps = %X\n"):
        gin(tmp_path, "# first\n\n" + text, "inner.gin")
        assert "inner.gin:3" in mistake([inner], GOOD)


def test_a_misspelt_macro_of_the_recipe(tmp_path):
    gin(tmp_path, "STEPS = 5\nOTHER = 1\nfit.steps = %STEPS\nNetwork.width = 32\n", "base.gin")
    text = mistake([gin(tmp_path, "include 'base.gin'\nSTPES = 9\n")])
    assert "STPES = 9" in text and "Did you mean 'STEPS'?" in text and "recipe.gin:2" in text
    recipe = gin(tmp_path, "include 'base.gin'\nSTEPS = 9\n")
    assert load("fit", [recipe]).unused == ("OTHER",)
    # A macro whose only use was replaced is no mistake.
    assert load("fit", [recipe], ["fit.steps = 2"]).unused == ("OTHER", "STEPS")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("Tuner.name = adamw\n", 1, ["A string needs quotes: Tuner.name = 'adamw'"]),
        ("fit.steps = 1\nfit.name = 'x\n", 2, ["syntax"]),
        ("fit.steps = 1\n\nfit steps = 3\n", 3, ["fit steps = 3"]),
        ("fit.steps =\n", 1, ["Unable to parse value"]),
        ("fit.corpora = (1,\n\n", None, ["multi-line"]),
        ("fit.name = f'{1}'\n", 1, ["syntax"]),
        ("fit.steps = 1 + 1\n", 1, ["newline"]),
        ("fit.steps = int('1')\n", 1, ["int"]),
        ("  \x00\n", None, ["syntax"]),
        ("fit.name = " + "[" * 5000 + "\n", None, ["syntax"]),
        ("include configs.gin\n", 1, ["Write include 'configs.gin'."]),
        ("a//b.c = 1\n", 1, ["syntax"]),
    ],
)
def test_syntax_errors_show_file_and_line(tmp_path, text, line, words):
    said = mistake([gin(tmp_path, text)])
    assert "recipe.gin" in said
    for word in [*words, *([f"recipe.gin:{line}"] if line else [])]:
        assert word in said, said


def test_missing_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gin(tmp_path, "", "configs/recipes/quickstart.gin")
    text = mistake(["configs/recipes/quikstart.gin"], (), ["more"])
    assert "configs/recipes/quickstart.gin" in text and "more/configs" in text
    assert "--gin_search_paths" in text
    text = mistake([gin(tmp_path, "\ninclude 'absent.gin'\n")])
    assert "recipe.gin:2" in text and "absent.gin" in text
    assert "existing file" in mistake([str(tmp_path)])
    a = gin(tmp_path, "include 'b.gin'\n", "a.gin")
    gin(tmp_path, "include 'a.gin'\n", "b.gin")
    assert "include itself" in mistake([a])
    (tmp_path / "latin.gin").write_bytes(b"fit.name = '\xe9'\n")
    assert "UTF-8" in mistake([str(tmp_path / "latin.gin")])


def test_files_cannot_run_code(tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    (tmp_path / "evil_mod.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for line in (
        "import evil_mod",
        "from evil_mod import x",
        "import os.path as p",
        "import t5x_llm_evil",
        "from __gin__ import dynamic_registration",
    ):
        assert "import at" in mistake([gin(tmp_path, line + "\n")])
    for value in ("__import__('os')", "(lambda: 1)()", "@os.system()", "open"):
        mistake([], [f"fit.name = {value}"])
    assert not marker.exists()
    recipe = gin(tmp_path, "import evil_mod\nimport t5x_llm.core.errors\n")
    assert "--gin_allow_import=evil_mod" in mistake([recipe])
    got = load("fit", [recipe], GOOD, (), ["evil_mod"])
    assert marker.exists() and "import evil_mod" in got.operative_config_text()
    assert "PYTHONPATH" in mistake([gin(tmp_path, "import t5x_llm.none\n")])


def test_unknown_run_function():
    with pytest.raises(ConfigError, match="Did you mean 'fit'"):
        load("fitt")


def test_register():
    register(Curve, fit)
    other = type("Curve", (), {})
    with pytest.raises(ValueError, match="Curve"):
        register(other)


def test_parse_flags():
    flags = parse_flags(
        "--gin_file=a.gin --dry_run --gin_file b.gin --gin.fit.steps=3 --gin_bindings".split()
        + ["fit.name = 'x=y'", "--gin_search_paths=a,b", "out", "--gin.X='q'", "--", "--gin_file=c"]
        + []
    )
    assert flags.gin_files == ["a.gin", "b.gin"]
    assert flags.bindings == ["fit.steps = 3", "fit.name = 'x=y'", "X = 'q'"]
    assert flags.search_paths == ["a", "b"]
    assert flags.rest == ["--dry_run", "out", "--", "--gin_file=c"]
    assert parse_flags(["--gin_allow_import", "m"]).allow_imports == ["m"]
    with pytest.raises(ConfigError, match="Did you mean '--gin_file'"):
        parse_flags(["--gin_fiel=a"])
    with pytest.raises(ConfigError, match="--gin_file=VALUE"):
        parse_flags(["--gin_file"])
    with pytest.raises(ConfigError):
        parse_flags(["--gin=3"])


def test_the_door_opens_without_jax_or_tensorflow():
    code = (
        "import sys, t5x_llm.config\n"
        "print([m for m in ('jax', 'tensorflow', 'seqio', 'flax') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfTuner.name = 'caf\xc3\xa9'\r\nfit.steps = 3\r\n",
        "\ufeffTuner.name = 'café'\nfit.steps = 3\n".encode("utf-16-le"),
        "\ufeffTuner.name = 'café'\nfit.steps = 3\n".encode("utf-16-be"),
        "Tuner.name = 'café'\rfit.steps = 3\r".encode(),
        b"include 'marked.gin'\nfit.steps = 3\n",
    ],
    ids=["utf-8 and crlf", "utf-16-le", "utf-16-be", "cr", "included"],
)
def test_files_of_other_editors_are_read(tmp_path, data):
    (tmp_path / "marked.gin").write_bytes(b"\xef\xbb\xbfTuner.name = 'caf\xc3\xa9'\r\n")
    (tmp_path / "file.gin").write_bytes(data)
    found = parse([str(tmp_path / "file.gin")], [], [], [])
    bound = {binding.key: binding.value for binding in found.bindings.values()}
    assert bound == {"Tuner.name": "café", "fit.steps": 3}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("fit.steps = 3\nTuner.name = 'café'\n".encode("latin-1"), ["line 2", "0xe9", "-f latin1"]),
        ("Tuner.name = '春眠不觉晓'\n".encode("gb18030"), ["line 1", "-f gb18030"]),
    ],
)
def test_files_in_other_encodings_are_refused_with_the_command_that_helps(tmp_path, data, words):
    (tmp_path / "file.gin").write_bytes(data)
    said = mistake([str(tmp_path / "file.gin")])
    assert "UTF-8" in said
    for word in words:
        assert word in said, said


def test_places_that_cannot_be_read_are_refused_by_name():
    for place in ("s3://bucket/run.gin", "https://host/run.gin"):
        assert "a local path or gs://" in mistake([place])
