"""Objectives in the stream: every token of every document once, whatever the row is made into."""

import collections
import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store, random_documents

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data.bins import Order
from t5x_llm.data.corruption import Draw, noise_counts
from t5x_llm.data.denoisers import SpanCorruption
from t5x_llm.data.denoising import Denoising
from t5x_llm.data.row_objective import make_row_objective
from t5x_llm.data.stream import Stream
from t5x_llm.text import Tokenizer

LENGTH = 48
EXTRA = 40
VOCABULARY = 64 + EXTRA  # <extra_id_0> is the last
BOS, EOS, PAD = 1, 2, 0


class Pieces(Tokenizer):
    """A tokenizer of which only the special tokens matter."""

    def __init__(self, extra=EXTRA, named=(), **ids):
        self.vocab_size = 64 + extra
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = BOS, EOS, PAD, None
        self.__dict__.update(ids)
        self._ids = {f"<extra_id_{i}>": self.vocab_size - 1 - i for i in range(extra)}
        self._ids |= {name: 60 + i for i, name in enumerate(named)}

    def id_of(self, piece):
        return self._ids.get(piece)

    def _encode(self, texts, threads):
        raise NotImplementedError

    _decode = save = piece = spell = _encode


CASES = {
    "mlm": Denoising("mlm"),
    "t5": Denoising("span_corruption"),
    "t5 dense": Denoising("span_corruption", density=0.5, target_length=40),
    "t5 decoder": Denoising("span_corruption", form="decoder", density=0.3),
    "prefix": Denoising("prefix_lm"),
    "prefix both": Denoising("prefix_lm", form="encoder_decoder"),
    "ul2 R": Denoising("ul2", ul2=(("R", 3, 0.15),), suffix_rate=0),
    "ul2 S": Denoising("ul2", suffix_rate=1),
    "ul2 S both": Denoising("ul2", suffix_rate=1, form="encoder_decoder"),
    "ul2 X both": Denoising("ul2", ul2=(("X", 3, 0.5),), suffix_rate=0, form="encoder_decoder"),
    "ul2": Denoising("ul2"),
    "ul2 both": Denoising("ul2", form="encoder_decoder", modes=None),
    "glm spans": Denoising("blank_filling", long_rate=0),
    "glm end": Denoising("blank_filling", long_rate=1),
    "glm": Denoising("blank_filling"),
}
SINGLE = [name for name in CASES if name not in ("ul2", "ul2 both", "glm")]


@pytest.fixture(scope="module")
def documents():
    return random_documents(np.random.default_rng(0), 60, 150)


@pytest.fixture(scope="module")
def stores(tmp_path_factory, documents):
    root = tmp_path_factory.mktemp("stores")
    few = random_documents(np.random.default_rng(1), 9, 60)
    return {"a": make_store(root / "a", documents), "b": make_store(root / "b", few)}


def make(stores, case, packing, weights=None, seed=3, length=LENGTH):
    made = make_row_objective(CASES[case], Pieces(), length)
    stores = {"a": stores["a"]} if weights is None else stores
    return Stream(stores, weights or {"a": 1.0}, length, seed, packing, objective=made)


def segments(batch):
    """(row, segment, its arrays) of every segment in a batch."""
    for row in range(batch.shape[0]):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            here = batch.segment_ids[row] == segment
            arrays = {f.name: getattr(batch, f.name)[row][here] for f in dataclasses.fields(batch)
                      if f.name not in ("source", "extra")}  # fmt: skip
            for name, value in batch.extra.items():
                if not name.startswith("encoder"):
                    arrays[name] = value[row][here]
            if "encoder_tokens" in batch.extra:
                there = batch.extra["encoder_segment_ids"][row] == segment
                arrays["encoder_tokens"] = batch.extra["encoder_tokens"][row][there]
                places = batch.extra["encoder_positions"][row][there]
                assert places.tolist() == list(range(len(places)))
            yield row, segment, arrays


