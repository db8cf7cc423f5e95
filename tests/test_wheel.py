"""The wheel: what it holds, and that it works from an empty environment outside a checkout."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BUILD = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
SMALL = [
    "--gin.Loop.steps=3",
    "--gin.Loop.batch_size=2",
    "--gin.Loop.sequence_length=64",
    "--gin.Evaluation.limit=500",
    "--gin.Samples.every=0",
    "--gin.Schedule.warmup_steps=1",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this tree, built from a copy by setuptools alone."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("t5x_llm", "configs", "data", "scripts"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.splitlines()[-1]


def test_wheel_holds_the_package_and_what_ships_with_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        described = "".join(
            archive.read(name).decode()
            for name in sorted(names)
            if name.endswith((".dist-info/METADATA", ".dist-info/entry_points.txt"))
        )

    def tree(folder):
        kept = (p for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix != ".pyc")
        return {p.relative_to(ROOT).as_posix() for p in kept}

    code = {name for name in tree("t5x_llm") if "__pycache__" not in name}
    shipped = {f"t5x_llm/shipped/{name}" for name in tree("configs") | tree("data")}
    assert code | shipped == {name for name in names if ".dist-info/" not in name}
    assert "Name: t5x-llm\n" in described and "t5x-llm = t5x_llm.cli.main:main" in described
    extras = {line[16:] for line in described.splitlines() if line.startswith("Provides-Extra: ")}
    assert {"clean", "serve", "eval", "tpu", "cuda", "wandb", "mlflow", "hf", "beam"} == extras


@pytest.mark.slow
def test_wheel_trains_from_an_empty_environment(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    bin_, here = tmp_path / "venv" / "bin", tmp_path / "here"
    here.mkdir()
    subprocess.run([bin_ / "pip", "install", "--quiet", wheel], check=True)
    kept = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "XLA_FLAGS")
    }
    env = kept | {"JAX_PLATFORMS": "cpu"}

    def run(*argv):
        done = subprocess.run(argv, cwd=here, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run(bin_ / "t5x-llm", "train", "--gin_file=configs/recipes/quickstart.gin", *SMALL)
    assert (here / "runs" / "quickstart" / "hf" / "model.safetensors").exists()
    run(bin_ / "t5x-llm", "generate", "runs/quickstart", "--prompt", "春")
    # What init writes names shipped text by its short path, and trains.
    run(bin_ / "t5x-llm", "init", "mine.gin")
    assert "'data/quickstart/en_sotu.jsonl'" in (here / "mine.gin").read_text()
    run(bin_ / "python", "-m", "t5x_llm", "train", "--gin_file=mine.gin", "--dry_run")
    run(
        bin_ / "python", "-c", "from t5x_llm import api; api.load_run('configs/recipes/t5_11b.gin')"
    )
