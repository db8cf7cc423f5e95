"""Strategies and products of them train as one device does, and send no more than they need.

Eight devices; a dense model, one with experts, and one with states.
"""

import jax
import pytest
from strategy_runs import (
    FAMILIES,
    LENGTH,
    OPTIMIZER,
    ROWS,
    VOCAB,
    assert_same,
    on_one_device,
    train,
)

from t5x_llm.models.families.palm import PaLM
from t5x_llm.models.model import Model
from t5x_llm.parallel import MeshConfig, make_mesh
from t5x_llm.train.state import place
from t5x_llm.train.task import LmTask


def mesh(strategy="fsdp", **fields):
    return MeshConfig(**{"fsdp": 1, "strategy": strategy, **fields})


SINGLE = {
    "data": mesh("data", data=8),
    "zero1": mesh("zero1", fsdp=8),
    "zero2": mesh("zero2", fsdp=8),
    "fsdp": mesh(fsdp=8),
    "tensor": mesh("data", data=4, tensor=2),
    "sequence": mesh("data", data=4, tensor=2, sequence_sharded=True),
    "ring": mesh("data", data=2, context=4),
    "ulysses": mesh("data", data=2, context=4, context_attention="ulysses"),
    "expert": mesh("data", data=2, expert=4),
    "replica": mesh("data", replica=8),
    "host": mesh(fsdp=8, optimizer_on_host=True),
}
PRODUCTS = {
    "fsdp_sequence": mesh(fsdp=4, tensor=2, sequence_sharded=True),
    "zero1_tensor": mesh("zero1", fsdp=4, tensor=2),
    "zero2_ring": mesh("zero2", fsdp=2, context=4),
    "fsdp_ring_sequence": mesh(fsdp=2, context=2, tensor=2, sequence_sharded=True),
    "fsdp_ulysses_tensor": mesh(fsdp=2, context=2, tensor=2, context_attention="ulysses"),
    "fsdp_expert": mesh(fsdp=2, expert=4),
    "fsdp_expert_sequence": mesh(fsdp=2, expert=2, tensor=2, sequence_sharded=True),
    "zero1_expert_ring": mesh("zero1", fsdp=2, expert=2, context=2),
    "replica_fsdp_tensor": mesh(replica=2, fsdp=2, tensor=2),
    "replica_zero2_ulysses": mesh(
        "zero2", replica=2, fsdp=2, context=2, context_attention="ulysses"
    ),
    "replica_data_expert": mesh("data", replica=2, data=2, expert=2),
}
CASES = SINGLE | PRODUCTS
QUICK = {
    ("fsdp_ring_sequence", "dense"),
    ("fsdp_expert", "moe"),
    ("fsdp_ulysses_tensor", "mamba"),
}


def may_send(config, family):
    """Kinds of collectives to the axes along which the strategy needs them."""
    cut = {axis for axis, size in config.shape(8).items() if size > 1}
    sent = {"all-reduce": cut, "all-gather": set(), "all-to-all": set()}
    sent["collective-permute"] = set()
    if config.strategy != "data":  # updates, or parameters
        sent["all-gather"] |= cut & {"fsdp", "context", "expert"}
    if config.sequence_sharded:
        sent["all-gather"] |= cut & {"tensor"}
    if family == "moe":  # tokens, and the router's kernel
        sent["all-to-all"] |= cut & {"expert"}
        sent["all-gather"] |= cut & {"expert"}
    context = cut & {"context"}
    if family == "mamba":  # channels for the sequence, last tokens, and b and c of each token
        sent["all-to-all"] |= context
        sent["collective-permute"] |= context
        sent["all-gather"] |= context
    elif config.context_attention == "ulysses":  # heads for the sequence; segments and positions
        sent["all-to-all"] |= context
        sent["all-gather"] |= context
    else:
        sent["collective-permute"] |= context
    return sent


