"""The state: the same on every mesh, placed as the rules say, saved and restored across meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from t5x_llm.checkpoint import CheckpointConfig, Checkpointer
from t5x_llm.core.errors import CheckpointError
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.model import Model
from t5x_llm.optim import Optimizer, Schedule
from t5x_llm.parallel import MeshConfig, make_mesh
from t5x_llm.train.state import (
    TrainState,
    abstract_state,
    init_state,
    place,
    state_from_params,
    with_shardings,
)
from t5x_llm.train.task import LmTask

FAMILY = Llama(vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64)
MODEL = Model(FAMILY.decoder())
TASK = LmTask(MODEL, 16, ("a",))


def transformation(name="adamw"):
    schedule = Schedule(warmup_steps=0)
    return Optimizer(name=name, schedule=schedule).build(10, MODEL.logical_axes())


def mesh_of(count, **axes):
    config = MeshConfig(**axes)
    return make_mesh(config, jax.devices()[:count]), config.rules()


def placement(tx, count, **axes):
    return place(TASK, tx, *mesh_of(count, **axes))


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_abstract_state_is_that_of_init():
    tx = transformation()
    state = init_state(TASK, tx, jax.random.key(0), placement(tx, 1))
    abstract = abstract_state(TASK, tx)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for x, a in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (x.shape, x.dtype) == (a.shape, a.dtype)
    assert state.step.dtype == jnp.int32 and int(state.step) == 0


def test_init_does_not_depend_on_the_mesh():
    tx = transformation()
    one = init_state(TASK, tx, jax.random.key(3), placement(tx, 1))
    many = init_state(TASK, tx, jax.random.key(3), placement(tx, 8, fsdp=4, tensor=2))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    kernel = many.params["group_0"]["block_0"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    moments = [x for x in jax.tree.leaves(many.opt_state) if x.shape == kernel.shape]
    assert moments and all(m.sharding == kernel.sharding for m in moments)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


@pytest.mark.parametrize("name", ["adamw", "palm_adafactor", "lamb", "muon"])
def test_saved_on_one_mesh_restored_on_another(tmp_path, params, name):
    tx = transformation(name)
    state = state_from_params(params, TASK, tx, placement(tx, 8, fsdp=4, tensor=2))
    marks = iter(range(1000))
    filled = jax.tree.map(lambda x: x + jnp.asarray(next(marks), x.dtype), state.opt_state)
    state = TrainState(jnp.int32(7), state.params, filled)
    keeper = Checkpointer(tmp_path, CheckpointConfig())
    keeper.save(7, state, {})
    keeper.wait()
    abstract = abstract_state(TASK, tx)
    for mesh, rules in (mesh_of(1), mesh_of(2), mesh_of(8, data=2, fsdp=4)):
        shardings = place(TASK, tx, mesh, rules).state
        got, _ = keeper.restore(with_shardings(abstract, shardings))
        assert same(got, state)
        assert jax.tree.structure(got) == jax.tree.structure(abstract)
        placed = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), got, shardings)
        assert all(jax.tree.leaves(placed))
    alone = keeper.restore_params(with_shardings(abstract.params, placement(tx, 1).state.params))
    assert same(alone, state.params)
    keeper.close()


def test_another_optimizer_is_named(tmp_path, params):
    state = state_from_params(params, TASK, adamw := transformation("adamw"), placement(adamw, 1))
    keeper = Checkpointer(tmp_path)
    keeper.save(1, state, {})
    keeper.wait()
    tx = transformation("lion")
    target = with_shardings(abstract_state(TASK, tx), placement(tx, 1).state)
    with pytest.raises(CheckpointError, match=r"opt_state\..*nu.*not in this run"):
        keeper.restore(target)
    keeper.close()


def test_state_around_given_parameters():
    tx = transformation()
    mesh, rules = mesh_of(8, fsdp=8)
    params = jax.tree.map(np.asarray, MODEL.init(jax.random.key(1)))
    state = state_from_params(params, TASK, tx, place(TASK, tx, mesh, rules))
    assert same(state.params, params) and int(state.step) == 0
    shardings = place(TASK, tx, mesh, rules).state
    assert jax.tree.map(lambda x: x.sharding, state.params) == shardings.params
