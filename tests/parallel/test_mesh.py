"""Mesh shapes, shardings, rows of a process, and equality of every strategy with one device."""

from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from t5x_llm.core.errors import ConfigError
from t5x_llm.parallel import (
    AXES,
    MeshConfig,
    batch_sharding,
    constrain,
    dump_shardings,
    global_batch,
    local_rows,
    make_mesh,
    param_shardings,
    platform,
    replicated,
    use,
)

SHAPES = {
    "embed": {"table": jax.ShapeDtypeStruct((64, 32), jnp.float32)},
    "block": {
        "query": jax.ShapeDtypeStruct((2, 32, 4, 8), jnp.float32),
        "key": jax.ShapeDtypeStruct((2, 32, 1, 8), jnp.float32),
        "up": jax.ShapeDtypeStruct((2, 32, 64), jnp.bfloat16),
        "scale": jax.ShapeDtypeStruct((2, 32), jnp.float32),
    },
}
LOGICAL = {
    "embed": {"table": ("vocab", "embed")},
    "block": {
        "query": ("layers", "embed", "heads", "head"),
        "key": ("layers", "embed", "kv_heads", "head"),
        "up": ("layers", "embed", "mlp"),
        "scale": ("layers", "norm"),
    },
}
STRATEGIES = [
    MeshConfig(strategy="data", data=8, fsdp=1),
    MeshConfig(strategy="data", data=2, fsdp=1, tensor=4),
    MeshConfig(fsdp=8),
    MeshConfig(fsdp=4, tensor=2),
    MeshConfig(data=2, fsdp=2, tensor=2),
    MeshConfig(replica=2, fsdp=4),
    MeshConfig(fsdp=1, tensor=8),
    MeshConfig(fsdp=2, context=2, tensor=2),
]


def test_rest_goes_to_the_axis_of_minus_one():
    mesh = make_mesh(MeshConfig(fsdp=-1, tensor=2))
    assert mesh.axis_names == AXES
    assert dict(mesh.shape) == {**dict.fromkeys(AXES, 1), "fsdp": 4, "tensor": 2}
    assert make_mesh(MeshConfig(), jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"fsdp": 3}, ["fsdp=3", "8 devices", "-1"]),
        ({"fsdp": -1, "data": 3}, ["data=3", "divides", "8 devices"]),
        ({"fsdp": 1}, ["8 devices"]),
        ({"fsdp": 4, "tensor": 4}, ["fsdp=4 x tensor=4 = 16", "8 devices"]),
    ],
)
def test_wrong_products_say_the_counts_and_the_remedy(sizes, words):
    with pytest.raises(ConfigError) as e:
        make_mesh(MeshConfig(**sizes))
    assert e.value.field.startswith("MeshConfig.")
    for word in words:
        assert word in str(e.value)


@pytest.mark.parametrize(
    "bad",
    [{"fsdp": 0}, {"tensor": -1}, {"data": 2.0}, {"strategy": "fsd"}, {"fsdp": -2}, {"data": True}],
)
def test_bad_sizes(bad):
    with pytest.raises(ConfigError, match="MeshConfig"):
        MeshConfig(**bad)


