"""The stream as a pure function of position."""

import collections

import jax
import numpy as np
import pytest
from clocks import calls
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store, random_documents

from t5x_llm.core.errors import CheckpointError, ConfigError, DataError
from t5x_llm.data import shuffled
from t5x_llm.data.data_plan import data_tree
from t5x_llm.data.positions import DataState, Skips, merge_ranges
from t5x_llm.data.stream import Stream

LENGTH = 16
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    rng = np.random.default_rng(0)
    sizes = {"a": 200, "b": 50, "c": 3}
    root = tmp_path_factory.mktemp("stores")
    return {n: make_store(root / n, random_documents(rng, k, 40)) for n, k in sizes.items()}


@pytest.fixture(scope="module", params=["concat", "whole"])
def stream(stores, request):
    return Stream(stores, WEIGHTS, LENGTH, seed=3, packing=request.param)


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def rows(batch):
    return [tuple(row) for row in batch.tokens.tolist()]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**10), st.sampled_from([1, 2, 4, 8]))
def test_any_number_of_hosts_sees_the_same_global_batch(stream, position, hosts):
    whole = stream.batch(position, 24)
    parts = [stream.batch(position, 24, slice(h * 24 // hosts, (h + 1) * 24 // hosts))
             for h in range(hosts)]  # fmt: skip
    same(jax.tree.map(lambda *rows: np.concatenate(rows), *parts), whole)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40))
def test_batches_of_any_size_are_the_same_examples(stream, position, first, second):
    whole = stream.batch(position, first + second)
    parts = [stream.batch(position, first), stream.batch(position + first, second)]
    assert rows(whole) == rows(parts[0]) + rows(parts[1])


def test_two_streams_agree_and_seeds_differ(stores, stream):
    again = Stream(stores, WEIGHTS, LENGTH, seed=3, packing=stream.packing)
    other = Stream(stores, WEIGHTS, LENGTH, seed=4, packing=stream.packing)
    same(again.batch(1000, 16), stream.batch(1000, 16))
    assert again.fingerprint == stream.fingerprint != other.fingerprint
    assert rows(other.batch(1000, 16)) != rows(stream.batch(1000, 16))


def test_far_positions_cost_what_near_ones_cost(stream):
    near, far = (calls(lambda at=at: stream.batch(at, 32)) for at in (0, 10**9))
    assert far < 2 * near


def test_a_large_source_goes_through_grain(tmp_path):
    documents = [[1, 3 + i % 50, 2] for i in range(20_000)]
    stream = Stream({"a": make_store(tmp_path / "a", documents)}, {"a": 1.0}, 8)
    count = stream.rows["a"]
    assert count > 4096
    ordinals = range(2 * count, 3 * count)
    assert sorted(stream._sources["a"].row(i) for i in ordinals) == list(range(count))


def test_types_and_shapes(stream):
    batch = stream.batch(5, 6)
    for name in ("tokens", "targets", "positions", "segment_ids"):
        assert getattr(batch, name).shape == (6, LENGTH) and getattr(batch, name).dtype == np.int32
    assert batch.loss_mask.dtype == np.float32 and batch.loss_mask.shape == (6, LENGTH)
    assert batch.source.shape == (6,) and batch.source.dtype == np.int32
    assert batch.shape == (6, LENGTH)


@pytest.mark.parametrize("few", [0, 4096], ids=["grain", "few rows"])
def test_each_epoch_holds_every_row_once_in_a_new_order(stores, monkeypatch, few):
    monkeypatch.setattr(shuffled, "FEW_ROWS", few)
    stream = Stream({"a": stores["a"]}, {"a": 1.0}, LENGTH, seed=1)
    count = stream.rows["a"]
    epochs = [rows(stream.batch(e * count, count)) for e in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_consumed_counts_what_was_consumed(stream):
    skipped = stream.skip(100, 60).skip(300, 7)
    for position in (0, 1, 99, 100, 101, 500):
        seen = collections.Counter(skipped.batch(0, position).source.tolist() if position else [])
        consumed = skipped.consumed(position)
        assert [consumed[n].examples for n in skipped.sources] == [seen[i] for i in range(3)]
    assert consumed["c"].epochs > 10
    tokens = (skipped.batch(0, 500).segment_ids > 0).sum()
    assert sum(c.tokens for c in consumed.values()) == pytest.approx(tokens, rel=0.05)


def test_skips_jump_and_renumber_nothing(stream):
    skipped = stream.skip(10, 5)
    assert skipped.skips == ((10, 15),)
    assert rows(skipped.batch(0, 20)) == rows(stream.batch(0, 10)) + rows(stream.batch(15, 10))
    # A skip given later, at a position that the first has moved.
    twice = skipped.skip(12, 3)
    assert twice.skips == ((10, 15), (17, 20))
    # One that spans another counts only what it takes away.
    across = skipped.skip(8, 4)
    assert across.skips == ((8, 17),)
    # The same list from the start is the same stream.
    fresh = stream.at(DataState(skips=((10, 15), (17, 20))))
    same(fresh.batch(0, 40), twice.batch(0, 40))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 30)), max_size=8))
