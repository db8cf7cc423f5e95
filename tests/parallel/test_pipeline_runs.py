"""Pipelines on eight devices train as one device does, and say no more to each other than meant."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strategy_runs import Trained, assert_same, make_batch, prepared

from t5x_llm.checkpoint import CheckpointConfig, Checkpointer
from t5x_llm.models.families.jamba import Jamba
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.families.mamba import Mamba
from t5x_llm.models.families.mixtral import Mixtral
from t5x_llm.models.families.yuan import Yuan
from t5x_llm.parallel import MeshConfig, Pipeline
from t5x_llm.train.state import TrainState

SIZES = dict(vocab_size=64, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64)


def with_router_losses(config):
    """The decoder with both losses of routers, large enough to tell."""

    def block(b):
        if not hasattr(b.feed_forward, "router"):
            return b
        router = dataclasses.replace(b.feed_forward.router, balance_weight=0.1, z_weight=0.01)
        layer = dataclasses.replace(b.feed_forward, router=router)
        return dataclasses.replace(b, feed_forward=layer)

    groups = tuple(
        dataclasses.replace(g, blocks=tuple(map(block, g.blocks))) for g in config.groups
    )
    return dataclasses.replace(config, groups=groups)


@functools.cache
def family(name, layers):
    if name == "dense":
        return Llama(**SIZES, n_layers=layers)
    if name == "moe":
        config = Mixtral(**SIZES, n_layers=layers, n_experts=4, top_k=2).decoder()
        return with_router_losses(config)
    if name == "mamba":
        return Mamba(vocab_size=64, d_model=32, n_layers=layers, dt_rank=4, tied=False)
    if name == "jamba":  # a pattern of two unlike layers
        config = Jamba(
            **SIZES, n_layers=layers, attention_period=2, attention_offset=1, n_experts=4, dt_rank=4
        ).decoder()
        return with_router_losses(config)
    if name == "yuan":
        return Yuan(vocab_size=64, d_model=32, n_layers=layers, n_heads=4, d_ff=64)
    return dataclasses.replace(Llama(**SIZES, n_layers=layers).decoder(), neftune=5.0)


@functools.cache
def fresh(name, layers):
    """Parameters, as one device draws them: the mesh does not change them."""
    model = prepared(MeshConfig(fsdp=1), family(name, layers), jax.devices()[:1]).model
    return jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0)))


def train(config, name, layers, rows, devices=None, microbatches=1):
    """One step; what is compiled is the step alone."""
    parts = prepared(config, family(name, layers), devices, microbatches, "full")
    batch = make_batch(rows, 32)
    compiled = parts.step.lower(parts.abstract(), batch).compile()
    params = fresh(name, layers)
    state = TrainState(jnp.zeros((), jnp.int32), params, parts.tx.init(params))
    places, rows_at = compiled.input_shardings[0]
    after, metrics = compiled(jax.device_put(state, places), jax.device_put(batch, rows_at))
    whole = jax.tree.map(np.asarray, (after.params, after.opt_state[1][0].mu, metrics))
    return Trained(*whole, compiled.as_text(), dict(parts.mesh.shape))


@functools.cache
def reference(name, layers, rows, microbatches):
    """One device; experts are balanced within a microbatch, so that it has as many."""
    mesh = MeshConfig(fsdp=1)
    parts = microbatches if name in ("moe", "jamba") else 1
    return train(mesh, name, layers, rows, devices=jax.devices()[:1], microbatches=parts)


def over_stages(run):
    return [c for c in run.collectives if "stage" in c.axes and c.bytes > 256]


# name, layers, pipeline, other axes
QUICK = [
    ("dense", 4, Pipeline(2, 2), dict(stage=2, data=2, tensor=2)),
]
SLOW = [
    ("mamba", 4, Pipeline(4), dict(stage=4, fsdp=2)),
    ("dense", 4, Pipeline(2, 1, (1, 3)), dict(stage=2, fsdp=4)),
    ("moe", 4, Pipeline(2), dict(stage=2, fsdp=4)),
    ("dense", 8, Pipeline(4, 2), dict(stage=4, fsdp=2)),
    ("dense", 8, Pipeline(4, 2), dict(stage=4, tensor=2, strategy="zero1")),
    ("dense", 5, Pipeline(4, 1, (2, 3)), dict(stage=2, fsdp=2, tensor=2)),
    ("dense", 7, Pipeline(4, 2, (2, 1, 1, 3)), dict(stage=2, data=2, tensor=2)),
    ("dense", 6, Pipeline(8, 1, (1, 2, 2, 1)), dict(stage=4, tensor=2)),
    ("dense", 4, Pipeline(1), dict(stage=2, fsdp=4)),
    ("dense", 4, Pipeline(2, 2, remat=True), dict(stage=2, fsdp=2, tensor=2)),
    ("dense", 4, Pipeline(3), dict(stage=2, data=2, context=2)),
    ("dense", 4, Pipeline(2), dict(replica=2, stage=2, fsdp=2)),
    ("dense", 4, Pipeline(2), dict(stage=2, tensor=4, sequence_sharded=True)),
    ("neftune", 4, Pipeline(2), dict(stage=2, fsdp=4)),
    ("yuan", 4, Pipeline(4, 2), dict(stage=2, fsdp=2, tensor=2)),
    ("moe", 8, Pipeline(4, 2), dict(stage=4, fsdp=2)),
    ("moe", 4, Pipeline(2), dict(stage=2, expert=2, data=2)),
    ("moe", 5, Pipeline(2, 1, (3, 2)), dict(stage=2, expert=2, tensor=2)),
    ("mamba", 8, Pipeline(4, 2), dict(stage=2, data=2, tensor=2)),
    ("mamba", 6, Pipeline(4, 1, (1, 2, 2, 1)), dict(stage=4, data=2)),
    ("jamba", 8, Pipeline(4, 1), dict(stage=4, fsdp=2)),
    ("jamba", 8, Pipeline(2, 2), dict(stage=2, expert=2, tensor=2)),
    ("jamba", 8, Pipeline(2, 1, (2, 6)), dict(stage=2, fsdp=4)),
]


def name_of(case):
    name, layers, pipeline, axes = case
    sizes = "_".join(f"{axis}{size}" for axis, size in axes.items())
    return f"{name}{layers}_m{pipeline.microbatches}_v{pipeline.repeats}_{sizes}"


@pytest.mark.parametrize(
    "case",
    [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)],
    ids=lambda case: name_of(case),
)
def test_losses_gradients_and_parameters_are_those_of_one_device(case):
    name, layers, pipeline, axes = case
    config = MeshConfig(**{"fsdp": 1} | axes, pipeline=pipeline)
    rows = 12 if 8 % pipeline.microbatches else 8
    got = train(config, name, layers, rows)
    assert_same(got, reference(name, layers, rows, pipeline.microbatches))
    hidden = 4 * rows * 32 * 32 + 256  # a few scalars may ride along
    for each in over_stages(got):
        # Layers go round by permutation alone. At the borders the hidden states (or their
        # gradients) are told to all stages, and what shares of the vocabulary add up to.
        assert each.kind in ("collective-permute", "all-reduce", "all-to-all"), each
        assert each.bytes <= hidden, each


def test_a_checkpoint_is_restored_with_other_stages_and_with_none(tmp_path):
    """Nothing of a pipeline is in the state: the same tree, in other pieces."""
    meshes = [
        MeshConfig(fsdp=2, stage=4, pipeline=Pipeline(4, 2)),
        MeshConfig(fsdp=4, stage=2, pipeline=Pipeline(4, 1, (3, 5))),
        MeshConfig(fsdp=8),
    ]
    states = []
    for config in meshes:
        parts = prepared(config, family("dense", 8))
        states.append(parts.abstract())
    params = fresh("dense", 8)
    state = TrainState(jnp.zeros((), jnp.int32), params, parts.tx.init(params))
    first = jax.device_put(state, jax.tree.map(lambda x: x.sharding, states[0]))
    kernel = first.params["group_0"]["block_0"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 16, 64)  # 8 layers over 4 stages
    keeper = Checkpointer(tmp_path / "c", CheckpointConfig())
    assert keeper.save(1, first, {})
    keeper.close()
    for wanted in states:
        got, _ = Checkpointer(tmp_path / "c", read_only=True).restore(wanted)
        jax.tree.map(np.testing.assert_array_equal, got, state)
        jax.tree.map(lambda x, y: x.sharding == y.sharding or pytest.fail(str(x)), got, wanted)


PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:]
import conftest  # the flags that compile faster
from t5x_llm.parallel import initialize
assert initialize()
import jax, numpy as np
import test_pipeline_runs as runs
from t5x_llm.parallel import MeshConfig, Pipeline, global_batch

config = MeshConfig(fsdp=1, stage=2, tensor=2, pipeline=Pipeline(2, 2))
parts = runs.prepared(config, runs.family("dense", 4))
mesh, rules = parts.mesh, parts.rules
stages = [{d.process_index for d in mesh.devices[0, 0, 0, s].flat} for s in range(2)]
assert stages == [{0}, {1}], stages
batch = runs.make_batch(8, 32)
batch = global_batch(lambda r: jax.tree.map(lambda x: x[r], batch), 8, mesh, rules)
state, metrics = parts.step(parts.init(), batch)
print("STEP", float(metrics["loss"]), float(metrics["grad_norm"]))
"""


@pytest.mark.slow
def test_two_processes_each_a_stage(two_processes):
    here = pathlib.Path(__file__).parent
    results = two_processes(PROGRAM, str(here), str(here.parent), timeout=900)
    expected = reference("dense", 4, 8, 1).metrics
    for out in results:
        loss, norm = next(x for x in out.splitlines() if x.startswith("STEP")).split()[1:]
        np.testing.assert_allclose(float(loss), expected["loss"], rtol=2e-5)
        np.testing.assert_allclose(float(norm), expected["grad_norm"], rtol=2e-5)
