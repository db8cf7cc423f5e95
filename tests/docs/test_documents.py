"""Every command in the documents is run, in order, in a copy of the repository made small.

`make test-docs`, which CI runs, runs them; the default suite checks the rest.

A comment above a fenced block says what the test does other than run it:
  <!-- test: skip WHY -->           nothing
  <!-- test: instead COMMAND -->    runs COMMAND, which does the same without setting up
  <!-- test: plan -->               runs it, and it must be a dry run
  <!-- test: targets -->            checks that the Makefile has what it names
  <!-- test: write FILE -->         writes the block to FILE
  <!-- test: write FILE from X -->  copies X to FILE (the block that follows is not touched)

The Python blocks of a document are one program, which runs where the last of them stands.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from compiling import QUICKLY

ROOT = pathlib.Path(__file__).parents[2]
TUTORIALS = (
    "docs/tutorial.md",
    "docs/data.md",
    "docs/continual.md",
    "docs/tuning.md",
    "docs/blending.md",
    "docs/precision.md",
    "docs/planner.md",
    "docs/api.md",
)
SCALE = ("docs/parallelism.md", "docs/pipeline.md", "docs/plan.md")
RUN = ("README.md", *TUTORIALS, "docs/benchmarks.md", "CONTRIBUTING.md")
TRANSLATED = {"README.zh.md": "README.md"} | {f"{n[:-3]}.zh.md": n for n in (*TUTORIALS, *SCALE)}
ALL = sorted({*RUN, *SCALE, *TRANSLATED, "docs/architecture.md", "CHANGELOG.md", "data/README.md"})
BLOCK = re.compile(r"((?:^<!-- test: [^\n]*-->\n)*)^```(\w+)\n(.*?)^```$", re.M | re.S)
FLAGS = " ".join(QUICKLY)
# What makes the copy small: a model of nothing, a few steps. Appended to every model and recipe.
TINY_MODEL = """
Llama.d_model = 32
Llama.n_layers = 1
Llama.n_heads = 4
Llama.n_kv_heads = 4
Llama.d_ff = 64
"""
TINY_RECIPE = """
Loop.batch_size = 2
Loop.sequence_length = 64
Loop.eval_every = 0
Samples.every = 0
Evaluation.batch_size = 4
Schedule.warmup_steps = 1
"""


def blocks(name):
    """(markers, language, text) of every fenced block."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for markers, language, body in BLOCK.findall(text):
        yield re.findall(r"<!-- test: (.*?) -->", markers), language, body


def small_copy(directory):
    """The repository as a reader sees it, with little text and a model of nothing."""
    shutil.copy(ROOT / "train.py", directory)
    shutil.copytree(ROOT / "configs", directory / "configs")
    quickstart = directory / "configs" / "models" / "llama" / "quickstart.gin"
    quickstart.write_text(quickstart.read_text() + TINY_MODEL)
    for name in (
        "quickstart",
        "sft/quickstart_chat",
        "colossal_llama2/small_0_english",
        "colossal_llama2/small_1_embeddings",
    ):
        recipe = directory / "configs" / "recipes" / f"{name}.gin"
        tiny = TINY_RECIPE
        if name.startswith("sft"):  # a conversation is longer
            tiny = tiny.replace("Loop.sequence_length = 64", "Loop.sequence_length = 256")
        recipe.write_text(recipe.read_text() + tiny)
    shutil.copytree(ROOT / "data" / "dialogues", directory / "data" / "dialogues")
    for source in (ROOT / "data" / "quickstart").glob("*.jsonl"):
        lines = source.read_text(encoding="utf-8").splitlines(True)
        step = len(lines) // (60 if source.name.startswith("en") else 120)
        target = directory / "data" / "quickstart" / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(lines[:: max(step, 1)]), encoding="utf-8")


def cheap(command):
    """A training command with few steps; anything else as it is."""
    command = re.sub(r" --gin\.Loop\.steps=\d+", "", command)
    trains = "train.py" in command or ("t5x-llm tune" in command and "--show" not in command)
    if trains and "--dry_run" not in command:
        command += " --gin.Loop.steps=3 --gin.Evaluation.limit=500"
    return command


def cheap_program(text):
    """Python with few steps of training."""
    return re.sub(r'("Loop.steps": )\d+', r"\g<1>3", text)


def run(directory, env, argv):
    """Runs one command, which must end well."""
    done = subprocess.run(argv, cwd=directory, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{argv[-1]}\n{done.stdout}\n{done.stderr}"


def commands(body):
    """The commands of a block: a line each, continued by a backslash."""
    return [c for c in body.replace("\\\n", " ").splitlines() if c.strip()]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_commands(name, tmp_path):
    small_copy(tmp_path)
    env = {
        **os.environ,
        "PATH": os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FLAGS,
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax-tests"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    found = list(blocks(name))
    python = [
        i
        for i, (markers, language, _) in enumerate(found)
        if language == "python" and not any(m.startswith("skip") for m in markers)
    ]
    programs = [found[i][2] for i in python]
    last = max(python, default=None)
    for i, (markers, language, body) in enumerate(found):
        for marker in markers:
            verb, _, rest = marker.partition(" ")
            if verb == "write":
                target, _, origin = rest.partition(" from ")
                path = tmp_path / target
                path.parent.mkdir(parents=True, exist_ok=True)
                if origin:
                    shutil.copy(tmp_path / origin, path)
                else:
                    body = re.sub(r"(Schedule.warmup_steps) = \d+", r"\1 = 1", body)
                    path.write_text(body, encoding="utf-8")
        verbs = {marker.partition(" ")[0]: marker.partition(" ")[2] for marker in markers}
        assert verbs.keys() <= {"skip", "instead", "plan", "targets", "write"}, markers
        if i == last:
            run(tmp_path, env, [sys.executable, "-c", cheap_program("\n".join(programs))])
        if language != "bash" or "skip" in verbs:
            continue
        lines = [verbs["instead"]] if "instead" in verbs else commands(body)
        for line in lines:
            if "targets" in verbs:
                target = re.match(r"make ([\w-]+)", line)[1]
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
                continue
            assert "plan" not in verbs or "--dry_run" in line
            run(tmp_path, env, ["bash", "-c", cheap(line)])


@pytest.mark.parametrize("name", TRANSLATED)
def test_translations_give_the_same_commands(name):
    def code(name):
        kept = (block for block in blocks(name) if block[1] in ("bash", "gin", "python"))
        return [(markers, language, body) for markers, language, body in kept]

    assert code(name) == code(TRANSLATED[name])


@pytest.mark.parametrize("name", ALL)
def test_links_and_paths_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
        assert (ROOT / name).parent.joinpath(target).exists(), target
    prose = BLOCK.sub("", text)
    for path in re.findall(
        r"`((?:configs|t5x_llm|tests|docs|scripts|requirements)/[\w/.]+)`", prose
    ):
        assert (ROOT / path).exists(), path
