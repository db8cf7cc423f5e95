"""Stacks of layers laid out for stages, and back: which bytes move, and that none are lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.parallel import MeshConfig, Pipeline, make_mesh, param_shardings, use
from t5x_llm.parallel.stages import chosen, to_stages
from t5x_llm.plan.collectives import collectives
from t5x_llm.plan.hlo import parse

KERNEL = ("layers", "embed", "mlp")


@pytest.mark.parametrize(
    ("units", "repeats", "sizes", "axes", "kinds"),
    [
        (8, 1, None, KERNEL, set()),  # as it is stored
        (8, 2, None, KERNEL, {"collective-permute"}),
        (8, 1, (1, 2, 3, 2), KERNEL, {"collective-permute"}),
        (12, 2, (1, 2, 1, 1, 3, 1, 2, 1), ("layers", "norm"), {"collective-permute"}),
        (7, 1, (1, 2, 2, 2), KERNEL, {"all-to-all"}),  # no stage has a fourth of seven
        (7, 1, (1, 2, 2, 2), ("layers", "norm"), set()),  # too narrow to lie in pieces
    ],
)
def test_each_stage_gets_its_own_units_and_their_gradients_go_back(
    units, repeats, sizes, axes, kinds
):
    pipeline = Pipeline(4, repeats, sizes)
    config = MeshConfig(fsdp=2, stage=4, pipeline=pipeline)
    layout = pipeline.layout(4, units)
    mesh, rules = make_mesh(config), config.rules()
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(units, 8, 3)[: len(axes)]).astype(np.float32)
    repeat = np.arange(4, dtype=np.int32) % repeats  # each stage may be at another one

    def placed(w, repeat):
        with use(mesh, rules):
            return chosen(to_stages(w, layout, axes), repeat, axes)

    @jax.jit
    def both(w, repeat, weights):
        y, back = jax.vjp(lambda w: placed(w, repeat), w)
        return y, back(weights)[0]

    sharding = param_shardings(axes, stack, mesh, rules)
    weights = rng.normal(size=(4, layout.slots, *stack.shape[1:])).astype(np.float32)
    arguments = jax.device_put(stack, sharding), jnp.asarray(repeat), jnp.asarray(weights)
    compiled = both.lower(*arguments).compile()
    got, gradient = compiled(*arguments)
    mine = layout.units[np.arange(4), repeat]
    np.testing.assert_array_equal(got, stack[mine])
    assert got.addressable_shards[0].data.shape[0] == 1
    expected = np.zeros_like(stack)
    np.add.at(expected, mine, weights)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6)
    found = collectives(parse(compiled.as_text()), dict(mesh.shape))
    moved = {c.kind for c in found if c.axes == ("stage",) and c.kind != "all-reduce"}
    assert moved == kinds
    # There and back, no more than the largest stage holds.
    stage = max(int(layout.held[s].sum()) for s in range(4))
    permuted = sum(c.bytes * c.times for c in found if c.kind == "collective-permute")
    assert permuted <= 2 * stage * np.prod(got.sharding.shard_shape(got.shape)[2:]) * 4
    assert all("stage" in c.axes for c in found) or not found
