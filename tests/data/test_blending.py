"""Budgets, stages and replay: exact in every position, and the same from wherever they are made."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store, random_documents

from t5x_llm.config import to_dict
from t5x_llm.core.errors import ConfigError
from t5x_llm.data.blending import Blend, replayed, stages
from t5x_llm.data.catalog import Opened, described, open_stream
from t5x_llm.data.data_plan import data_plan
from t5x_llm.data.positions import DataState
from t5x_llm.data.sources import Data, Mixture, Source
from t5x_llm.data.stream import Stream

LENGTH = 16
NAMES = ("a", "b", "c")
shares = st.fixed_dictionaries(dict.fromkeys(NAMES, st.sampled_from([0.0, 0.3, 1.0])))
blends = st.builds(
    lambda first, later, budgets: Blend(
        NAMES,
        tuple((at, w if any(w.values()) else {"b": 1.0}) for at, w in [(0, first), *later]),
        budgets,
    ),
    shares,
    st.lists(st.tuples(st.integers(1, 900), shares), max_size=3, unique_by=lambda x: x[0]).map(
        lambda stages: sorted(stages, key=lambda x: x[0])
    ),
    st.dictionaries(st.sampled_from(NAMES), st.integers(1, 400), max_size=3),
)  # fmt: skip


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("stores")
    sizes = {"a": 200, "b": 50, "c": 20}
    return {n: make_store(root / n, random_documents(rng, k, 40)) for n, k in sizes.items()}


@pytest.fixture(scope="module")
def plain(stores):
    return Stream(stores, dict.fromkeys(NAMES, 1.0), LENGTH)


def by_source(stream, first, count):
    """Index of the source of every position."""
    return stream._locate(np.arange(first, first + count))[0]


@settings(max_examples=25, deadline=None)
@given(blends)
def test_a_budget_is_read_to_the_row_and_no_further(plain, blend):
    """Against a walk over the positions, one at a time, that knows nothing of histories."""
    stream = plain.planned(blend)
    source, passed = by_source(stream, 0, 1200), collections.Counter()
    for position, index in enumerate(source.tolist()):
        weights = next(w for start, w in reversed(blend.stages) if start <= position)
        left = {n for n, w in weights.items() if w > 0 and passed[n] < blend.budgets.get(n, 10**9)}
        name = NAMES[index]
        # Where nothing is left the last mixture goes on.
        assert name in left or not left, (position, name, left)
        passed[name] += 1
    consumed = stream.consumed(1200)
    assert {n: consumed[n].examples for n in NAMES} == {n: passed[n] for n in NAMES}


@settings(max_examples=25, deadline=None)
@given(blends)
def test_every_part_keeps_its_shares_in_every_window(plain, blend):
    stream = plain.planned(blend)
    stops = [start for start, _ in stream.history[1:]] + [stream.history[-1][0] + 500]
    for (start, weights), stop in zip(stream.history, stops, strict=True):
        source = by_source(stream, start, stop - start)
        seen = np.cumsum(np.eye(3, dtype=int)[source], axis=0)
        windows = seen[100:] - seen[:-100]
        share = 100 * np.array([weights[n] for n in NAMES])
        assert not len(windows) or np.abs(windows - share).max() <= 1 + 1e-9


@settings(max_examples=25, deadline=None)
@given(blends, st.lists(st.integers(0, 1500), max_size=4))
def test_a_plan_made_again_on_the_way_is_the_same_plan(blend, resumes):
    whole = blend.history()
    history = whole
    for at in sorted(resumes):
        history = DataState.from_json(DataState(at, history).to_json()).history
        history = blend.history(history, at)
        assert history == whole


@settings(max_examples=20, deadline=None)
@given(blends, blends, st.integers(0, 1000))
def test_another_blend_leaves_the_past_alone(plain, blend, other, at):
    before = plain.planned(blend)
    after = before.at(DataState(at, other.history(before.history, at)))
    np.testing.assert_array_equal(by_source(after, 0, at), by_source(before, 0, at))
    passed = {n: c.examples for n, c in after.consumed(2000).items()}
    spent = {n: c.examples for n, c in before.consumed(at).items()}
    # A stage whose sources are all used up goes on with its last mixture, beyond their budgets.
    unlimited = all(
        any(w > 0 and n not in other.budgets for n, w in weights.items())
        for _, weights in other.stages
    )
    for name, budget in other.budgets.items():
        assert passed[name] <= max(budget, spent[name]) or not unlimited


@settings(max_examples=20, deadline=None)
@given(blends, st.integers(0, 10**9), st.sampled_from([1, 2, 4, 8]))
def test_any_number_of_hosts_and_any_batch_size(plain, blend, position, hosts):
    stream = plain.planned(blend)
    whole = stream.batch(position, 24)
    parts = [stream.batch(position, 24, slice(h * 24 // hosts, (h + 1) * 24 // hosts))
             for h in range(hosts)]  # fmt: skip
    joined = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    jax.tree.map(np.testing.assert_array_equal, joined, whole)
    two = [stream.batch(position, 7), stream.batch(position + 7, 17)]
    joined = jax.tree.map(lambda *rows: np.concatenate(rows), *two)
    jax.tree.map(np.testing.assert_array_equal, joined, whole)


def data(*, bins=1, packing="whole", mixture=None, **fields):
    """A configuration over the stores of ``opened``: {'a': dict(tokens=...)} by source."""
    sources = tuple(
        Source(name, f"{name}.jsonl", language=language, **fields.get(name, {}))
        for name, language in zip(NAMES, ("en", "zh", "zh"), strict=True)
    )
    return Data("store", "bytes", Mixture(sources, **(mixture or {})), packing=packing, bins=bins)


def opened(stores, weights=None):
    weights = weights or {"a": 0.5, "b": 0.3, "c": 0.2}
    blank = dict.fromkeys(NAMES, "")
    return Opened(None, "", stores, weights, blank, blank)


def made(stores, config, weights=None):
    return open_stream(config, opened(stores, weights), LENGTH, 3, lambda steps: 8 * steps)


def test_without_a_word_of_blending_the_stream_is_what_it_was(stores):
    stream = made(stores, data())
    same = Stream(stores, {"a": 0.5, "b": 0.3, "c": 0.2}, LENGTH, 3, "whole")
    assert stream.fingerprint == same.fingerprint and stream.history == same.history
    assert stream.blend.history() == ((0, stream.weights),)
    assert "tokens" not in to_dict(data())["mixture"]["sources"][0] and "bins" not in to_dict(
        data()
    )
    # As a catalogue or a checkpoint from before these options says it.
    kinds = {"name", "files", "kind", "field", "unit", "tfds", "tfds_split", "tfds_data_dir",
             "language", "license", "validation_fraction"}  # fmt: skip
    assert set(described(data())["mixture"]) == {"sources", "rates", "temperature"}
    assert set(described(data())["mixture"]["sources"][0]) == kinds


def test_tokens_and_epochs_are_what_is_read(stores):
    stream = made(stores, data(a={"tokens": "1k"}, b={"epochs": 1.5}))
    end = stream.history[-1][0]
    consumed = stream.consumed(end)
    assert consumed["a"].tokens == pytest.approx(1000, abs=LENGTH)
    assert abs(consumed["b"].epochs - 1.5) * stream.rows["b"] <= 0.5 + 1e-9  # half a row
    assert stream.weights == {"a": 0, "b": 0, "c": 1}
    rows = stream.batch(0, end)
    # Within the budget below one epoch nothing comes twice.
    mine = [tuple(r) for r, s in zip(rows.tokens.tolist(), rows.source, strict=True) if s == 0]
    assert len(mine) == len({(*row, i) for i, row in enumerate(mine)})
    read = (rows.segment_ids[rows.source == 0] > 0).sum()
    assert read == pytest.approx(1000, rel=0.05)


def test_budgets_as_rates_end_together(stores):
    fields = {"a": {"epochs": 2.0}, "b": {"tokens": 600}, "c": {"epochs": 1.0}}
    stream = made(stores, data(**fields, mixture={"rates": "budgets"}))
    total = sum(stream.blend.budgets.values())
    assert {n: round(w * total) for n, w in stream.history[0][1].items()} == stream.blend.budgets
    consumed = {n: c.examples for n, c in stream.consumed(total).items()}
    for name, budget in stream.blend.budgets.items():
        assert abs(consumed[name] - budget) <= 5
    data_plan(stream, total).check()
    with pytest.raises(ConfigError, match=r"Source\.tokens.*no other source is left"):
        data_plan(stream, 2 * total).check()


def test_repeat_reads_what_the_budget_bought_again_and_again(stores):
    config = data(a={"epochs": 0.25, "exhausted": "repeat"})
    stream = made(stores, config, {"a": 1.0, "b": 0.0, "c": 0.0})
    rows = stream.rows["a"]
    assert rows == round(0.25 * stream.readers["a"].whole)
    rounds = [
        [stream.readers["a"].row(o) for o in range(rows * k, rows * (k + 1))] for k in range(3)
    ]
    assert sorted(rounds[0]) == sorted(rounds[1]) == sorted(rounds[2])
    assert len(set(rounds[0])) == rows and rounds[0] != rounds[1] != rounds[2]
    assert data_plan(stream, 3 * rows).sources["a"].epochs == 3
    assert not stream.blend.budgets and stream.fingerprint != made(stores, data()).fingerprint


def test_stages_by_steps_and_by_tokens(stores):
    weights = ({"a": 1.0}, {"a": 1.0, "b": 3.0})
    by_steps = made(stores, data(mixture={"stages": ((0, weights[0]), (5, weights[1]))}))
    by_tokens = made(stores, data(mixture={"stages": ((0, weights[0]), ("640", weights[1]))}))
    want = ((0, {"a": 1, "b": 0, "c": 0}), (40, {"a": 0.25, "b": 0.75, "c": 0}))
    assert by_steps.history == by_tokens.history == want
    later = made(stores, data(mixture={"stages": ((5, weights[1]),)}))
    assert later.history[0][1] == pytest.approx({"a": 0.5, "b": 0.3, "c": 0.2})
    with pytest.raises(ConfigError, match="how many rows a step has"):
        stages(data(mixture={"stages": ((5, weights[1]),)}).mixture, {"a": 1.0}, LENGTH, None)


def test_replay_is_a_share_of_every_stage(stores):
    stage = ((3, {"b": 1.0, "c": 3.0}),)
    stream = made(stores, data(mixture={"stages": stage, "replay": {"en": 0.1}}))
    first, second = (weights for _, weights in stream.history)
    assert first == pytest.approx({"a": 0.1, "b": 0.54, "c": 0.36})
    assert second == pytest.approx({"a": 0.1, "b": 0.225, "c": 0.675})
    # A language's share goes to its sources by the stage's weights, else by the rates.
    mixture = data(mixture={"replay": {"zh": 0.5}}).mixture
    rates = {"a": 1.0, "b": 3.0, "c": 1.0}
    assert replayed(mixture, {"a": 1.0}, rates) == {"a": 0.5, "b": 0.375, "c": 0.125}
    assert replayed(mixture, {"a": 1.0, "c": 2.0}, rates) == {"a": 0.5, "b": 0.0, "c": 0.5}
    with pytest.raises(ConfigError, match=r"does not name"):
        replayed(mixture, {"b": 1.0}, rates)


def test_every_option_is_in_the_fingerprint_or_in_the_history(stores):
    options = [
        data(bins=2), data(packing="similar"), data(a={"epochs": 0.5}),
        data(a={"epochs": 0.5, "exhausted": "repeat"}),
        data(bins=2, a={"curriculum": "shortest"}),
        data(bins=2, a={"curriculum": "longest"}),
        data(mixture={"stages": ((9, {"a": 1.0}),)}), data(mixture={"replay": {"a": 0.1}}),
        data(a={"tokens": 100}),
    ]  # fmt: skip
    found = [
        (s.fingerprint, s.history) for s in (made(stores, each) for each in (data(), *options))
    ]
    assert all(found.count(each) == 1 for each in found)


def test_the_data_plan_is_a_tree(stores):
    config = data(
        a={"tokens": 5000}, bins=2, packing="similar", mixture={"stages": ((9, {"b": 1.0}),)}
    )
    stream = made(stores, config)
    plan = data_plan(stream, 1000, lambda position: position // 8)
    text = str(plan)
    assert sum(s.rows for s in plan.sources.values()) == 1000
    assert sum(s.share for s in plan.sources.values()) == pytest.approx(1)
    b = plan.sources["b"]
    assert b.repeats == pytest.approx(b.tokens * (1 - 1 / b.epochs), rel=0.02)
    lines = text.splitlines()
    assert "1,000 rows" in lines[0] and "similar, 2 bins" in lines[0]
    assert "├─ from step 0, row 0 (0 tokens): a " in text
    assert "└─ from step 9, row 72 (1.15k tokens): b 100.0%" in text
    assert f"warning: b is read {b.epochs:.1f} times" in text
    assert "a reads" in text and "of its budget of" in text
    with pytest.raises(ConfigError, match=r"Mixture\.max_epochs.*as often as 'b'"):
        plan.check(max_epochs=2.0)
    plan.check(max_epochs=b.epochs)
    assert "used up" in str(data_plan(made(stores, data(c={"tokens": 40})), 1000))


BAD = {
    r"Source\.tokens": {"a": {"tokens": "2 bn"}},
    r"Source\.tokens = 0": {"a": {"tokens": 0}},
    r"Source\.epochs.*above 0": {"a": {"epochs": 0.0}},
    r"Source\.epochs.*Give one of the two": {"a": {"epochs": 1.0, "tokens": 5}},
    r"Source\.exhausted.*Did you mean 'repeat'": {"a": {"exhausted": "repeats"}},
    r"Source\.score": {"a": {"curriculum": "highest"}, "bins": 4},
    r"Data\.bins.*at least 2": {"a": {"curriculum": "shortest"}},
    r"Data\.bins = 0": {"bins": 0},
    r"Mixture\.rates.*budgets of b, c": {"a": {"epochs": 1.0}, "mixture": {"rates": "budgets"}},
    r"Mixture\.stages.*ascend": {"mixture": {"stages": ((5, {"a": 1.0}), (2, {"b": 1.0}))}},
    r"Mixture\.stages.*all of them": {"mixture": {"stages": ((5, {"a": 1.0}), ("9k", {"b": 1.0}))}},
    r"Mixture\.stages = 'd'": {"mixture": {"stages": ((0, {"d": 1.0}),)}},
    r"Mixture\.stages.*above 0": {"mixture": {"stages": ((0, {"a": 0.0}),)}},
    r"Mixture\.replay = 'fr'": {"mixture": {"replay": {"fr": 0.1}}},
    r"Mixture\.replay.*below 1": {"mixture": {"replay": {"a": 1.0}}},
    r"Mixture\.replay.*which 'zh' gives": {"mixture": {"replay": {"zh": 0.1, "b": 0.1}}},
    r"Mixture\.max_epochs": {"mixture": {"max_epochs": 0.0}},
}


@pytest.mark.parametrize("said", BAD)
def test_what_cannot_be_meant(said):
    with pytest.raises(ConfigError, match=said):
        data(**BAD[said])


def test_state_carries_the_plan(stores):
    stream = made(stores, data(a={"tokens": 500}, mixture={"stages": ((9, {"b": 1.0}),)}))
    state = DataState.from_json(stream.state(50).to_json())
    again = made(stores, data()).at(state)
    jax.tree.map(np.testing.assert_array_equal, again.batch(50, 99), stream.batch(50, 99))
    assert dataclasses.replace(state, position=0) == stream.state()