def original(case, s):
    """The text that a segment was made of, and [begin, end) of what is predicted of it."""
    config = CASES[case]
    if config.objective == "mlm":
        chosen = s["loss_mask"] > 0
        assert (s["tokens"][~chosen] == s["targets"][~chosen]).all()
        return s["targets"].tolist()
    if config.objective == "blank_filling":
        return filled(s)
    if "encoder_tokens" in s:
        inputs, targets = s["encoder_tokens"].tolist(), s["targets"].tolist()
        assert s["tokens"].tolist() == [PAD, *targets[:-1]]
        assert s["loss_mask"].all() and inputs.pop() == EOS
    else:
        whole = [*s["tokens"].tolist(), s["targets"][-1]]
        assert whole[1:] == s["targets"].tolist()
        split = int(s["prefix"].sum()) if len(s["prefix"]) else 0
        assert s["prefix"][:split].all()
        inputs, targets = whole[:split], whole[split:]
        predicted = s["loss_mask"].tolist()
        assert predicted == [float(i >= split - 1) for i in range(len(predicted))]
    if config.objective == "ul2" and config.modes:
        assert inputs[0] in (64, 65, 66)  # the last extra ids, in the order R, X, S
        inputs = inputs[1:]
    if case != "prefix":
        assert targets.pop() == EOS
    if config.objective == "prefix_lm" or case.startswith("ul2 S"):
        return inputs + targets
    sentinels = [t for t in inputs if t > 66]
    assert sentinels == [VOCABULARY - 1 - i for i in range(len(sentinels))]
    spans, text = {}, []
    for token in targets:
        if token > 66:
            assert token not in spans
            spans[token] = current = []
        else:
            current.append(token)
    for token in inputs:
        text += spans.pop(token) if token > 66 else [token]
    assert not spans
    return text


def filled(s):
    """The text of blank filling: masks are 64 and 65, spans begin with 66 and end with 67."""
    text, b = s["tokens"][s["prefix"]].tolist(), ~s["prefix"]
    assert (s["loss_mask"] == b).all()
    masks = [i for i, t in enumerate(text) if t in (64, 65)]
    spans = collections.defaultdict(list)
    for token, at, target, place in zip(s["tokens"][b], s["positions"][b], s["targets"][b],
                                        s["block_positions"][b], strict=True):  # fmt: skip
        assert (token == 66) == (place == 1)
        assert place == len(spans[at]) + 1
        spans[at].append(int(target))
    assert sorted(spans) == masks
    for at, span in spans.items():
        assert span.pop() == 67
        text[at] = span
    return [t for p in text for t in (p if isinstance(p, list) else [p])]


@pytest.mark.parametrize("packing", ["concat", "whole"])
@pytest.mark.parametrize("case", SINGLE)
def test_an_epoch_holds_every_token_once(stores, documents, case, packing):
    stream = make(stores, case, packing)
    batch = stream.batch(0, stream.rows["a"])
    got = [original(case, s) for _, _, s in segments(batch)]
    count = collections.Counter
    if case == "prefix":  # every token but a document's first is a target
        targets = count(t for _, _, s in segments(batch) for t in s["targets"].tolist())
        assert targets == count(t for d in documents for t in d[1:])
        return
    kept = documents if case == "mlm" or packing == "concat" else [d[1:-1] for d in documents]
    assert count(t for p in got for t in p) == count(t for d in kept for t in d)
    longest = max(map(len, got))
    if packing == "whole":  # documents in pieces, all but the last of them of equal length
        assert count(map(tuple, got)) == count(
            tuple(d[i : i + longest]) for d in kept for i in range(0, len(d), longest)
        )
    elif case != "mlm":  # blocks of equal length, in the order of the text
        text = [t for d in documents for t in d]
        assert count(map(tuple, got)) == count(
            tuple(text[i : i + longest]) for i in range(0, len(text), longest)
        )


@pytest.mark.parametrize("case", ["t5", "mlm"])
def test_bins_and_a_curriculum_hold_every_token_once(stores, documents, case):
    made, order = make_row_objective(CASES[case], Pieces(), LENGTH), Order(3, "longest")
    for packing in ("whole", "similar"):
        stream = Stream({"a": stores["a"]}, {"a": 1.0}, LENGTH, 3, packing, objective=made,
                        orders={"a": order})  # fmt: skip
        batch = stream.batch(0, stream.rows["a"])
        got = collections.Counter(t for _, _, s in segments(batch) for t in original(case, s))
        kept = documents if case == "mlm" else [d[1:-1] for d in documents]
        assert got == collections.Counter(t for d in kept for t in d)
    if case == "t5":  # which joins what follows each other in the store
        with pytest.raises(ConfigError, match=r"Data\.packing.*'whole' or 'similar'"):
            Stream({"a": stores["a"]}, {"a": 1.0}, LENGTH, 3, "concat", objective=made,
                   orders={"a": order})  # fmt: skip


