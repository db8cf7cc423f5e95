"""The token store on disk."""

import json

import numpy as np
import pytest
from stores import make_store

from t5x_llm.core.errors import DataError
from t5x_llm.data import store as store_module
from t5x_llm.data.store import ArrayWriter, TokenStore, _kvstore, _open


@pytest.mark.parametrize("pieces", [[1000], [1, 499, 500], [0, 700, 300], [250] * 4])
def test_pieces_of_any_size_make_the_array(tmp_path, monkeypatch, pieces):
    monkeypatch.setattr(store_module, "_SHARD", 256)
    monkeypatch.setattr(store_module, "_CHUNK", 64)
    values = np.arange(1000, dtype=np.uint32)
    writer = ArrayWriter(str(tmp_path / "x"), np.uint32, 1000)
    for part in np.split(values, np.cumsum(pieces)[:-1]):
        writer.write(part)
    writer.close()
    np.testing.assert_array_equal(_open(str(tmp_path / "x"))[:].read().result(), values)
    assert len(list((tmp_path / "x").rglob("c/*"))) == 4


def test_documents_and_provenance(tmp_path):
    store = make_store(tmp_path / "s", [[1, 5, 2], [1, 40_000, 7, 2]])
    split = store.train
    assert len(split) == 2 and split.tokens == 7
    assert split.document(1).tolist() == [1, 40_000, 7, 2]
    assert split.document_bytes(1) == 12 and str(split.provenance(1)) == "s.jsonl:2"
    assert len(store.validation) == 0
    with pytest.raises(IndexError, match="document 2 of 2"):
        split.document(2)


def test_large_vocabularies(tmp_path):
    store = make_store(tmp_path / "s", [[1, 151_000, 2]], dtype="uint32")
    assert store.train.document(0).tolist() == [1, 151_000, 2]


def test_damage_is_an_error_and_never_a_zero(tmp_path):
    make_store(tmp_path / "s", [[1, 5, 2]] * 10)
    shard = tmp_path / "s/train/tokens/c/0"
    raw = bytearray(shard.read_bytes())
    raw[3] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(DataError, match="damaged.*t5x-llm prepare"):
        TokenStore.open(str(tmp_path / "s")).train.document(0)
    shard.unlink()
    with pytest.raises(DataError, match="damaged.*t5x-llm prepare"):
        TokenStore.open(str(tmp_path / "s")).train.document(0)


def test_what_is_not_a_store(tmp_path):
    with pytest.raises(DataError, match="No token store"):
        TokenStore.open(str(tmp_path / "none"))
    make_store(tmp_path / "s", [[1, 2]])
    manifest = tmp_path / "s/manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(DataError, match="format 99"):
        TokenStore.open(str(tmp_path / "s"))
    manifest.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        TokenStore.open(str(tmp_path / "s"))
    content["splits"]["train"]["documents"] = 7
    manifest.write_text(json.dumps(content))
    with pytest.raises(DataError, match="its manifest says 8"):
        _ = TokenStore.open(str(tmp_path / "s")).train.offsets


def test_another_tokenizer_is_refused(tmp_path):
    store = make_store(tmp_path / "s", [[1, 2]])
    store.check_tokenizer("t" * 64)
    with pytest.raises(DataError, match="built with the tokenizer tttttttttttt.*uuuuuuuuuuuu"):
        store.check_tokenizer("u" * 64)


def test_buckets_are_named_as_tensorstore_names_them():
    assert _kvstore("gs://b/data/x") == {"driver": "gcs", "bucket": "b", "path": "data/x/"}
    assert _kvstore("/data/x") == {"driver": "file", "path": "/data/x/"}
