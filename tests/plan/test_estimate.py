"""Memory of a device by arithmetic: beside the compiler's account, and part by part."""

import dataclasses

import pytest

from t5x_llm.config import parse_flags
from t5x_llm.parallel import abstract_mesh
from t5x_llm.plan.estimate import estimate
from t5x_llm.plan.gpus import parse_machine
from t5x_llm.plan.of_run import reckon_run
from t5x_llm.run.assembled import assemble
from t5x_llm.run.config import load_run

GIB = 2**30
ONE = ("Loop.batch_size=256", "Loop.microbatches=1", "Run.remat='save_attention_up'")
V5E = ("configs/meshes/v5e_256.gin", "MeshConfig.data=1", "MeshConfig.fsdp=256")
V6E = ("configs/meshes/v6e_256.gin", "Evaluation.batch_size=256", "Loop.microbatches=2")
# GiB of a device that libtpu's account has for the whole step, docs/planner.md: recipe, devices,
# changes, GiB.
COMPILED = [
    ("llama2_7b", 64, ONE, 39.7),
    ("llama2_7b", 256, (*V5E, "Run.remat='save_attention_up'"), 11.2),
    ("llama2_13b", 64, (), 79.6),
    ("llama2_70b", 128, (), 59.1),
    ("llama2_70b", 256, (*V6E, "Run.remat='full'"), 21.8),
    ("palm_62b", 512, (), 13.2),
    ("palm_540b", 3072, (), 16.1),
    ("bloom_176b", 512, (), 50.6),
    ("glm_130b", 512, (), 61.6),
    ("yuan2_102b", 512, (), 64.8),
    ("mixtral_8x7b", 64, (), 54.0),
    ("yuan2_2_1b", 64, (), 45.7),
    ("t5_11b", 128, (), 8.9),
]


def run_of(recipe, *changes):
    files = [f"configs/recipes/{recipe}.gin", *(x for x in changes if x.endswith(".gin"))]
    flags = [f"--gin_file={file}" for file in files]
    return load_run(parse_flags([*flags, *(f"--gin.{x}" for x in changes if "=" in x)]))[0]


def of(run, devices, lanes=None):
    return estimate(assemble(run, abstract_mesh(run.mesh, devices)), lanes)


@pytest.mark.parametrize(("recipe", "devices", "changes", "gib"), COMPILED)
def test_the_estimate_is_the_compilers_within_a_tenth(recipe, devices, changes, gib):
    assert of(run_of(recipe, *changes), devices).total / GIB == pytest.approx(gib, rel=0.1)


def test_values_of_a_layer():
    """By hand: 8 rows of 16,384 on each of 2 devices; d 64, 4 heads of 16, feed-forward 192."""
    sizes = {"d_model": 64, "n_layers": 3, "n_heads": 4, "d_ff": 192, "max_length": 16384}
    changes = [f"Llama.{name}={size}" for name, size in sizes.items()]
    changes += ["Loop.batch_size=16", "Loop.sequence_length=16384", "Evaluation.batch_size=2"]
    changes += ["MeshConfig.fsdp=2", "Loop.microbatches=1"]
    changes += ["Policy.compute='bfloat16'", "Llama.n_kv_heads=None"]
    tokens, stream = 8 * 16384, 64 * 2
    # Query, key, value and context; what attention gives, which the next norm reads; gate and up.
    named = 4 * 64 * 2 + 64 * 2 + 2 * 192 * 2
    found = {
        remat: of(run_of("quickstart", *changes, f"Run.remat='{remat}'"), 2, lanes=1).layer
        for remat in ("full", "save_projections", "save_qkv", "none")
    }
    assert found["full"] == tokens * (2 * named + 2 * stream)
    assert found["none"] == found["save_projections"] == tokens * (named + 2 * stream)
    assert found["save_qkv"] == tokens * (2 * named - 3 * 64 * 2 + 2 * stream)


def test_experts_hold_a_row_for_every_choice():
    """A second choice of a token is another row of gate and up, and of their gradients."""
    run = run_of("mixtral_8x7b")
    one, two = (
        of(dataclasses.replace(run, model=dataclasses.replace(run.model, top_k=k)), 64).layer
        for k in (1, 2)
    )
    assert two - one == pytest.approx(2 * 2 * (2 * 32768) * 14336 * 2, rel=0.02)


def test_scores_with_learnt_biases_are_held_for_a_layer():
    """T5's 16 rows: 128 heads of 512 x 512, three times in float32, once in bfloat16."""
    found = of(run_of("t5_11b"), 128)
    assert found.layer == 16 * 128 * 512 * 512 * (3 * 4 + 2)
    # And three times the kernels of a layer of the encoder: four of attention, two behind them.
    kernels = 2 * 1024 * (4 * 128 * 128 + 2 * 65536)
    assert found.working - found.layer == pytest.approx(3 * kernels, rel=1e-3)


def test_narrow_heads_lie_padded_on_tpu_alone():
    """Yuan's heads of 64 take 128 lanes: four arrays a layer, 3 rows of 8,192 on a device."""
    run = run_of("yuan2_2_1b")
    tpu, other = of(run, 64), of(run, 64, lanes=1)
    assert tpu.activations - other.activations == 24 * 4 * 3 * 8192 * 2048 * 2
    assert of(run_of("llama2_7b"), 64) == of(run_of("llama2_7b"), 64, lanes=1)
    gpus = reckon_run(run, parse_machine("--slice", "h100-64"))[0]
    assert gpus.memory.activations == other.activations
