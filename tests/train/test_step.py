"""The train step: accumulation, strategies on eight devices, layouts, metrics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import prepare

from t5x_llm.core.dtypes import Policy
from t5x_llm.data.batch import Batch
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.model import Model
from t5x_llm.optim import Optimizer, Schedule
from t5x_llm.parallel import MeshConfig, dump_shardings, make_mesh
from t5x_llm.train.step import accumulate, mean_loss
from t5x_llm.train.task import LmTask

FAMILY = Llama(vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=48)
MODEL = Model(FAMILY.decoder(), Policy(compute="float32"))
SCHEDULE = Schedule("constant", 1e-2, warmup_steps=0)
# SGD, so that parameters differ as gradients do; Adam divides the rounding of a tiny one by itself.
OPTIMIZER = Optimizer("sgd", SCHEDULE, clip_norm=0.5)


def make_batch(seed=0, rows=8, length=16):
    """Packed rows: two segments, some padding, two sources."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 64, (rows, length + 1), dtype=np.int32)
    segments = np.repeat([[1] * 6 + [2] * (length - 8) + [0] * 2], rows, 0).astype(np.int32)
    positions = np.repeat([[*range(6), *range(length - 8), 0, 0]], rows, 0).astype(np.int32)
    mask = (segments > 0).astype(np.float32)
    mask[:, 5] = 0  # its target is in the next segment
    mask[: rows // 2, 8:] = 0
    return Batch(
        tokens[:, :-1],
        tokens[:, 1:],
        positions,
        segments,
        mask,
        np.arange(rows, dtype=np.int32) % 2,
    )


def run_steps(config, devices, batches, microbatches=1, model=MODEL):
    mesh, rules = make_mesh(config, devices), config.rules()
    parts = prepare(model, OPTIMIZER, mesh, rules, microbatches=microbatches, z_loss=1e-3)
    state, metrics = parts.init(), []
    for batch in batches:
        state, m = parts.step(state, batch)
        metrics.append(jax.tree.map(np.asarray, m))
    return jax.tree.map(np.asarray, state.params), metrics


@pytest.fixture(scope="module")
def reference():
    return run_steps(MeshConfig(), jax.devices()[:1], [make_batch(0), make_batch(1)])


STRATEGIES = {
    "data": MeshConfig(data=8, fsdp=1, strategy="data"),
    "fsdp": MeshConfig(fsdp=8),
    "data_fsdp": MeshConfig(data=2, fsdp=4),
    "tensor": MeshConfig(fsdp=4, tensor=2),
    "data_tensor": MeshConfig(data=4, fsdp=1, tensor=2, strategy="data"),
    "data_fsdp_tensor": MeshConfig(data=2, fsdp=2, tensor=2),
    "replica_fsdp": MeshConfig(replica=2, fsdp=4),
    "replica_data_fsdp": MeshConfig(replica=2, data=2, fsdp=2),
}


@pytest.mark.parametrize(
    "name",
    [
        "data_fsdp_tensor",
        *(
            pytest.param(name, marks=pytest.mark.extended)
            for name in STRATEGIES
            if name != "data_fsdp_tensor"
        ),
    ],
)
def test_every_strategy_equals_one_device(name, reference):
    params, metrics = run_steps(STRATEGIES[name], None, [make_batch(0), make_batch(1)])
    for got, expected in zip(metrics, reference[1], strict=True):
        for key, value in expected.items():
            np.testing.assert_allclose(got[key], value, rtol=2e-5, atol=1e-6, err_msg=key)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-7), params, reference[0]
    )


@pytest.mark.parametrize("microbatches", [pytest.param(2, marks=pytest.mark.extended), 4])
def test_accumulated_gradients_are_those_of_the_large_batch(microbatches):
    params = MODEL.init(jax.random.key(0))
    batch = make_batch()
    task = LmTask(MODEL, 16, ("a", "b"), z_loss=1e-3)

    @functools.partial(jax.jit, static_argnums=2)
    def run(params, batch, count):
        return accumulate(mean_loss(task, params, batch, None), params, batch, count)

    whole, expected = run(params, batch, 1)
    parts, got = run(params, batch, microbatches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), parts, whole)
    for key in expected:
        np.testing.assert_allclose(got[key], expected[key], rtol=1e-5)


def test_microbatches_on_a_mesh(reference):
    config = MeshConfig(fsdp=4)
    params, metrics = run_steps(config, jax.devices()[:4], [make_batch(0), make_batch(1)], 2)
    np.testing.assert_allclose(metrics[1]["loss"], reference[1][1]["loss"], rtol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-7), params, reference[0]
    )


