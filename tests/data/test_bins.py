"""Bins, similar-length packing and curricula, against definitions by document."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store, random_documents

from t5x_llm.core.errors import DataError
from t5x_llm.data.bins import Order, make_plan
from t5x_llm.data.packing import assemble, make_packing, pack
from t5x_llm.data.stream import Stream

LENGTH = 32


class InMemory:
    """What a plan and ``assemble`` ask of a split."""

    masked, scored = False, True

    def __init__(self, documents, scores=()):
        self.flat = np.concatenate([np.array(d) for d in documents] or [np.empty(0, int)])
        self.offsets = np.cumsum([0] + [len(d) for d in documents])
        self.tokens, self.scores = len(self.flat), np.array(scores)

    def __len__(self):
        return len(self.offsets) - 1

    def read(self, starts, stops):
        return np.concatenate([self.flat[a:b] for a, b in zip(starts, stops, strict=True)])


def pieces_by_row(plan):
    """[(document's first token, tokens read)] of every row."""
    spans = plan.spans(np.arange(len(plan)))
    rows = [[] for _ in range(len(plan))]
    for row, start, length in zip(spans.row, spans.start, spans.length, strict=True):
        rows[row].append((int(start), int(length)))
    return rows


def spliced(sizes, length):
    """By definition: each row takes the longest size left that fits, until none does."""
    left, rows = sorted(sizes), []
    while left:
        row, space = [], length
        while fitting := [s for s in left if s <= space]:
            row.append(fitting[-1])
            left.remove(fitting[-1])
            space -= row[-1]
        rows.append(row)
    return rows


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 41), min_size=1, max_size=80), st.integers(2, 40))
def test_similar_is_its_definition(sizes, length):
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    plan = pack("similar", offsets, length)
    cut = [min(length, n - 1 - at) for n in sizes for at in range(0, n - 1, length)]
    rows = [[n for _, n in row] for row in pieces_by_row(plan)]
    assert rows == spliced(cut, length)
    assert plan.efficiency == pytest.approx(sum(cut) / (len(rows) * length))
    # Every token that predicts another is read once, a document that fits in one piece.
    read = sorted(piece for row in pieces_by_row(plan) for piece in row)
    want = [(int(o) + at, min(length, n - 1 - at)) for o, n in zip(offsets, sizes, strict=False)
            for at in range(0, n - 1, length)]  # fmt: skip
    assert read == sorted(want)


