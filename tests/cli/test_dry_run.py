"""``--dry_run``: every part of the plan, for this machine's devices and for others'."""

import jax
import numpy as np
import pytest
import tiny

from t5x_llm.cli import main as command
from t5x_llm.config import parse_flags
from t5x_llm.core.units import size
from t5x_llm.parallel import make_mesh
from t5x_llm.plan.estimate import estimate
from t5x_llm.run.assembled import assemble
from t5x_llm.run.config import load_run
from t5x_llm.train.state import init_state

QUICKSTART = tiny.ROOT / "configs" / "recipes" / "quickstart.gin"


def plan(capfd, *flags):
    command.main(["train", "--dry_run", *flags])
    return capfd.readouterr().out


def test_unprepared(here, capfd):
    text = plan(capfd, "--gin_file=tiny.gin")
    titles = ("Config", "Parameters", "Precision", "Mesh", "Parameter shardings", "Mixture")
    for title in titles:
        assert f"== {title} ==" in text
    assert "not prepared yet" in text and "en               jsonl en.jsonl" in text
    assert "fsdp=8 (8 devices, cpu)" in text
    assert "run: begins from scratch" in text
    assert {p.name for p in here.iterdir()} == {"tiny.gin", "en.jsonl", "zh.jsonl"}


def test_parameters_that_the_mesh_does_not_divide_are_named(here, capfd):
    flags = ("--gin_file=tiny.gin", "--gin.MeshConfig.tensor=4")
    text = plan(capfd, *flags)
    assert "warning: group_0.block_0.attention.key.kernel [2, 32, 2, 8] takes" in text
    assert "'kv_heads', 2) is not divisible by MeshConfig.tensor = 4" in text
    assert "warning" not in plan(capfd, *flags, "--gin.MeshConfig.replication_tolerance=0.9")
    assert "warning" not in plan(capfd, "--gin_file=tiny.gin")


def test_prepared_and_finished(trained, capfd, monkeypatch):
    monkeypatch.chdir(trained[0])
    before = {p: p.stat().st_mtime_ns for p in trained[0].rglob("*")}
    text = plan(capfd, "--gin_file=run/operative_config.gin")
    assert "finished, step 8 of 8" in text and "documents" in text and "held out" in text
    assert "tokens of a step              256" in text
    text = plan(capfd, "--gin_file=tiny.gin", "--gin.Loop.steps=20")
    assert "would continue from step 8 of 20" in text
    assert before == {p: p.stat().st_mtime_ns for p in trained[0].rglob("*")}


def test_a_slice_that_is_not_here(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tiny.ROOT)
    text = plan(
        capfd,
        f"--gin.Data.store_dir='{tmp_path}/store'",
        f"--gin.Run.directory='{tmp_path}/run'",
        "--gin.TokenizerTraining.vocab_size=32000",
        f"--gin_file={QUICKSTART}",
        f"--gin_file={tiny.ROOT}/configs/meshes/v5e_256.gin",
        f"--gin_file={tiny.ROOT}/configs/models/llama/llama2_7b.gin",
        *("--gin.Loop.batch_size=256", "--gin.Evaluation.batch_size=256"),
        *("--gin.Loop.sequence_length=2048", "--gin.Run.remat='full'"),
        *("--gin.Optimizer.name='adamw'", "--gin.Optimizer.update_rms=None"),
    )
    assert "this machine has 8 devices; the plan is for 256" in text
    assert "total               6,738,415,616" in text
    # 4 bytes a parameter over 128, and the moments of Adam twice that; norms are whole everywhere.
    norms = (2 * 32 + 1) * 4096
    params = 4 * ((6_738_415_616 - norms) // 128 + norms)
    assert f"parameters       {size(params):>12}" in text
    assert f"optimizer state  {size(2 * params + 4 * 2):>12}" in text
    # 6 N + causal attention, N without the input table.
    flops = 6 * (6_738_415_616 - 32000 * 4096) + 6 * 32 * 2048 * 4096
    assert f"{flops:.4e}" in text


def test_state_bytes_are_those_of_a_real_state(here):
    flags = ["--gin_file=tiny.gin", "--gin.MeshConfig.tensor=2", "--gin.MeshConfig.fsdp=4"]
    run, _ = load_run(parse_flags(flags))
    made = assemble(run)
    state = init_state(made.task, made.tx, jax.random.key(0), made.placement)
    found = estimate(made)

    def held(tree):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

    assert found.params == found.gradients == held(state.params)
    assert found.optimizer == held(state.opt_state)


@pytest.mark.parametrize("remat", ["none", "full", "save_qkv"])
def test_activations_are_of_the_size_that_the_compiler_finds(here, remat):
    """Large rows, so that activations are what counts; the compiler may fuse, but not by much."""
    flags = ["--gin_file=tiny.gin", "--gin.Loop.batch_size=64", f"--gin.Run.remat='{remat}'"]
    flags += ["--gin.MeshConfig.fsdp=1", "--gin.Llama.n_layers=8", "--gin.Llama.d_ff=512"]
    run, _ = load_run(parse_flags(flags))
    made = assemble(run, make_mesh(run.mesh, jax.devices()[:1]))
    compiled = made.make_step(guarded=False).lower(made.state, made.batch).compile()
    used = compiled.memory_analysis().temp_size_in_bytes
    found = estimate(made)
    guess = found.activations + found.scores + found.casts + found.working + found.gradients
    assert 0.3 < guess / used < 3, (guess, used)
    assert np.isfinite(guess)
