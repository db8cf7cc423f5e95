"""`make` takes the newest Python that works, and replaces an environment only when it must."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def script(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def answers(path, number):
    """An interpreter that the probe finds sound, or that says what is wrong with it."""
    return script(path, f"echo '{number}'" if number[0] == "-" else f"echo '+ {number} {path}'")


def find(home, *arguments, path=""):
    env = {"HOME": str(home), "PATH": f"{path}:{os.defpath}", "PYENV_ROOT": f"{home}/.pyenv"}
    return subprocess.run(
        ["sh", ROOT / "scripts" / "interpreter.sh", *arguments],
        env=env, capture_output=True, text=True,
    )  # fmt: skip


def test_newest_that_works(tmp_path):
    shims, versions = tmp_path / "shims", tmp_path / ".pyenv" / "versions"
    script(shims / "python3.13", "echo 'pyenv: python3.13: command not found' >&2; exit 127")
    answers(shims / "python3.12", "- 3.12.9 is a free-threaded build")
    old = answers(versions / "3.12.1" / "bin" / "python3.12", "0312001")
    assert find(tmp_path, path=shims).stdout.split() == [old]
    new = answers(versions / "3.12.10" / "bin" / "python3.12", "0312010")
    assert find(tmp_path, path=shims).stdout.split() == [new]
    newest = answers(versions / "3.13.0" / "bin" / "python3.13", "0313000")
    assert find(tmp_path, path=shims).stdout.split() == [newest]


def test_the_one_that_is_named(tmp_path):
    # Of an environment it is the interpreter below, so that it can be made again.
    found = find(tmp_path, sys.executable)
    base = getattr(sys, "_base_executable", sys.executable)
    assert os.path.realpath(found.stdout.strip()) == os.path.realpath(base)
    bad = answers(tmp_path / "python", "- 3.10.2 is not one of 3.13, 3.12, 3.11")
    refused = find(tmp_path, bad)
    assert refused.returncode == 1 and not refused.stdout
    assert f"PYTHON={bad}: 3.10.2 is not one of" in refused.stderr
    assert "does not run here" in find(tmp_path, str(tmp_path / "none")).stderr


@pytest.mark.parametrize(
    "has, chosen, replaced, said",
    [
        (None, "", True, "the newest supported Python of this machine"),
        (None, "python9", True, "as PYTHON=python9 says"),
        ("3.11", "", False, "is of Python 3.11 and is kept; this machine has 3.13"),
        ("3.11", "python9", True, "of Python 3.11 is replaced"),
        ("3.13", "", False, ""),
        ("3.13", "python9", False, ""),
        ("", "", True, "of Python that is no more is replaced"),
    ],
)
def test_an_environment_is_kept_or_replaced(tmp_path, has, chosen, replaced, said):
    uv, venv = script(tmp_path / "uv", 'echo "uv $*"'), tmp_path / "venv"
    python = script(tmp_path / "python", "echo 3.13")
    if has is not None:
        script(venv / "bin" / "python", f"echo {has}" if has else "exit 127")
        (venv / "pyvenv.cfg").touch()

    def run(*arguments):
        command = ["sh", ROOT / "scripts" / "environment.sh", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    out = run("make", uv, venv, python, chosen)
    assert (f"uv venv --quiet --clear --python {python} {venv}" in out) is replaced
    assert said in out and bool(said) is bool(out)
    # make asks for it again only where it is replaced.
    assert (run("same", venv, python if chosen else "") == "same\n") is not replaced
