"""The Dockerfiles: what they copy is there, and their steps make a package that runs."""

import fnmatch
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
HOME = "/opt/t5x_llm"


def instructions(path):
    """(INSTRUCTION, arguments) of each, without comments."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def in_context(name):
    """Whether .dockerignore lets a path through."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.lstrip("!")
        inside = name == pattern or name.startswith(f"{pattern}/")
        if line and line[0] != "#" and (inside or fnmatch.fnmatch(name, pattern)):
            kept = line.startswith("!")
    return kept


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_dockerfile(path):
    steps = instructions(path)
    assert steps[0][0] == "FROM" and steps[-1] == ("ENTRYPOINT", '["t5x-llm"]')
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = re.search(r'SUPPORTED="([\d.]+)', (ROOT / "scripts" / "interpreter.sh").read_text())[1]
    assert f"python:{newest}-slim" in steps[0][1]
    for verb, rest in steps:
        if verb == "COPY":
            for name in rest.split()[:-1]:
                assert (ROOT / name).exists() and in_context(name), name
        for extra in re.findall(r"--extra (\S+)", rest):
            assert extra in project["optional-dependencies"], extra
    accelerator = {"tpu": "tpu", "gpu": "cuda"}[path.name.split(".")[0]]
    assert any(f"--extra {accelerator} " in rest for _, rest in steps)
    assert not in_context(".venv") and not in_context("runs") and not in_context(".git")


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES[-1:], ids=lambda p: p.name)
def test_steps_make_a_package_that_runs(path, tmp_path):
    """Of the TPU image alone: CUDA's packages are several GB."""
    home, venv = tmp_path / "home", tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    env = os.environ | {"PATH": f"{venv}/bin:{os.environ['PATH']}", "JAX_PLATFORMS": "cpu"}
    for name in ("PYTHONPATH", "XLA_FLAGS"):
        env.pop(name, None)
    place = home
    for verb, rest in instructions(path):
        rest = rest.replace(HOME, str(home)).replace("--system", f"--python {venv}/bin/python")
        if verb == "COPY":
            *names, target = rest.split()
            for name in names:
                into = pathlib.Path(target)
                if (ROOT / name).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / name, into, dirs_exist_ok=True, ignore=ignored)
                else:
                    into.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / name, into)
        elif verb == "WORKDIR":
            place = pathlib.Path(rest if rest.startswith(str(home)) else f"{tmp_path}{rest}")
            place.mkdir(parents=True, exist_ok=True)
        elif verb == "RUN":
            subprocess.run(["sh", "-ec", rest], cwd=place, env=env, check=True)
    command = ["t5x-llm", "train", "--gin_file=configs/recipes/quickstart.gin", "--dry_run"]
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=True)
    assert "== Run directory ==" in done.stdout
