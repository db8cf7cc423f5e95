"""Our span corruption, by position, against seqio's pipeline of T5's preprocessors."""

import numpy as np
import pytest
import seqio
import tensorflow as tf
from stores import make_store, write_jsonl

from t5x_llm.data import corruption, seqio_spans
from t5x_llm.data.denoising import Denoising
from t5x_llm.data.row_objective import make_row_objective
from t5x_llm.data.sources import Source
from t5x_llm.data.stream import Stream
from t5x_llm.data.tasks import DocumentSource
from t5x_llm.text import TokenizerTraining, train_tokenizer

TEXTS = [f"Document {i}: {'the quick brown fox, ' * (1 + i % 5)}jumps {i * i}." for i in range(80)]
EXTRA = 60
LENGTH = 64


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizer")
    config = TokenizerTraining(vocab_size=300 + EXTRA, extra_ids=EXTRA)
    return train_tokenizer(config, TEXTS, root, progress=False), f"{root}/tokenizer.model"


@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 3.0), (0.15, 64.0), (0.3, 8.0)])
@pytest.mark.parametrize(
    "length", [2, 10, 57, *(pytest.param(n, marks=pytest.mark.extended) for n in (3, 568))]
)
def test_masks_have_the_same_structure_and_distribution(length, density, mean):
    draws = 200 if length < 100 else 20
    ours = [corruption.random_spans_mask(length, density, mean, corruption.Draw(0, i))
            for i in range(draws)]  # fmt: skip
    theirs = [
        seqio_spans.random_spans_noise_mask(
            tf.constant(length), tf.constant([[i, 1], [i, 2]]), density, mean
        ).numpy()
        for i in range(draws)
    ]
    for masks in (ours, theirs):
        assert all(not m[0] and m[-1] and len(m) == length for m in masks)
    noise, spans = corruption.noise_counts(length, density, mean)
    for m in theirs:
        assert m.sum() == noise and len(corruption.span_bounds(m)[0]) == spans
    # How often each place is noise; 5 standard deviations of two such means.
    apart = np.abs(np.mean(ours, axis=0) - np.mean(theirs, axis=0)).max()
    assert apart < 5 * 0.5 * np.sqrt(2 / draws)
    sizes = [np.concatenate([np.subtract(*corruption.span_bounds(m)[::-1]) for m in masks])
             for masks in (ours, theirs)]  # fmt: skip
    assert sizes[0].mean() == pytest.approx(sizes[1].mean())
    assert sizes[0].var() == pytest.approx(sizes[1].var(), rel=0.4, abs=0.2)


@pytest.mark.parametrize("seed", range(20))
def test_the_same_mask_gives_the_same_tokens(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 900, 200).astype(np.int32)
    mask = rng.random(200) < rng.choice([0.1, 0.5, 0.9])
    for part in (mask, ~mask):
        theirs = seqio_spans.spans_to_unique_sentinels(tf.constant(tokens), tf.constant(part), 999)
        ours = corruption.spans_to_sentinels(tokens, part, np.arange(999, 700, -1))
        assert ours.tolist() == theirs.numpy().tolist()


def test_the_pipelines_give_the_same_examples(tmp_path, tokenizer):
    """With seqio's masks told from its examples, ours are the same to the token."""
    own, model = tokenizer
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    vocabulary = seqio.SentencePieceVocabulary(model)
    assert vocabulary.vocab_size == own.vocab_size == 300 + EXTRA
    source = DocumentSource(Source("a", str(path)), 0.0)
    task = seqio_spans.span_corruption_task("t5x_llm.test.spans", source, vocabulary)
    tokens, targets = seqio_spans.lengths(LENGTH)
    theirs = list(
        task.get_dataset({"inputs": LENGTH, "targets": targets}, shuffle=False, seed=7)
        .as_numpy_iterator()
    )  # fmt: skip

    # What T5 joins has no begin or end tokens.
    documents = [vocabulary.encode(text) for text in TEXTS]
    store = make_store(tmp_path / "store", documents)
    made = make_row_objective(Denoising("span_corruption"), own, LENGTH)
    assert (made.length, made.encoder_length) == (targets, LENGTH)
    stream = Stream({"a": store}, {"a": 1.0}, LENGTH, objective=made)
    assert stream.rows["a"] == len(theirs)
    text = [t for d in documents for t in d]
    first = own.id_of("<extra_id_0>")
    assert first == own.vocab_size - 1
    sentinels = set(range(first - EXTRA + 1, first + 1))
    for i, example in enumerate(theirs):
        block = np.array(text[i * tokens : (i + 1) * tokens], np.int32)
        mask = _mask_of(example["inputs"].tolist()[:-1], example["targets"].tolist(), sentinels)
        assert len(mask) == len(block)
        s = made.denoisers["spans"]
        ends = [own.eos_id]
        inputs = [*corruption.spans_to_sentinels(block, mask, s.sentinels), *ends]
        answer = [*corruption.spans_to_sentinels(block, ~mask, s.sentinels), *ends]
        assert example["inputs"].tolist() == inputs and example["targets"].tolist() == answer
        assert len(inputs) <= LENGTH and len(answer) <= targets
        assert i == len(theirs) - 1 or (len(inputs), len(answer)) == (LENGTH, targets)
    # Ours over the same blocks: as many tokens on each side.
    batch = stream.batch(0, len(theirs))
    sides = [batch.extra["encoder_segment_ids"], batch.segment_ids]
    for side, name in zip(sides, ("inputs", "targets"), strict=True):
        assert sorted((side > 0).sum(1).tolist()) == sorted(len(e[name]) for e in theirs)

    with pytest.raises(ValueError, match="they take"):
        task.get_dataset({"inputs": LENGTH, "targets": 4}, shuffle=False)


def _mask_of(inputs, targets, sentinels):
    spans: dict[int, int] = {}
    for token in targets[:-1]:
        if token in sentinels:
            spans[token] = 0
            last = token
        else:
            spans[last] += 1
    mask = []
    for token in inputs:
        size = spans.get(token, 0) if token in sentinels else 0
        mask += [True] * size if size else [False]
    return np.array(mask)