def check_sent(got, config, family):
    """Only what is needed, all that is needed, and nothing gathered twice or for nothing."""
    allowed, found = may_send(config, family), {}
    for (kind, axes), _ in got.kinds.items():
        assert set(axes) <= allowed.get(kind, set()), got.kinds
        found.setdefault(kind, set()).update(axes)
    assert {kind: axes for kind, axes in allowed.items() if axes} == found, got.kinds
    gathers = [one for one in got.collectives if one.kind == "all-gather"]
    logits = ROWS * LENGTH * VOCAB * 4 // (config.data * config.replica)
    model = Model(FAMILIES[family].decoder())
    # A parameter may be as large as the logits; that each is gathered once is seen below.
    sizes = {4 * x.size for x in jax.tree.leaves(model.abstract_params())}
    for one in gathers:
        assert one.bytes < logits or (one.bytes in sizes and "tensor" not in one.axes)
    if family == "moe":  # neither the experts of a layer nor the tokens of a row of devices
        most = min(4 * 32 * 64, ROWS // config.data // config.replica * LENGTH * 32) * 4
        assert all(one.bytes < most for one in gathers if "expert" in one.axes)
    if family == "mamba" and config.context > 1:
        return
    # Parameters or updates are gathered once, the optimizer has twice as much; segments and
    # positions for Ulysses.
    size = 2 * ROWS * LENGTH * 4 if config.context_attention == "ulysses" else 0
    if config.strategy != "data" or config.expert > 1:
        size += 4 * model.parameter_count()["total"]
    pieces = [one for one in gathers if "tensor" not in one.axes]
    assert sum(one.bytes * one.times for one in pieces) <= size


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param(name, family, marks=() if (name, family) in QUICK else pytest.mark.slow)
        for name in CASES
        for family in FAMILIES
    ],
)
def test_every_strategy_equals_one_device(name, family):
    got = train(CASES[name], FAMILIES[family])
    assert_same(got, on_one_device(family))
    check_sent(got, CASES[name], family)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero1_tensor", "zero2_ring", "fsdp_ring_sequence"])
def test_microbatches(name):
    got = train(CASES[name], FAMILIES["dense"], microbatches=2)
    assert_same(got, on_one_device("dense"))


def test_what_lies_in_pieces():
    """Ways that a kernel's parameter and its first moment are cut, and where that lies."""
    model = Model(FAMILIES["dense"].decoder())
    tx = OPTIMIZER.build(10, model.logical_axes())
    found = {}
    for name in ("data", "zero1", "zero2", "fsdp", "host"):
        config = CASES[name]
        state = place(LmTask(model, 16, ("a",)), tx, make_mesh(config), config.rules()).state
        kernel = [x["head"]["kernel"] for x in (state.params, state.opt_state[1][0].mu)]
        found[name] = *(32 // x.shard_shape((32, VOCAB))[0] for x in kernel), kernel[1].memory_kind
    device = "device"
    assert found == {
        "data": (1, 1, device),
        "zero1": (1, 8, device),
        "zero2": (1, 8, device),
        "fsdp": (8, 8, device),
        "host": (8, 8, "pinned_host"),
    }


@pytest.mark.slow
def test_three_ways_of_a_sequence_and_a_vocabulary_of_a_power_of_two():
    """Residuals are cut along the features, and the table is padded while computing."""
    palm = PaLM(vocab_size=VOCAB, d_model=48, n_layers=1, n_heads=6, head_dim=8, d_ff=96)
    got = train(mesh(fsdp=2, tensor=3, sequence_sharded=True), palm, jax.devices()[:6])
    assert_same(got, train(MeshConfig(), palm, jax.devices()[:1]))
    gathered = [one.bytes for one in got.collectives if one.kind == "all-gather"]
    whole, rows = VOCAB * 48 * 4, ROWS // 2 * LENGTH * 48 * 4
    assert whole not in gathered and max(gathered) == rows, got.kinds