@pytest.mark.parametrize(
    ("middle", "spread", "length"),
    [(np.log(100), 0.6, 4096), (5.5, 1.0, 2048), (5.5, 1.0, 4096), (6.5, 1.2, 4096)],
)
def test_bins_of_similar_documents_are_filled_above_98_percent(middle, spread, length):
    """Log-normal lengths up to 50,000 tokens, 20,000 documents a bin; mean 118, 400 and 1,300.

    Colossal-LLaMA-2's documents have 74 to 135 tokens on average.
    """
    rng = np.random.default_rng(0)
    for _ in range(2):
        sizes = np.clip(rng.lognormal(middle, spread, 20_000).astype(np.int64), 2, 50_000)
        plan = pack("similar", np.concatenate([[0], np.cumsum(sizes)]), length)
        assert plan.efficiency > 0.98
        spans = plan.spans(np.arange(len(plan)))
        used = np.bincount(spans.row, weights=spans.length)
        assert used.max() <= length and (spans.start + spans.length < spans.stop + 1).all()
        # In one piece unless longer than a row.
        pieces = collections.Counter(spans.stop.tolist())
        assert all(pieces[end] == -(-(n - 1) // length)
                   for end, n in zip(np.cumsum(sizes).tolist(), sizes, strict=True))  # fmt: skip


def test_rows_hold_documents_of_nearly_one_length():
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(np.log(100), 0.6, 20_000).astype(np.int64), 2, 4000)
    offsets = np.concatenate([[0], np.cumsum(sizes)])

    rows = [[n for _, n in row] for row in pieces_by_row(pack("similar", offsets, 4096))]
    spread = np.median([np.std(row) / np.mean(row) for row in rows])
    assert spread < 0.1 < 0.5 < np.std(sizes) / np.mean(sizes)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.sampled_from(["concat", "whole", "similar"]),
    st.integers(2, 5),
    st.sampled_from(["", "shortest", "longest", "lowest", "highest"]),
)
def test_bins_cut_documents_and_keep_every_token(seed, count, packing, bins, curriculum):
    rng = np.random.default_rng(seed)
    documents = random_documents(rng, count, 60)
    scores = rng.integers(0, 9, count).astype(float)
    split = InMemory(documents, scores)
    plan = make_plan(packing, split, LENGTH, order=Order(bins, curriculum))
    key = {
        "": np.arange(count), "shortest": [len(d) for d in documents], "lowest": scores,
        "longest": [-len(d) for d in documents], "highest": -scores,
    }[curriculum]  # fmt: skip
    order = sorted(range(count), key=lambda i: (key[i], i))
    tokens, cuts = 0, plan._cuts
    assert cuts == sorted(cuts) and (cuts[0], cuts[-1], len(cuts)) == (0, count, bins + 1)
    # Bins have equal rows, as far as documents, of up to 60 tokens, and last rows allow.
    assert np.abs(plan.starts - len(plan) * np.arange(bins + 1) / bins).max() <= 4 + bins
    for b in range(bins):
        mine = order[cuts[b] : cuts[b + 1]]
        # The bin by itself, in the order that the curriculum gives.
        alone = InMemory([documents[i] for i in mine])
        want_plan = make_packing(packing, alone, LENGTH)
        rows = np.arange(plan.starts[b], plan.starts[b + 1])
        assert len(rows) == len(want_plan)
        if not len(rows):
            continue
        want = assemble(alone, want_plan.spans(np.arange(len(rows))), len(rows), LENGTH)
        got = assemble(split, plan.spans(rows), len(rows), LENGTH)
        for name, value in want.items():
            np.testing.assert_array_equal(got[name], value, err_msg=f"{name} of bin {b}")
        tokens += want_plan.tokens
    assert plan.tokens == tokens
    if len(plan):
        mixed = np.random.default_rng(seed).permutation(len(plan))
        whole = assemble(split, plan.spans(np.arange(len(plan))), len(plan), LENGTH)
        shuffled = assemble(split, plan.spans(mixed), len(plan), LENGTH)
        np.testing.assert_array_equal(shuffled["tokens"], whole["tokens"][mixed])
        assert plan.efficiency == pytest.approx((whole["segment_ids"] > 0).mean())


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("stores")
    sizes = {"en": 3000, "zh": 900, "code": 300}
    return {n: make_store(root / n, random_documents(rng, k, 60)) for n, k in sizes.items()}


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["whole", "similar"]), st.integers(0, 1000), st.integers(0, 3))
def test_every_bucket_takes_one_bin_of_each_category_in_its_share(stores, packing, seed, epoch):
    """Tenths of the stream, and every window of 100 rows inside one."""
    orders = dict.fromkeys(stores, Order(10))
    stream = Stream(stores, dict.fromkeys(stores, 1.0), LENGTH, seed, packing, orders=orders)
    weights = {name: float(rows) for name, rows in stream.rows.items()}
    stream = stream.reweight(0, weights)
    rows = sum(stream.rows.values())
    share = np.array([100 * weights[n] / rows for n in stream.sources])
    made = {n: make_plan(packing, s.train, LENGTH, order=orders[n]) for n, s in stores.items()}
    for bucket in (0, 4, 9):
        first, stop = ((epoch * 10 + b) * rows // 10 for b in (bucket, bucket + 1))
        source, ordinal = stream._locate(np.arange(first, stop))
        seen = np.cumsum(np.eye(len(share), dtype=int)[source], axis=0)
        assert np.abs(seen[100:] - seen[:-100] - share).max() <= 1 + 1e-9
        for index, name in enumerate(stream.sources):
            reader = stream.readers[name]
            starts = made[name].starts
            mine = [reader.row(int(o)) for o in ordinal[source == index]]
            assert abs(len(mine) - reader.rows / 10) <= 3
            # Edges lie within a row or two of the tenths of the stream: at most so many at both
            # seams are of a neighbour.
            assert (np.searchsorted(starts, mine, side="right") - 1 != bucket).sum() <= 5


def test_an_epoch_goes_through_the_bins_in_order_and_shuffles_inside(stores):
    stream = Stream(stores, {"en": 1.0}, LENGTH, 3, "similar", orders={"en": Order(10)})
    reader = stream.readers["en"]
    count = reader.rows
    starts = make_plan("similar", reader.split, LENGTH, order=reader.order).starts
    epochs = [[reader.row(e * count + i) for i in range(count)] for e in range(2)]
    for rows in epochs:
        assert sorted(rows) == list(range(count)) != rows
        bins = np.searchsorted(starts, rows, side="right") - 1
        assert (np.diff(bins) >= 0).all() and set(bins) == set(range(10))
    assert epochs[0] != epochs[1]


def test_a_budget_below_an_epoch_buys_the_first_of_a_curriculum(tmp_path):
    documents = [[1, *[5] * n, 2] for n in range(3, 103)]
    scores = [float(i % 10) for i in range(100)]
    store = make_store(tmp_path / "a", documents, scores=scores)
    order = Order(10, "highest", epochs=0.3)
    stream = Stream({"a": store}, {"a": 1.0}, 128, packing="whole", orders={"a": order})
    pieces = [p for row in range(3 * stream.rows["a"]) for p in stream.documents(row)]
    found = collections.Counter(p.document for p in pieces)
    assert {scores[d] for d in found} <= {9.0, 8.0, 7.0, 6.0}
    assert set(found.values()) == {3} and {p.epoch for p in pieces} == {0, 1, 2}


def test_a_curriculum_by_score_needs_scores(stores):
    with pytest.raises(DataError, match=r"no scores.*Set Source\.score"):
        Stream(stores, {"en": 1.0}, LENGTH, orders={"en": Order(4, "lowest")})
