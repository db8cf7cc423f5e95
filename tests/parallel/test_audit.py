"""Parameters that lie in fewer pieces than asked for are named, if they matter."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from t5x_llm.core.errors import ConfigError
from t5x_llm.parallel import AXES, MeshConfig, make_mesh, param_shardings, replicated_beyond

AXES_OF = {
    "embed": ("vocab", "embed"),
    "key": ("layers", "embed", "kv_heads", "head"),
    "up": ("layers", "embed", "mlp"),
    "scale": ("layers", "norm"),
}


def shapes(vocab=64, width=32, kv_heads=2):
    return {
        "embed": jax.ShapeDtypeStruct((vocab, width), jnp.float32),
        "key": jax.ShapeDtypeStruct((2, width, kv_heads, 8), jnp.float32),
        "up": jax.ShapeDtypeStruct((2, width, 64), jnp.float32),
        "scale": jax.ShapeDtypeStruct((2, width), jnp.float32),
    }


def found(config, tolerance=0.0, **sizes):
    return replicated_beyond(AXES_OF, shapes(**sizes), make_mesh(config), config.rules(), tolerance)


def test_nothing_is_said_where_all_divides():
    assert found(MeshConfig(fsdp=4, tensor=2)) == []
    assert found(MeshConfig(strategy="data", data=8, fsdp=1)) == []  # whole because it is asked


def test_excess_is_what_devices_hold_beyond_their_share():
    config = MeshConfig(fsdp=4, tensor=2)
    (one,) = found(config, vocab=63)
    mesh, tree = make_mesh(config), shapes(vocab=63)
    held = param_shardings(AXES_OF, tree, mesh, config.rules())["embed"].shard_shape((63, 32))
    assert one.path == "embed" and one.held == 4 * math.prod(held)
    assert one.wanted == 63 * 32 * 4 // 8 and one.excess == one.held - one.wanted
    text = str(one)
    for word in ("embed [63, 32]", "'vocab', 63", "MeshConfig.tensor = 2", "Make it 64"):
        assert word in text, text
    assert "('params.vocab', None)" in text


def test_what_is_told_to_be_whole_is_not_named():
    config = MeshConfig(fsdp=4, tensor=2, overrides=(("params.vocab", None),))
    assert found(config, vocab=63) == []


def test_the_largest_comes_first_and_the_tolerance_is_of_a_device_s_share():
    config = MeshConfig(fsdp=1, tensor=8)
    both = found(config, vocab=63, kv_heads=1)
    assert [each.path for each in both] == ["embed", "key"]
    share = sum(math.prod(x.shape) * 4 for x in shapes(vocab=63, kv_heads=1).values())
    share = share / 8 + 2 * 32 * 4 * 7 / 8  # the norms' scales are meant to be whole
    excess = sum(each.excess for each in both)
    assert found(config, 1.001 * excess / share, vocab=63, kv_heads=1) == []
    assert found(config, 0.999 * excess / share, vocab=63, kv_heads=1) == both


def test_a_mesh_that_is_not_here():
    """LLaMA's 32,000 rows on 3 ways of tensor parallelism."""
    sizes = {axis: {"tensor": 3, "fsdp": 64}.get(axis, 1) for axis in AXES}
    mesh = AbstractMesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
    )
    table = {"embed": jax.ShapeDtypeStruct((32_000, 4096), jnp.float32)}
    (one,) = replicated_beyond(
        {"embed": AXES_OF["embed"]}, table, mesh, MeshConfig(fsdp=64, tensor=3).rules()
    )
    assert one.held == 32_000 * 4096 * 4 // 64 and "Make it 32001" in str(one)


def test_tolerance_is_checked():
    with pytest.raises(ConfigError, match="MeshConfig.replication_tolerance"):
        MeshConfig(replication_tolerance=-0.1)
