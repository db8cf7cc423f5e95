"""Schedules and layouts of pipelines, and what is said of those that cannot be."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.families.deepseek import DeepseekV2
from t5x_llm.models.families.t5 import T5
from t5x_llm.models.pipelined import plan
from t5x_llm.parallel import MeshConfig, Pipeline, resolve
from t5x_llm.parallel.pipeline import simulate

SHAPES = st.tuples(st.integers(2, 6), st.integers(1, 4), st.integers(1, 3)).map(
    lambda s: (s[0], s[1] * (s[0] if s[2] > 1 else 1), s[2])
)


@settings(max_examples=40, deadline=None)
@given(SHAPES)
def test_every_microbatch_passes_every_group_in_order_and_the_rest_is_the_bubble(shape):
    p, m, v = shape
    schedule = Pipeline(m, v).schedule(p)
    seen, idle = {}, 0
    for tick in range(schedule.ticks):
        for stage in range(p):
            found = schedule.at(tick, stage)
            idle += found is None
            if found is not None:
                seen[found[0], found[1] * p + stage] = tick
                assert schedule.when(*found, stage) == tick
    assert set(seen) == {(i, g) for i in range(m) for g in range(v * p)}
    for i in range(m):  # each group one tick after the one before it: nothing waits in between
        assert [seen[i, g] - seen[i, 0] for g in range(v * p)] == list(range(v * p))
    bubble = Fraction(p - 1, v * m + p - 1)
    assert Fraction(idle, p * schedule.ticks) == bubble
    assert schedule.bubble == pytest.approx(float(bubble))
    groups = [[1.0] * v] * p
    time, share = simulate(schedule, groups, [[2.0] * v] * p)
    assert time == pytest.approx(3 * schedule.ticks) and share == pytest.approx(float(bubble))


def test_simulated_time_of_unequal_stages_by_hand():
    schedule = Pipeline(2).schedule(2)
    # Stage 0: 0-1, 1-2; stage 1 (3 a microbatch): 1-4, 4-7; backward at once: 7-10, 10-13; then
    # stage 0: 10-11, 13-14.
    time, idle = simulate(schedule, [[1.0], [3.0]], [[1.0], [3.0]])
    assert time == 14.0 and idle == pytest.approx(1 - 16 / 28)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 4), st.integers(1, 3), st.data())
def test_every_unit_has_one_place(p, v, data):
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=p * v, max_size=p * v))
    layout = Pipeline(p, v, tuple(sizes)).layout(p, sum(sizes))
    held, units = layout.held, layout.units
    assert sorted(units[held]) == list(range(sum(sizes)))
    for unit, (stage, repeat, slot) in enumerate(layout.places):
        assert units[stage, repeat, slot] == unit and held[stage, repeat, slot]
    groups = [units[g % p, g // p][held[g % p, g // p]] for g in range(p * v)]
    assert np.array_equal(np.concatenate(groups), np.arange(sum(sizes)))
    assert layout.waste == pytest.approx(max(sizes) * p * v / sum(sizes) - 1)


def test_tables_for_people():
    assert Pipeline(2).schedule(2).table().splitlines() == [
        "   tick  0  1  2",
        "stage 0  0  1  .",
        "stage 1  .  0  1",
    ]
    assert Pipeline(2, 2).schedule(2).table().splitlines()[2] == (
        "stage 1    .  0/0  1/0  0/1  1/1"
    )
    assert "…" in Pipeline(64).schedule(8).table()
    text = Pipeline(4, 1, (7, 8, 8, 9)).layout(4, 32).text()
    assert text.splitlines()[3] == "stage 3: layers 23-31 (9)"


@pytest.mark.parametrize(
    ("make", "field", "words"),
    [
        (lambda: MeshConfig(stage=2), "MeshConfig.pipeline", ["@Pipeline()"]),
        (lambda: MeshConfig(stage=4, pipeline=Pipeline(6, 2)), "Pipeline.microbatches", ["4 or 8"]),
        (lambda: Pipeline(0), "Pipeline.microbatches", ["1"]),
        (lambda: Pipeline(4, 1, (2, 0)), "Pipeline.stage_layers", ["0"]),
        (lambda: Pipeline(4, 1, 8), "Pipeline.stage_layers", ["(7, 8, 8, 9)"]),
        (
            lambda: Pipeline(4).layout(4, 6),
            "Pipeline.stage_layers",
            ["stage_layers = (1, 2, 2, 1)"],
        ),
        (lambda: Pipeline(4, 1, (1, 4)).layout(2, 6), "Pipeline.stage_layers", ["sum is 5"]),
        (lambda: Pipeline(4, 2, (3, 3)).layout(2, 6), "Pipeline.stage_layers", ["4 numbers"]),
        (lambda: Pipeline(4, 1, (9, 7)).layout(2, 16, 8), "Pipeline.stage_layers", ["cross"]),
        (
            lambda: Pipeline(4).layout(4, 24, 8),
            "Pipeline.stage_layers",
            ["whole pattern", "at most 3"],
        ),
    ],
)
def test_what_cannot_be_names_its_field_and_a_way_out(make, field, words):
    with pytest.raises(ConfigError) as e:
        make()
    assert e.value.field == field
    for word in words:
        assert word in str(e.value)


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (
            DeepseekV2(vocab_size=64, d_model=32, n_layers=9, n_heads=2, n_kv_heads=2, d_ff=48),
            "2 kinds of stacks",
        ),
        (T5(vocab_size=64, d_model=32, d_ff=48, n_layers=4, n_heads=2), "several levels or sides"),
    ],
)
def test_models_of_unlike_stacks_have_no_stages(family, words):
    config = MeshConfig(fsdp=1, stage=2, pipeline=Pipeline(2))
    mesh = SimpleNamespace(shape={"stage": 2})
    with pytest.raises(ConfigError, match=words) as e:
        plan(family.decoder(), mesh, config.rules())
    assert e.value.field == "MeshConfig.stage"


def test_stacks_lie_over_stages_along_layers_or_where_these_do_not_divide_along_their_width():
    rules = MeshConfig(fsdp=1, stage=2, pipeline=Pipeline(2)).rules()
    mesh = SimpleNamespace(shape={"stage": 2, "fsdp": 2, "tensor": 2})
    axes = ("layers", "embed", "mlp")
    assert resolve(rules.params, axes, mesh, (6, 32, 48)) == P("stage", "fsdp", "tensor")
    assert resolve(rules.params, axes, mesh, (5, 32, 48)) == P(None, ("fsdp", "stage"), "tensor")
    assert resolve(rules.params, ("vocab", "embed"), mesh, (64, 32)) == P(
        ("tensor", "stage"), "fsdp"
    )