@pytest.mark.parametrize("packing", ["concat", "whole"])
@pytest.mark.parametrize("case", CASES)
def test_rows_are_what_the_batch_says(stores, case, packing):
    stream = make(stores, case, packing, {"a": 0.7, "b": 0.3})
    batch = stream.batch(11, 30)
    made = stream.objective
    abstract = made.abstract_batch(30)
    assert jax.tree.structure(abstract) == jax.tree.structure(batch)
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(batch), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    pad = batch.segment_ids == 0
    names = ("tokens", "targets", "positions", "loss_mask")
    for value in [getattr(batch, n) for n in names] + [
        v for n, v in batch.extra.items() if not n.startswith("encoder")
    ]:
        assert not value[pad].any()
    glm = case.startswith("glm")
    for row, segment, s in segments(batch):
        size = len(s["tokens"])
        columns = np.flatnonzero(batch.segment_ids[row] == segment)
        assert (np.diff(columns) == 1).all()
        assert glm or s["positions"].tolist() == list(range(size))
        assert original(case, s) if case in SINGLE else True
    if "encoder_tokens" in batch.extra:
        sides = batch.segment_ids, batch.extra["encoder_segment_ids"]
        for ours, theirs in zip(*sides, strict=True):
            assert set(ours.tolist()) | {0} == set(theirs.tolist()) | {0}
        assert not batch.extra["encoder_tokens"][sides[1] == 0].any()
    assert stream.efficiency["a"] > (0.6 if "prefix" in case or "S" in case else 0.75)
    seen = stream.consumed(10 * stream.rows["a"])["a"]
    assert abs(seen.epochs - 7) < 0.2


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from([2, 3, 4]), st.sampled_from(sorted(CASES)))
def test_batches_are_functions_of_position(stores, position, hosts, case):
    stream = make(stores, case, "whole", {"a": 0.7, "b": 0.3})
    whole = stream.batch(position, 12)
    parts = [stream.batch(position, 12, slice(12 * h // hosts, 12 * (h + 1) // hosts))
             for h in range(hosts)]  # fmt: skip
    same(jax.tree.map(lambda *x: np.concatenate(x), *parts), whole)
    later = stream.batch(position + 5, 7)
    same(later, jax.tree.map(lambda x: x[5:], whole))
    skipped = stream.skip(position, 5)
    same(skipped.batch(position, 7), later)
    same(stream.at(skipped.state(position)).batch(position, 7), later)


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_each_epoch_is_masked_anew(stores):
    stream = make(stores, "mlm", "whole")
    rows = stream.rows["a"]
    seen = collections.defaultdict(set)
    for epoch in range(4):
        batch = stream.batch(epoch * rows, rows)
        for targets, mask in zip(batch.targets, batch.loss_mask, strict=True):
            seen[tuple(targets.tolist())].add(tuple(mask.tolist()))
    assert len(seen) == rows
    assert np.mean([len(masks) for masks in seen.values()]) > 3.5
    assert {f.identity for f in [stream.objective]} and stream.fingerprint != Stream(
        {"a": stores["a"]}, {"a": 1.0}, LENGTH, 3, "whole"
    ).fingerprint


def test_denoisers_keep_their_rates(stores):
    stream = make(stores, "ul2", "concat")
    batch = stream.batch(0, 700)
    modes = collections.Counter(batch.tokens[:, 0].tolist())
    assert [modes[m] / 700 for m in (64, 65, 66)] == pytest.approx([2 / 7, 4 / 7, 1 / 7], abs=0.01)
    long = make(stores, "glm", "concat").batch(0, 500)
    ends = [(64 in row.tolist(), 65 in row.tolist()) for row in long.tokens]
    assert set(ends) == {(True, False), (False, True)}
    assert np.mean([e[1] for e in ends]) == pytest.approx(0.7, abs=0.01)


@functools.cache
def t5_helper(inputs_length, density, mean):
    """``random_spans_helper`` of t5, as it is written there."""

    def both(n):
        noise = int(round(n * density))
        spans = int(round(noise / mean))
        return n - noise + spans + 1, noise + spans + 1

    n = inputs_length - 1
    while both(n + 1)[0] <= inputs_length:
        n += 1
    inputs, targets = both(n)
    if density == 0.5 and targets > inputs:
        n, targets = n - 1, targets - 1
    return n, targets


@pytest.mark.parametrize("length", [64, 114, 256, 512, 1000, 2048])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.15, 8.0), (0.5, 3.0), (0.3, 3.0)])
def test_lengths_are_t5_s(length, density, mean):
    config = Denoising("span_corruption", density=density, mean_span=mean)
    made = make_row_objective(config, Pieces(extra=600), length)
    tokens, targets = t5_helper(length, density, mean)
    assert made.encoder_length == length and made.length == targets
    assert len(made.table(made.denoisers["spans"])) - 1 == tokens
    if (length, density, mean) == (512, 0.15, 3.0):
        assert (tokens, targets) == (568, 114)  # as t5 says


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(0, 2**32), st.sampled_from(sorted(CASES)))
def test_places_are_those_taken(size, seed, case):
    made = make_row_objective(CASES[case], Pieces(), LENGTH)
    for denoiser in made.denoisers.values():
        row, encoder = (int(x[0]) for x in denoiser.places(np.array([size])))
        text = np.arange(3, 3 + size, dtype=np.int32) % 50 + 3
        s = denoiser(text, Draw(seed, 7))
        assert len(s["tokens"]) <= row and len(s.get("encoder_tokens", ())) <= encoder
        if isinstance(denoiser, SpanCorruption):
            assert len(s["tokens"]) == row and len(s.get("encoder_tokens", ())) == encoder
            assert size < 2 or noise_counts(size, denoiser.density, denoiser.mean_span)[0] > 0
        table = made.table(denoiser)
        assert (np.diff(table) >= 0).all() and table[-1] <= made.length


