"""Fill in the middle: pieces with their middle last are the pieces, at the rates asked for."""

import collections

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store, random_documents
from test_row_objective import BOS, EOS, Pieces, same, segments

from t5x_llm.core.errors import ConfigError
from t5x_llm.data.corruption import Draw, middle_last
from t5x_llm.data.denoising import Denoising, special_ids
from t5x_llm.data.row_objective import make_row_objective
from t5x_llm.data.stream import Stream

LENGTH = 48
MARKS = PREFIX, SUFFIX, MIDDLE = 60, 61, 62
NAMED = Pieces(named=("<fim_prefix>", "<fim_suffix>", "<fim_middle>"))


@pytest.fixture(scope="module")
def documents():
    return random_documents(np.random.default_rng(0), 60, 150)


@pytest.fixture(scope="module")
def store(tmp_path_factory, documents):
    return make_store(tmp_path_factory.mktemp("fim") / "a", documents)


def make(store, packing="whole", **options):
    made = make_row_objective(Denoising("fim", **options), NAMED, LENGTH)
    return Stream({"a": store}, {"a": 1.0}, LENGTH, 3, packing, objective=made)


def pieces(documents):
    """What rows are made of: documents cut every LENGTH - 3 predicted tokens."""
    step = LENGTH - 3
    return [d[i : i + step + 1] for d in documents for i in range(0, len(d) - 1, step)]


def test_psm_rows_are_the_documents(store, documents):
    stream = make(store, fim_rate=1, suffix_first=0)
    batch = stream.batch(0, stream.rows["a"])
    left = collections.Counter(tuple(p) for p in pieces(documents))
    for _, _, s in segments(batch):
        whole = [*s["tokens"].tolist(), int(s["targets"][-1])]
        assert whole[1:] == s["targets"].tolist() and s["loss_mask"].all()
        begin, end = whole[0] == BOS, whole[-1] == EOS
        body = whole[begin : len(whole) - end]
        suffix, middle = body.index(SUFFIX), body.index(MIDDLE)
        assert body[0] == PREFIX and suffix < middle
        text = body[1:suffix] + body[middle + 1 :] + body[suffix + 1 : middle]
        left[tuple([BOS] * begin + text + [EOS] * end)] -= 1
    assert set(left.values()) == {0}


def test_spm_rows_are_the_documents(store, documents):
    stream = make(store, fim_rate=1, suffix_first=1)
    batch = stream.batch(0, stream.rows["a"])
    left = collections.Counter(
        (tuple(sorted(p)), len(p)) for p in pieces(documents)
    )  # where prefix ends and middle begins is not marked
    for _, _, s in segments(batch):
        whole = [*s["tokens"].tolist(), int(s["targets"][-1])]
        begin = whole[0] == BOS
        assert whole[begin : begin + 2] == [PREFIX, SUFFIX]
        text = [t for t in whole if t not in MARKS]
        left[tuple(sorted(text)), len(text)] -= 1
    assert set(left.values()) == {0}


def test_rates(store):
    stream = make(store, fim_rate=0.75, suffix_first=0.25)
    batch = stream.batch(0, 40 * stream.rows["a"])
    rows, forms = collections.defaultdict(set), collections.Counter()
    for row, _, s in segments(batch):
        marks = [t for t in s["tokens"].tolist() if t in MARKS]
        rows[row].add(bool(marks))
        if marks:
            at = s["tokens"].tolist().index(PREFIX)
            forms["SPM" if s["tokens"][at + 1] == SUFFIX else "PSM"] += 1
    assert all(len(kinds) == 1 for kinds in rows.values())
    assert np.mean([kinds == {True} for kinds in rows.values()]) == pytest.approx(0.75, abs=0.01)
    # A few PSM pieces have an empty prefix, and read as SPM.
    assert 0.25 < forms["SPM"] / forms.total() < 0.35


def test_rows_that_are_left_alone_are_those_of_lm(store):
    made = make_row_objective(Denoising("fim", fim_rate=0), NAMED, LENGTH)
    stream = Stream({"a": store}, {"a": 1.0}, LENGTH, 3, "whole", objective=made)
    plain = Stream({"a": store}, {"a": 1.0}, LENGTH, 3, "whole")
    assert stream.rows == plain.rows
    names = ("tokens", "targets", "positions", "segment_ids", "loss_mask")
    epochs = (s.batch(0, s.rows["a"]) for s in (stream, plain))  # of another order
    ours, theirs = (
        sorted(
            tuple(np.stack([getattr(b, n)[i] for n in names]).ravel()) for i in range(b.shape[0])
        )
        for b in epochs
    )
    assert ours == theirs


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**9))
def test_a_batch_is_a_function_of_its_position(store, position):
    stream = make(store)
    whole = stream.batch(position, 12)
    same(stream.batch(position + 5, 7), jax.tree.map(lambda x: x[5:], whole))
    same(stream.skip(position, 5).batch(position, 7), stream.batch(position + 5, 7))


def test_all_pairs_of_cuts_are_as_likely():
    text = np.arange(10, 15)
    seen = collections.Counter()
    for i in range(6000):
        out = middle_last(text, MARKS, 0.0, Draw(1, i)).tolist()
        seen[out.index(SUFFIX), len(out) - out.index(MIDDLE)] += 1
    # Six places for each of two cuts; unequal ones come in two orders.
    assert len(seen) == 21
    pairs = [seen[key] for key in seen if key[1] > 1]
    alone = [seen[key] for key in seen if key[1] == 1]
    assert np.mean(pairs) == pytest.approx(2 * np.mean(alone), rel=0.15)


def test_marks_and_what_is_refused(store):
    for named in (
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ):
        assert special_ids(Denoising("fim"), Pieces(named=named)).fim == MARKS
    assert special_ids(Denoising("fim"), Pieces(extra=5)).fim == (66, 65, 64)
    assert special_ids(Denoising("fim", fim=(7, 8, 9)), Pieces()).fim == (7, 8, 9)
    with pytest.raises(ConfigError, match=r"Denoising\.fim.*<fim_prefix>.*extra_ids"):
        special_ids(Denoising("fim"), Pieces(extra=2))
    for options, match in (
        ({"fim": (7, 8)}, "three ids or pieces"),
        ({"fim_rate": 1.5}, "Denoising.fim_rate"),
        ({"suffix_first": -1}, "Denoising.suffix_first"),
    ):
        with pytest.raises(ConfigError, match=match):
            Denoising("fim", **options)
    with pytest.raises(ConfigError, match=r"Data\.packing.*'whole' or 'similar'.*fim"):
        make(store, "concat")


def test_older_objectives_keep_their_fingerprints():
    text = Denoising("mlm").text()
    assert text.startswith("Denoising(objective='mlm', form='auto', density=0.15, ")
    assert text.endswith(", start='auto', end='auto')")
    assert "fim_rate=0.3" in Denoising("fim", fim_rate=0.3).text()
