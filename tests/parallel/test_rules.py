"""Logical axes to specs, the context, and the shardings a traced function really gets."""

import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from t5x_llm.core.errors import ConfigError
from t5x_llm.parallel import (
    AXES,
    MeshConfig,
    check_divisible,
    compute_spec,
    constrain,
    current,
    make_mesh,
    platform,
    resolve,
    strategy_rules,
    use,
)

RULES = strategy_rules("fsdp")


def mesh_of(**sizes):
    return make_mesh(MeshConfig(**{"fsdp": 1, **sizes}))


@pytest.mark.parametrize(
    ("sizes", "axes", "shape", "expected"),
    [
        (
            {"fsdp": 4, "tensor": 2},
            ("embed", "heads", "head"),
            (32, 4, 8),
            ("fsdp", "tensor", None),
        ),
        ({"fsdp": 8}, ("vocab", "embed"), (64, 32), (None, "fsdp")),
        # Multi-query attention: one kv head stays whole.
        ({"fsdp": 4, "tensor": 2}, ("embed", "kv_heads", "head"), (32, 1, 8), ("fsdp", None, None)),
        # Two dimensions want the same mesh axis: the first has it.
        ({"fsdp": 1, "tensor": 8}, ("vocab", "mlp"), (64, 64), ("tensor", None)),
        # ... unless it does not divide the first.
        ({"fsdp": 1, "tensor": 8}, ("vocab", "mlp"), (63, 64), (None, "tensor")),
        ({"fsdp": 8}, ("layers", None, "norm"), (8, 8, 8), (None, None, None)),
    ],
)
def test_parameter_specs(sizes, axes, shape, expected):
    assert resolve(RULES.params, axes, mesh_of(**sizes), shape) == PartitionSpec(*expected)


def test_batch_takes_the_axes_that_divide_it():
    mesh = mesh_of(data=2, fsdp=4)
    specs = [resolve(RULES.compute, ("batch",), mesh, (n,))[0] for n in (8, 6, 4, 3)]
    assert specs == [("data", "fsdp"), "data", "data", None]


def test_unknown_logical_axis_is_named():
    with pytest.raises(ValueError, match="did you mean 'kv_heads'"):
        resolve(RULES.compute, ("kv_head",), mesh_of(fsdp=8))
    with pytest.raises(ValueError, match="do not name the dimensions"):
        resolve(RULES.compute, ("batch",), mesh_of(fsdp=8), (4, 4))


def test_data_strategy_keeps_parameters_whole_but_for_tensor():
    mesh = mesh_of(data=4, tensor=2)
    table = strategy_rules("data").params
    assert resolve(table, ("embed", "mlp"), mesh, (32, 64)) == PartitionSpec(None, "tensor")


def test_overrides_replace_one_rule():
    rules = strategy_rules("fsdp", (("params.vocab", None), ("compute.length", ("tensor",))))
    mesh = mesh_of(fsdp=4, tensor=2)
    assert resolve(rules.params, ("vocab", "embed"), mesh) == PartitionSpec(None, "fsdp")
    assert resolve(rules.compute, ("length",), mesh) == PartitionSpec("tensor")
    assert rules.params["mlp"] == "tensor"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((("params.vocab", "tensr"),), "'tensor'"),
        ((("vocab", "tensor"),), "params.NAME"),
        (("params.vocab",), "params.NAME"),
        ((("weights.vocab", None),), "params.NAME"),
    ],
)
def test_bad_overrides(overrides, message):
    with pytest.raises(ConfigError, match=message):
        MeshConfig(overrides=overrides)


def test_constrain_inside_jit_and_nothing_outside():
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    x = jnp.ones((8, 4, 6))
    assert current() is None
    assert constrain(x, ("batch", "length", "mlp")) is x

    @jax.jit
    def f(x):
        with use(mesh, RULES):
            assert current().mesh is mesh
            return constrain(x * 1, ("batch", "length", "mlp"))

    y = f(x)
    expected = PartitionSpec(("data", "fsdp"), None, "tensor")
    assert y.sharding.is_equivalent_to(jax.sharding.NamedSharding(mesh, expected), 3)
    np.testing.assert_array_equal(y, x)
    assert current() is None


def test_one_device_is_a_no_op(one_device):
    mesh = make_mesh(MeshConfig(), one_device)
    x = jnp.ones((3, 5))
    with use(mesh, RULES):
        assert compute_spec(("batch", "length"), x.shape) is None
        assert constrain(x, ("batch", "length")) is x


def test_context_nests_and_is_of_its_thread():
    outer, inner = mesh_of(fsdp=8), mesh_of(data=8)
    seen = []
    with use(outer, RULES):
        with pytest.raises(RuntimeError), use(inner, RULES):
            assert current().mesh is inner
            raise RuntimeError
        assert current().mesh is outer
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_platform_is_that_of_the_mesh():
    assert platform() == jax.default_backend() == "cpu"

    class Device(SimpleNamespace):
        __hash__ = object.__hash__

    device = Device(platform="tpu", id=0, process_index=0)
    described = Mesh(
        np.array([device], dtype=object).reshape((1,) * 7), AXES, axis_types=(AxisType.Auto,) * 7
    )
    with use(described, RULES):
        assert platform() == "tpu"
    assert platform() == "cpu"


def test_check_divisible_shows_the_arithmetic():
    mesh = mesh_of(data=2, fsdp=4)
    check_divisible(mesh, RULES, "batch", "Loop.batch_size", 16)
    with pytest.raises(ConfigError) as e:
        check_divisible(mesh, RULES, "batch", "Loop.batch_size", 12)
    text = str(e.value)
    assert "Loop.batch_size = 12" in text and "data=2 x fsdp=4" in text and "8 or 16" in text
    with pytest.raises(ConfigError, match="Set Llama.n_heads to 8"):
        check_divisible(mesh_of(tensor=8), RULES, "heads", "Llama.n_heads", 6)
    with pytest.raises(ConfigError):
        check_divisible(mesh, RULES, "batch", "Loop.batch_size", 0)