def test_what_is_refused(stores, tmp_path):
    plain = Pieces(extra=0)
    for config, match in [
        (Denoising("mlm"), r"Denoising\.mask = 'auto'.*\[MASK\]"),
        (Denoising("span_corruption"), "extra_ids = 100"),
        (Denoising("span_corruption", sentinels=2), "at least 3 sentinels.*extra_ids"),
        (Denoising("span_corruption", sentinels=(9, 9, 8)), "an id that .* does not use"),
        (Denoising("span_corruption", sentinels=(900,)), "at most 63"),
        (Denoising("blank_filling", mask=5, gmask=5), "Denoising.gmask = 5.*Denoising.mask"),
        (Denoising("mlm", mask="[MSK]"), "a piece of the tokenizer"),
    ]:
        with pytest.raises(ConfigError, match=match):
            make_row_objective(config, plain, LENGTH)
    with pytest.raises(ConfigError, match="Denoising.start.*pad token"):
        make_row_objective(
            Denoising("span_corruption", sentinels=9), Pieces(extra=0, pad_id=None), LENGTH
        )
    with pytest.raises(ConfigError, match="sequence_length"):
        make_row_objective(CASES["t5"], Pieces(), 2)
    for arguments, match in [
        ({"objective": "bert"}, "Denoising.objective = 'bert'"),
        ({"objective": "mlm", "form": "decoder"}, "one form only"),
        ({"density": 1.0}, "below 1"),
        ({"density": 0}, "above 0"),
        ({"mask_share": 0.95}, r"at most 1 - Denoising\.mask_share"),
        ({"target_length": 8}, "no encoder"),
        ({"ul2": (("S", 3, 0.5),)}, "'R' or 'X'"),
        ({"ul2": (), "suffix_rate": 0}, "a denoiser"),
        ({"modes": ("[R]",)}, "three"),
        ({"sentinels": "all"}, "auto"),
    ]:
        with pytest.raises(ConfigError, match=match):
            Denoising(**arguments)
    masked = make_store(tmp_path / "m", [[1, 5, 6, 2]] * 3, masks=[[0, 0, 1, 1]] * 3)
    with pytest.raises(DataError, match="loss mask of its own"):
        Stream(
            {"m": masked},
            {"m": 1.0},
            LENGTH,
            objective=make_row_objective(CASES["t5"], Pieces(), 48),
        )


def test_named_pieces_are_found():
    names = ("[MASK]", "[gMASK]", "<sop>")
    made = make_row_objective(Denoising("blank_filling"), Pieces(named=names), LENGTH)
    spans, end = made.denoisers["spans"], made.denoisers["end"]
    assert (spans.mask, end.mask, spans.start, spans.end) == (60, 61, 62, 64)
    t5 = make_row_objective(Denoising("span_corruption", sentinels=8), Pieces(), LENGTH)
    assert t5.denoisers["spans"].sentinels.tolist() == list(range(103, 95, -1))
    assert make_row_objective(Denoising(), Pieces(extra=0), LENGTH) is None
