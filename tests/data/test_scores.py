"""Scores of documents: from a field of the input to the store, and stores without them."""

import json

import numpy as np
import pytest
from stores import make_store

from t5x_llm.core.errors import DataError
from t5x_llm.data.building import build_store
from t5x_llm.data.inputs import _file_plan, content_hash
from t5x_llm.data.reading import find_files, plan_jobs, read, scan
from t5x_llm.data.sources import Source
from t5x_llm.data.store import TokenStore
from t5x_llm.text import load_tokenizer


def write(path, scores):
    lines = [{"text": f"document {i}", "meta": {"score": s}} for i, s in enumerate(scores)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def plan_of(source):
    return _file_plan(source, [scan(path, True) for path in find_files(source)], 0.2)


def test_a_store_holds_the_score_of_each_document(tmp_path):
    scores = np.random.default_rng(0).normal(size=60).round(3)
    source = Source("a", write(tmp_path / "a.jsonl", scores.tolist()), score="meta.score")
    tokenizer = load_tokenizer("bytes")
    target = str(tmp_path / "store")
    build_store(plan_of(source), target, str(tmp_path), "f", tokenizer, "bytes", 1)
    store = TokenStore.open(target)
    seen = []
    for split in (store.train, store.validation):
        lines = [split.provenance(i).line for i in range(len(split))]
        np.testing.assert_array_equal(split.scores, scores[np.array(lines) - 1].astype(np.float32))
        seen += lines
    assert sorted(seen) == list(range(1, 61)) and store.train.scored


def test_a_source_without_scores_is_built_as_before(tmp_path):
    """The same fingerprint of its input, and a manifest without a word of them."""
    path = write(tmp_path / "a.jsonl", [1, 2, 3])
    plain, scored = (plan_of(Source("a", path, score=score)) for score in ("", "meta.score"))
    sha = scan(path, True).sha256
    assert plain.digest == content_hash(
        kind="jsonl", field="text", unit="file", files=[[path, sha]]
    )
    assert plain.digest != scored.digest and not any(job.scored for job in plain.jobs)
    old = make_store(tmp_path / "old", [[1, 5, 2]])
    assert "scored" not in old.manifest and not old.train.scored


@pytest.mark.parametrize("bad", [None, "0.5", True, [1], float("nan"), float("inf"), 10**40])
def test_what_is_no_score_is_named(tmp_path, bad):
    source = Source("a", write(tmp_path / "a.jsonl", [0.5, bad]), score="meta.score")
    (job,) = plan_jobs([scan(path, True) for path in find_files(source)])
    with pytest.raises(DataError, match=r"a\.jsonl:2: score 'meta\.score'.*finite number"):
        list(read(source, job))
