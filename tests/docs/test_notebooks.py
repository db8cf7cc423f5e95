"""Every notebook runs from its first cell to its last in one fresh process, and is kept bare."""

import json
import pathlib
import subprocess
import sys

import pytest

from t5x_llm import api

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cli"))

import tiny  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What a kernel does: one namespace, cell by cell; a cell that fails is named.
RUNNER = """
import json, sys
names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
print(json.dumps([names["result"].step, names["difference"], names["held_out"]]))
"""


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.extended
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path):
    env = {**tiny.environment(), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(path)],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    step, difference, held_out = json.loads(done.stdout.splitlines()[-1])
    assert step == 30 and abs(difference) < 0.02
    assert held_out["30"] < held_out["15"]
    assert "Did you mean Loop.steps" in done.stdout
    saved = api.load_run(tmp_path / "runs" / "notebook")
    assert saved.config.loop.steps == 30 and saved.config.data.name == "notebook"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_bare_and_small(path):
    assert path.stat().st_size < 20_000
    found = cells(path)
    assert len({cell["id"] for cell in found}) == len(found)
    for cell in found:
        assert "outputs" not in cell or (cell["outputs"], cell["execution_count"]) == ([], None)


def test_every_function_of_the_api_is_in_one():
    used = "".join("".join(c["source"]) for path in NOTEBOOKS for c in cells(path))
    functions = {name for name in api.__all__ if name.islower()}
    assert {name for name in functions if f"api.{name}(" in used} == functions
