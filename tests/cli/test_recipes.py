"""``train.py --gin_file=<recipe> --dry_run`` of papers' recipes, for slices that are not here."""

import subprocess
import sys

import pytest
import tiny

from t5x_llm.cli import main as command

# A recipe: what its plan must say. Tokens of a step are the papers'.
PLANS = {
    "llama2_7b": ("6,738,415,616", "fsdp=64 (64 devices)", "4,194,304  (1024 rows of 4096"),
    "glm_130b": ("128,697,794,560", "fsdp=64 x tensor=8 (512 devices)", "8,650,752  (4224 rows"),
    "t5_11b": ("11,307,321,344", "fsdp=128 (128 devices)", "1,048,576  (2048 rows of 512"),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_recipe_has_a_plan(name, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tiny.ROOT)
    flags = [f"--gin.Run.directory='{tmp_path}/run'", f"--gin.Data.store_dir='{tmp_path}/store'"]
    command.main(["train", "--dry_run", f"--gin_file=configs/recipes/{name}.gin", *flags])
    text = capfd.readouterr().out
    for words in PLANS[name]:
        assert words in text
    assert "begins from scratch" in text


def test_train_py(tmp_path):
    flags = ["--gin_file=configs/recipes/mamba_1_4b.gin", f"--gin.Run.directory='{tmp_path}/run'"]
    run = subprocess.run(
        [sys.executable, "train.py", "--dry_run", *flags],
        cwd=tiny.ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "total               1,372,178,432" in run.stdout
    assert not (tmp_path / "run").exists()
