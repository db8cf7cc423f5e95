"""Packing against definitions written out document by document."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store, random_documents

from t5x_llm.core.errors import ConfigError
from t5x_llm.data.packing import Whole, assemble, make_packing

FIELDS = ("tokens", "targets", "positions", "segment_ids", "loss_mask")


def rows_of(split, name, length):
    plan = make_packing(name, split, length)
    arrays = assemble(split, plan.spans(np.arange(len(plan))), len(plan), length)
    return plan, arrays


def concat_by_definition(documents, length):
    """The same arrays, one token after another."""
    flat = [(t, d, i) for d, doc in enumerate(documents) for i, t in enumerate(doc)]
    count = -(-(len(flat) - 1) // length)
    out = {f: np.zeros((count, length)) for f in FIELDS}
    for place in range(len(flat) - 1):
        row, column = divmod(place, length)
        token, document, _ = flat[place]
        following, next_document, _ = flat[place + 1]
        new = column == 0 or flat[place - 1][1] != document
        segment = 1 if column == 0 else out["segment_ids"][row, column - 1] + new
        out["tokens"][row, column] = token
        out["segment_ids"][row, column] = segment
        out["positions"][row, column] = 0 if new else out["positions"][row, column - 1] + 1
        if next_document == document:
            out["targets"][row, column] = following
            out["loss_mask"][row, column] = 1
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(2, 40), st.integers(2, 40))
def test_concat_is_its_definition(tmp_path_factory, seed, count, longest, length):
    documents = random_documents(np.random.default_rng(seed), count, longest)
    store = make_store(tmp_path_factory.mktemp("s"), documents)
    _, arrays = rows_of(store.train, "concat", length)
    for field, expected in concat_by_definition(documents, length).items():
        np.testing.assert_array_equal(arrays[field], expected, err_msg=field)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(2, 60), st.integers(2, 40))
def test_whole_predicts_every_token_once_from_its_own_document(
    tmp_path_factory, seed, count, longest, length
):
    documents = random_documents(np.random.default_rng(seed), count, longest)
    store = make_store(tmp_path_factory.mktemp("s"), documents)
    plan, arrays = rows_of(store.train, "whole", length)
    expected = sorted(
        (tuple(d[a : a + length]), tuple(d[a + 1 : a + length + 1]))
        for d in (np.array(doc) for doc in documents)
        for a in range(0, len(d) - 1, length)
    )
    # The last window of a document does not read its end token.
    expected = sorted((tuple(r)[: len(t)], tuple(t)) for r, t in expected)
    found = []
    for row in range(len(plan)):
        ids = arrays["segment_ids"][row]
        for segment in range(1, ids.max() + 1):
            here = ids == segment
            np.testing.assert_array_equal(arrays["positions"][row, here], np.arange(here.sum()))
            found.append((tuple(arrays["tokens"][row, here]), tuple(arrays["targets"][row, here])))
        np.testing.assert_array_equal(arrays["loss_mask"][row], ids > 0)
    assert sorted(found) == expected
    assert plan.efficiency == pytest.approx((arrays["segment_ids"] > 0).mean())


def test_whole_fills_rows_and_is_fast_on_many_documents():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.5, 1.0, 300_000).astype(np.int64), 2, 20_000)
    plan = Whole(np.concatenate([[0], np.cumsum(lengths)]), 2048)
    assert plan.efficiency > 0.995
    spans = plan.spans(rng.integers(0, len(plan), 1000))
    used = np.bincount(spans.row, weights=spans.length)
    assert used.max() <= 2048


def test_mask_of_the_store_is_carried(tmp_path):
    documents = [[1, 5, 6, 7, 2], [1, 8, 9, 2]]
    masks = [[0, 0, 0, 1, 1], [0, 1, 1, 1]]
    split = make_store(tmp_path / "s", documents, masks=masks).train
    _, concat = rows_of(split, "concat", 16)
    assert concat["loss_mask"][0].tolist()[:9] == [0, 0, 1, 1, 0, 1, 1, 1, 0]
    _, whole = rows_of(split, "whole", 16)
    assert whole["loss_mask"][0].tolist()[:7] == [0, 0, 1, 1, 1, 1, 1]


def test_a_document_cut_by_the_edge_keeps_its_next_token_as_target(tmp_path):
    split = make_store(tmp_path / "s", [[1, 5, 6, 7, 8, 2]]).train
    _, arrays = rows_of(split, "concat", 3)
    assert arrays["tokens"].tolist() == [[1, 5, 6], [7, 8, 0]]
    assert arrays["targets"].tolist() == [[5, 6, 7], [8, 2, 0]]
    assert arrays["loss_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize(("name", "length", "said"), [
    ("conct", 8, "concat"), ("concat", 1, "at least 2"), ("whole", 0, "at least 2"),
])  # fmt: skip
def test_bad_packing(tmp_path, name, length, said):
    split = make_store(tmp_path / "s", [[1, 5, 2]]).train
    with pytest.raises(ConfigError, match=said):
        make_packing(name, split, length)