def test_metrics_are_what_optax_computes(reference):
    batch = make_batch(0)
    params = MODEL.init(jax.random.key(0))

    def loss(params):
        hidden, _ = MODEL.apply(
            params, batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids
        )
        logits = MODEL.logits(params, hidden)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        count = batch.loss_mask.sum()
        z = 1e-3 * jnp.sum(batch.loss_mask * log_z**2) / count
        return jnp.sum(nll * batch.loss_mask) / count + z, (nll * batch.loss_mask, z)

    (total, (nll, z)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    metrics = reference[1][0]
    np.testing.assert_allclose(metrics["loss"] + metrics["z_loss"], total, rtol=1e-5)
    np.testing.assert_allclose(metrics["z_loss"], z, rtol=1e-4)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-4)
    for source in (0, 1):
        rows = batch.source == source
        np.testing.assert_allclose(metrics["loss_by_source"][source], nll[rows].sum(), rtol=1e-5)
        assert metrics["tokens_by_source"][source] == batch.loss_mask[rows].sum()
    np.testing.assert_allclose(metrics["learning_rate"], 1e-2)


def test_label_smoothing_is_reported_apart_from_the_loss():
    params, batch = MODEL.init(jax.random.key(0)), make_batch()
    plain, smooth = (LmTask(MODEL, 16, ("a", "b"), label_smoothing=e) for e in (0.0, 0.1))
    value, sums = plain.loss(params, batch, None)
    smoothed, more = smooth.loss(params, batch, None)
    assert set(more) - set(sums) == {"smoothing"}
    np.testing.assert_allclose(more["loss"], sums["loss"], rtol=1e-6)
    np.testing.assert_allclose(smoothed, value + more["smoothing"], rtol=1e-6)
    assert abs(smoothed - value) > 1e-3


def test_two_runs_are_equal_to_the_bit():
    batches = [make_batch(0), make_batch(1)]
    config = MeshConfig(fsdp=4, tensor=2)
    a, _ = run_steps(config, None, batches)
    b, _ = run_steps(config, None, batches)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_state_is_donated_and_stays_in_pieces():
    config = MeshConfig(fsdp=4, tensor=2)
    mesh, rules = make_mesh(config), config.rules()
    parts = prepare(MODEL, Optimizer("adamw", SCHEDULE), mesh, rules)
    state = parts.init()
    before = state.params["group_0"]["block_0"]["mlp"]["up"]["kernel"]
    assert before.sharding.shard_shape(before.shape) == (2, 32 // 4, 48 // 2)
    after, _ = parts.step(state, make_batch())
    assert before.is_deleted()
    moments = [x for x in jax.tree.leaves(after.opt_state) if x.shape == before.shape]
    assert len(moments) == 4  # two moments of gate and up
    for moment in moments:
        assert moment.sharding.shard_shape(moment.shape) == (2, 8, 24)


def test_resolved_shardings_are_these():
    """A changed line here is a changed layout: mean it."""
    config = MeshConfig(fsdp=4, tensor=2)
    table = dump_shardings(
        MODEL.logical_axes(), MODEL.abstract_params(), make_mesh(config), config.rules()
    )
    found = {line.split()[0]: line for line in table.splitlines()[1:-1]}
    block = "group_0.block_0."
    expected = {
        "embed.table": "(tensor, fsdp)",
        "final_norm.scale": "(-)",
        "head.kernel": "(fsdp, tensor)",
        f"{block}attention.query.kernel": "(-, fsdp, tensor, -)",
        f"{block}attention.key.kernel": "(-, fsdp, tensor, -)",
        f"{block}attention.value.kernel": "(-, fsdp, tensor, -)",
        f"{block}attention.out.kernel": "(-, tensor, -, fsdp)",
        f"{block}attention_norm.scale": "(-, -)",
        f"{block}mlp_norm.scale": "(-, -)",
        f"{block}mlp.gate.kernel": "(-, fsdp, tensor)",
        f"{block}mlp.up.kernel": "(-, fsdp, tensor)",
        f"{block}mlp.down.kernel": "(-, tensor, fsdp)",
    }
    assert set(found) == set(expected)
    for path, spec in expected.items():
        assert spec in found[path], found[path]


@pytest.mark.parametrize("microbatches", [pytest.param(1, marks=pytest.mark.extended), 2])
def test_frozen_parameters_keep_every_bit_and_cost_no_gradient(microbatches):
    batch = make_batch()
    config = MeshConfig(fsdp=2)
    mesh, rules = make_mesh(config, jax.devices()[:2]), config.rules()
    moved, products = {}, {}
    for trained in ((), ("embed", "head")):
        optimizer = Optimizer("sgd", SCHEDULE, b1=0.0, clip_norm=None, trained=trained)
        parts = prepare(MODEL, optimizer, mesh, rules, microbatches=microbatches)
        state, step = parts.init(), parts.step
        before = jax.device_get(state.params)
        products[trained] = step.lower(state, batch).as_text().count("dot_general")
        after = jax.device_get(step(state, batch)[0].params)
        moved[trained] = jax.tree.map(np.subtract, after, before)
    whole, part = moved.values()
    assert products["embed", "head"] < products[()]
    for path, change in jax.tree_util.tree_flatten_with_path(part)[0]:
        full = functools.reduce(lambda tree, key: tree[key.key], path, whole)
        assert full.any(), path
        if path[0].key in ("embed", "head"):
            np.testing.assert_allclose(change, full, rtol=1e-5, atol=1e-8)
        else:
            assert not change.any(), path
