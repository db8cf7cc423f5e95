"""The shipped corpora are what data/manifest.json says, and are clean."""

import hashlib
import json
import re
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"
MANIFEST = json.loads((DATA / "manifest.json").read_text("utf-8"))["files"]


def documents(file: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / file).read_text("utf-8").split("\n") if line]


@pytest.mark.parametrize("file", sorted(MANIFEST))
def test_manifest_matches_the_file(file):
    entry, raw = MANIFEST[file], (DATA / file).read_bytes()
    docs = documents(file)
    assert entry["bytes"] == len(raw)
    assert entry["sha256"] == hashlib.sha256(raw).hexdigest()
    assert entry["documents"] == len(docs) == raw.count(b"\n")
    assert entry["text_bytes"] == sum(len(d["text"].encode()) for d in docs)
    assert entry["licence"] and entry["source"] and entry["kind"]


def test_every_shipped_file_is_in_the_manifest():
    assert {f"quickstart/{p.name}" for p in (DATA / "quickstart").iterdir()} == set(MANIFEST)


def test_each_language_has_at_least_three_megabytes():
    for language in ("en", "zh"):
        sizes = [e["text_bytes"] for e in MANIFEST.values() if e["language"] == language]
        assert sum(sizes) >= 3_000_000
    assert len({e["kind"] for e in MANIFEST.values() if e["language"] == "zh"}) == 2


@pytest.mark.parametrize("file", sorted(MANIFEST))
def test_documents_are_clean_and_unlike(file):
    docs = documents(file)
    assert len({d["id"] for d in docs}) == len(docs) == len({d["text"] for d in docs})
    for doc in docs:
        text = doc["text"]
        assert set(doc) == {"id", "title", "text"} and doc["title"]
        assert 20 <= len(text) <= 10_000 and text == text.strip("\n")
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff]", text), doc["id"]
        if "man" in file:
            assert not re.search(r"\\f[BIRP]|^\.[A-Z]{2}\b|&(lt|gt|amp);", text, re.M), doc["id"]