def test_skips_are_the_positions_left_over(ranges):
    ranges = [(a, a + n) for a, n in ranges]
    gone = {p for a, b in ranges for p in range(a, b)}
    left = [p for p in range(600) if p not in gone][:300]
    skips = Skips(ranges)
    assert skips.stream_positions(np.arange(300)).tolist() == left
    assert {p for a, b in skips.ranges for p in range(a, b)} == gone


def test_weights_change_and_the_past_stays(stream):
    changed = stream.reweight(137, {"a": 0.1, "c": 0.9})
    assert changed.weights == pytest.approx({"a": 0.1, "b": 0.0, "c": 0.9})
    same(changed.batch(0, 137), stream.batch(0, 137))
    after = changed.batch(137, 500).source
    assert set(after.tolist()) == {0, 2} and abs((after == 2).mean() - 0.9) < 0.01
    # Each source goes on where it was: its own sequence is not disturbed.
    for name, index in (("a", 0), ("c", 2)):
        alone = Stream({name: _store(stream, name)}, {name: 1.0}, LENGTH, 3, stream.packing)
        mixed = changed.batch(0, 600)
        mine = [r for r, s in zip(rows(mixed), mixed.source, strict=True) if s == index]
        assert mine == rows(alone.batch(0, len(mine)))
    # A change planned later is dropped by one made before it.
    assert len(changed.reweight(100, WEIGHTS).history) == 2


def _store(stream, name):
    return stream._sources[name].split.store


def test_a_source_added_later_leaves_the_past_alone(stores, tmp_path):
    two = Stream({n: stores[n] for n in "ac"}, {"a": 1.0, "c": 1.0}, LENGTH)
    more = {"b": stores["b"], **{n: stores[n] for n in "ac"}}
    three = Stream(more, WEIGHTS, LENGTH).at(two.state(50)).reweight(50, WEIGHTS)
    assert rows(three.batch(0, 50)) == rows(two.batch(0, 50))
    assert 0 in three.batch(50, 100).source


def test_state_goes_through_json(stream):
    changed = stream.reweight(20, {"b": 1.0}).skip(30, 4)
    state = DataState.from_json(changed.state(77).to_json())
    assert state == changed.state(77)
    same(stream.at(state).batch(77, 16), changed.batch(77, 16))
    with pytest.raises(CheckpointError, match="data state"):
        DataState.from_json({"position": "x"})


def test_documents_name_every_token_of_a_row(stream):
    for position in (0, 17, 333):
        row = stream.batch(position, 1)
        pieces = stream.documents(position)
        assert {p.source for p in pieces} == {stream.sources[row.source[0]]}
        filled = 0
        for piece in pieces:
            split = _store(stream, piece.source).train
            tokens = split.document(piece.document)[piece.start : piece.stop]
            at = slice(piece.column, piece.column + len(tokens))
            np.testing.assert_array_equal(row.tokens[0, at], tokens)
            assert piece.provenance.line == piece.document + 1
            assert str(piece.provenance) == f"{piece.source}.jsonl:{piece.document + 1}"
            filled += len(tokens)
        assert filled == (row.segment_ids > 0).sum()


def test_tree_shows_what_is_read(stream):
    text = data_tree(stream, examples=1000)
    assert "50.00%" in text and "epochs" in text
    for name in stream.sources:
        assert name in text


def test_what_cannot_be_streamed(stores, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'b'"):
        Stream({"ab": stores["a"], "b": stores["b"]}, {"ab": 1, "bb": 1.0}, LENGTH)
    with pytest.raises(ConfigError, match="at least one source"):
        Stream(stores, {"a": 0.0}, LENGTH)
    with pytest.raises(ConfigError, match="at least 2"):
        Stream(stores, WEIGHTS, 1)
    with pytest.raises(DataError, match="0 first"):
        Stream(stores, WEIGHTS, LENGTH, history=((5, WEIGHTS),))
    with pytest.raises(DataError, match="start <= stop"):
        merge_ranges([(5, 3)])
    empty = make_store(tmp_path / "empty", [])
    with pytest.raises(DataError, match="'empty'.*0 rows"):
        Stream({"empty": empty}, {"empty": 1.0}, LENGTH)
