"""The plan of the quickstart recipe for a slice, by the TPU compiler; needs libtpu."""

import importlib.util
import json
import os
import subprocess
import sys

import commands
import pytest

RECIPE = ["--gin_file=configs/recipes/quickstart.gin", "--gin.Loop.batch_size=32"]
RECIPE += ["--gin.Evaluation.batch_size=16"]


def plan(*words):
    argv = [sys.executable, "-m", "t5x_llm.cli.main", "plan", *RECIPE, *words]
    env = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.run(argv, capture_output=True, text=True, env=env)


def test_a_slice_that_is_none():
    done = commands.run("plan", *RECIPE, "--slice=v5p-7")
    assert done.returncode == 2 and "--slice = 'v5p-7'" in done.stderr


needs_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="make test-slow brings libtpu"
)


@pytest.mark.slow
@needs_libtpu
def test_the_quickstart_on_v5e_16():
    mesh = ["--gin.MeshConfig.data=2", "--gin.MeshConfig.fsdp=4", "--gin.MeshConfig.tensor=2"]
    done = plan("--slice=v5e-16", "--json", "--tokens=1e9", "--price=1.2", *mesh)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["fits"] and found["over_bytes"] < 0
    assert found["mesh"]["fsdp"] == 4 and found["tokens_per_step"] == 32 * 256
    # Float32 parameters, a fourth or an eighth of them on a device; two moments.
    memory = found["memory"]
    assert 1_450_624 * 4 / 16 < memory["parameters"] < 1_450_624 * 4 / 3
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=0.01)
    kinds = {(c["kind"], tuple(c["axes"])) for c in found["collectives"]}
    assert ("all-gather", ("fsdp",)) in kinds and ("all-reduce", ("tensor",)) in kinds
    assert 0 < found["mfu"] < 1 and found["days"] > 0 and found["cost"] > 0
    assert found["time"]["unknown"] == [] and found["time"]["kernels"] > 0
    assert any("t5x_llm/" in b["line"] for b in found["buffers"])


@pytest.mark.slow
@needs_libtpu
def test_what_does_not_fit_says_by_how_much():
    sizes = ["--gin.Llama.d_model=8192", "--gin.Llama.n_layers=40", "--gin.Llama.d_ff=32768"]
    done = plan("--slice=v5e-4", "--gin.MeshConfig.fsdp=4", *sizes)
    assert done.returncode == 1, done.stderr[-3000:]
    assert done.stderr == ""  # libtpu's own warnings among them
    assert "DOES NOT FIT" in done.stdout and "Run.remat" in done.stdout
