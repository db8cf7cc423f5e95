"""Completion scripts, asked as the shells ask them."""

import importlib
import shutil
import subprocess
import sys

import pytest

from t5x_llm.cli import data
from t5x_llm.cli.command_line import FILES, command_lines
from t5x_llm.cli.main import COMMANDS, GROUPS, usage

# What is typed, "=" apart as bash has it, to what is offered, all of it or some.
CASES = [
    ("pl", {"plan"}, True),
    ("data ", set(data.COMMANDS), True),
    ("plan --sea", {"--search"}, True),
    ("train --gin.Loo", {"--gin.Loop."}, True),
    ("train --gin.Loop.ste", {"--gin.Loop.steps="}, True),
    ("train --gin.en/Source.fie", {"--gin.en/Source.field="}, True),
    ("train --resume ", {"auto", "never", "always", "anew"}, True),
    ("delta make --kind ", {"bits", "sum"}, True),
    ("delta make --gr", set(), True),
    ("delta apply --gr", {"--grown"}, True),
    ("fields Evaluati", {"Evaluation"}, True),
    ("generate --gin.Lo", set(), True),
    ("prepare --g", {"--gin_file", "--gin."}, False),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    directory = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "fish"):
        argv = [sys.executable, "-m", "t5x_llm.cli.main", "completion", shell]
        text = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120).stdout
        (directory / shell).write_text(text)
    (directory / "recipes").mkdir()
    (directory / "recipes" / "mine.gin").write_text("")
    return directory


def bash(scripts, typed):
    words = ["t5x-llm"]
    for word in typed.split(" "):
        name, equals, value = word.partition("=")
        words += [name, "=", value] if equals else [word]
    program = 'source ./bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _t5x_llm; '
    program += 'printf "%s\\n" "${COMPREPLY[@]}"; complete -p t5x-llm >/dev/null'
    return offered_by(scripts, "bash", "--norc", "-c", program, "bash", *words)


def fish(scripts, typed):
    program = f"source ./fish; complete -C 't5x-llm {typed}'"
    return offered_by(scripts, "fish", "--no-config", "-c", program)


def offered_by(scripts, *argv):
    done = subprocess.run(argv, cwd=scripts, check=True, capture_output=True, text=True, timeout=30)
    assert not done.stderr
    return {line.split("\t")[0] for line in done.stdout.splitlines() if line}


# Bash is everywhere; fish is asked too where it is installed.
SHELLS = {"bash": bash} | ({"fish": fish} if shutil.which("fish") else {})


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("typed, offered, all_of_it", CASES, ids=[c[0] for c in CASES])
def test_words(scripts, shell, typed, offered, all_of_it):
    found = SHELLS[shell](scripts, typed)
    assert found == offered if all_of_it else found >= offered


def test_bash_files_and_values_after_an_equals_sign(scripts):
    assert bash(scripts, "train --gin_file=recipes/mi") == {"recipes/mine.gin"}
    assert bash(scripts, "train --gin_file recipes/mi") == {"recipes/mine.gin"}
    assert bash(scripts, "train --resume=a") == {"auto", "always", "anew"}
    assert bash(scripts, "export re") == {"recipes"}
    assert bash(scripts, "plan --tokens ") == set()


def test_every_flag_of_every_parser_is_there():
    lines = {line.path: line for line in command_lines()}
    assert {path[0] for path in lines} == set(COMMANDS)
    assert len(COMMANDS) == sum(map(len, GROUPS.values()))
    assert all(f"\n{group}:\n" in usage() for group in GROUPS)
    for name, (module, _) in COMMANDS.items():
        if name == "data":
            continue
        parser = importlib.import_module(f"t5x_llm.cli.{module}").build_parser()
        own = {a.option_strings[-1] for a in parser._actions if a.option_strings}
        found = {flag.name: flag for flag in lines[name,].flags}
        assert own <= found.keys() and ("--gin_file" in found) == lines[name,].gin
        for action in parser._actions:
            if action.option_strings and action.choices:
                assert found[action.option_strings[-1]].values == tuple(action.choices)
    assert {f.values for f in lines["train",].flags if f.name == "--gin_file"} == {FILES}


def test_help_imports_no_jax():
    program = "import sys; from t5x_llm.cli.main import main; main(['--help'])\n"
    program += "assert not {'jax', 'numpy', 'gin'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)