def fake_slices(count, per_slice, platform="tpu"):
    """Devices of several slices, each a row of chips two high."""
    return [
        FakeDevice(
            id=i,
            platform=platform,
            device_kind="TPU v5 lite" if platform == "tpu" else "A100",
            process_index=i // 2,
            slice_index=i // per_slice,
            coords=(i % per_slice // 2, i % 2, 0),
            core_on_chip=0,
        )
        for i in range(count * per_slice)
    ]


class FakeDevice(SimpleNamespace):
    __hash__ = object.__hash__


def test_several_slices_lie_along_replica():
    mesh = make_mesh(MeshConfig(replica=2, fsdp=-1, tensor=2), fake_slices(2, 4))
    assert mesh.shape["replica"] == 2 and mesh.shape["fsdp"] == 2
    for r in range(2):
        assert {d.slice_index for d in mesh.devices[r].flat} == {r}
    mesh = make_mesh(MeshConfig(replica=4, fsdp=-1), fake_slices(2, 4))
    assert [{d.slice_index for d in mesh.devices[r].flat} for r in range(4)] == [{0}, {0}, {1}, {1}]


def test_slices_need_replicas_on_tpu_only():
    with pytest.raises(ConfigError, match="Set MeshConfig.replica = 2"):
        make_mesh(MeshConfig(fsdp=8), fake_slices(2, 4))
    assert make_mesh(MeshConfig(fsdp=8), fake_slices(2, 4, "gpu")).size == 8


def test_part_of_a_torus_axis_can_be_an_axis():
    """Two ways tensor parallel on a 4 x 4 torus, which jax by itself refuses."""
    chips = fake_slices(1, 16)
    for i, chip in enumerate(chips):
        chip.coords = (i % 4, i // 4, 0)
    mesh = make_mesh(MeshConfig(fsdp=-1, tensor=2), chips)
    assert mesh.shape["fsdp"] == 8
    for a, b in mesh.devices.reshape(8, 2):  # neighbours
        assert sum(abs(x - y) for x, y in zip(a.coords, b.coords, strict=True)) == 1


@pytest.mark.slow
def test_described_tpu_slices(monkeypatch):
    """The real TPU compiler on a host without a TPU: platform, mesh, gathered parameters."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    topology = topologies.get_topology_desc("v5e:4x4", "tpu", num_slices=2)
    config = MeshConfig(replica=2, fsdp=-1, tensor=2)
    mesh, rules = make_mesh(config, topology.devices), config.rules()
    weight = jax.ShapeDtypeStruct((1024, 4096), jnp.bfloat16)
    sharding = param_shardings(("embed", "mlp"), weight, mesh, rules)
    weight = jax.ShapeDtypeStruct(weight.shape, weight.dtype, sharding=sharding)
    x = jax.ShapeDtypeStruct((64, 16, 1024), jnp.bfloat16, sharding=batch_sharding(mesh, rules, 3))

    def layer(w, x):
        with use(mesh, rules):
            assert platform() == "tpu"
            return constrain(x @ w, ("batch", "length", "mlp"))

    assert "all-gather" in jax.jit(layer).lower(weight, x).compile().as_text()


DUMP = """\
parameter    shape               axes                             spec                  \
bytes/device  not divided
block.key    float32[2,32,1,8]   (layers, embed, kv_heads, head)  (-, fsdp, -, -)       \
1,024         kv_heads=1
block.query  float32[2,32,4,8]   (layers, embed, heads, head)     (-, fsdp, tensor, -)  2,048
block.scale  float32[2,32]       (layers, norm)                   (-, -)                256
block.up     bfloat16[2,32,64]   (layers, embed, mlp)             (-, fsdp, tensor)     2,048
embed.table  float32[64,32]      (vocab, embed)                   (tensor, fsdp)        2,048
total 26,880 bytes, 7,424 on each of 8 (mesh data=2 x fsdp=2 x tensor=2)
"""


def test_dump_is_stable():
    config = MeshConfig(data=2, fsdp=2, tensor=2)
    text = dump_shardings(LOGICAL, SHAPES, make_mesh(config), config.rules())
    assert [line.split() for line in text.splitlines()] == [
        line.split() for line in DUMP.splitlines()
    ]


@pytest.mark.parametrize("config", STRATEGIES, ids=str)
def test_every_strategy_gives_the_single_device_loss_and_gradients(config):
    """A small attention and feed-forward layer, activations constrained, against one device."""
    mesh, rules = make_mesh(config), config.rules()
    keys = iter(jax.random.split(jax.random.key(0), 8))
    params = jax.tree.map(
        lambda s: 0.1 * jax.random.normal(next(keys), s.shape, jnp.float32), SHAPES
    )
    tokens = np.arange(8 * 16).reshape(8, 16) % 64

    def loss(p, tokens):
        h = constrain(p["embed"]["table"][tokens], ("batch", "length", "embed"))
        b = jax.tree.map(lambda w: w[0] + w[1], p["block"])
        q = jnp.einsum("btd,dnh->btnh", h * b["scale"], b["query"])
        k = jnp.einsum("btd,dkh->btkh", h, b["key"])
        q = constrain(q, ("batch", "length", "heads", "head"))
        k = constrain(k, ("batch", "length", "kv_heads", "head"))
        h = h + jnp.tanh(jnp.einsum("btnh,bskh->bts", q, k)) @ h
        up = constrain(jnp.einsum("btd,df->btf", h, b["up"]), ("batch", "length", "mlp"))
        h = h + jnp.einsum("btf,df->btd", jnp.tanh(up), b["up"])
        logits = constrain(h @ p["embed"]["table"].T, ("batch", "length", "vocab"))
        return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 0])

    expected = jax.jit(jax.value_and_grad(loss))(params, tokens)

    def sharded(p, tokens):
        with use(mesh, rules):
            return jax.value_and_grad(loss)(p, tokens)

    shardings = param_shardings(LOGICAL, SHAPES, mesh, rules)
    batch = global_batch(lambda rows: tokens[rows], 8, mesh, rules)
    placed = jax.device_put(params, shardings)
    got = jax.jit(sharded, out_shardings=(replicated(mesh), shardings))(placed, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, expected)
    assert got[1]["embed"]["table"].sharding == shardings["embed"]["table"]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.permutations([2, 2, 2]),
    axes=st.permutations(["replica", "data", "fsdp", "context", "tensor"]),
    scale=st.integers(1, 4),
    processes=st.sampled_from([1, 2, 4, 8]),
)
def test_rows_of_processes_cover_the_batch(sizes, axes, scale, processes):
    """Processes of any grouping load every row, and none loads a row twice."""
    config = MeshConfig(**{"fsdp": 1, **dict(zip(axes, sizes, strict=False))})
    mesh, rules = make_mesh(config), config.rules()
    rows = 8 * scale
    real = batch_sharding(mesh, rules, 1).devices_indices_map((rows,))
    owned = {  # the same layout, its devices said to belong to several processes
        FakeDevice(process_index=i % processes): real[d] for i, d in enumerate(jax.devices())
    }
    layout = SimpleNamespace(devices_indices_map=lambda shape: owned)
    seen = set()
    with mock.patch("t5x_llm.parallel.mesh.batch_sharding", return_value=layout):
        for process in range(processes):
            mine = local_rows(rows, mesh, rules, process)
            loaded = [r for run in mine for r in range(run.start, run.stop)]
            assert len(loaded) == len(set(loaded))
            assert all(a.stop < b.start for a, b in zip(mine, mine[1:], strict=False))
            seen.update(loaded)
    assert seen == set(range(rows))


def test_global_batch_holds_each_row_at_its_place():
    config = MeshConfig(data=2, fsdp=2, context=2)
    mesh, rules = make_mesh(config), config.rules()
    whole = {"tokens": np.arange(64).reshape(8, 8), "source": np.arange(8)}
    calls = []

    def load(rows):
        calls.append(rows)
        return {k: v[rows] for k, v in whole.items()}

    batch = global_batch(load, 8, mesh, rules)
    assert calls == [slice(0, 8)]
    jax.tree.map(np.testing.assert_array_equal, batch, whole)
    assert batch["tokens"].sharding.spec == PartitionSpec(("data", "fsdp"), "context")
    assert batch["source"].sharding.spec == PartitionSpec(("data", "fsdp"))
    assert batch["tokens"].addressable_shards[0].data.shape == (2, 4)


def test_global_batch_refuses_a_wrong_number_of_rows():
    config = MeshConfig()
    with pytest.raises(ValueError, match="rows"):
        global_batch(lambda rows: np.zeros((3,)), 8, make_mesh(config), config.rules())
