"""Safetensors directories: what the library writes is read, and every lie is refused."""

from __future__ import annotations

import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf.safetensors_io import (
    INDEX,
    SINGLE,
    SafetensorsReader,
    read_header,
)
from t5x_llm.hf.safetensors_write import TensorSpec, new_directory, plan_shards, write_safetensors


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.normal(size=(3, 5)).astype(np.float32),
        "b.bias": rng.normal(size=7).astype(np.float16),
        "c": rng.normal(size=(2, 2, 2)).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(2, np.float32),
    }


@pytest.fixture
def single(tmp_path, tensors):
    save_file(tensors, tmp_path / SINGLE)
    return tmp_path / SINGLE


def write(directory, tensors, limit):
    layouts = {name: TensorSpec(a.dtype, a.shape) for name, a in tensors.items()}
    return write_safetensors(directory, layouts, tensors.__getitem__, limit)


def same(reader, tensors):
    assert set(reader.names()) == set(tensors)
    for name, array in tensors.items():
        found = reader.read(name)
        assert found.dtype == array.dtype and found.shape == array.shape == reader.shape(name)
        assert found.tobytes() == array.tobytes()


def test_reads_what_the_library_writes(single, tensors):
    same(SafetensorsReader(single.parent), tensors)


@pytest.mark.parametrize("limit", [1, 40, 60, 10**6])
def test_round_trip_sharded_and_single(tmp_path, tensors, limit):
    files = write(tmp_path, tensors, limit)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(files)
    same(SafetensorsReader(tmp_path), tensors)
    if limit < 10**6:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(a.nbytes for a in tensors.values())
        for name, file in index["weight_map"].items():
            if tensors[name].dtype != ml_dtypes.bfloat16:
                with safetensors.safe_open(tmp_path / file, "np") as f:
                    np.testing.assert_array_equal(f.get_tensor(name), tensors[name])
    else:
        assert files == [SINGLE]


@given(st.lists(st.integers(0, 50)), st.integers(1, 60))
def test_shards_hold_everything_in_order_within_the_limit(sizes, limit):
    names = [(str(i), n) for i, n in enumerate(sizes)]
    shards = plan_shards(names, limit)
    assert [n for shard in shards for n in shard] == [n for n, _ in names]
    for shard in shards:
        assert len(shard) <= 1 or sum(sizes[int(n)] for n in shard) <= limit


def test_truncated_names_file_tensor_expected_and_found(single):
    data = single.read_bytes()
    single.write_bytes(data[:-10])
    with pytest.raises(CheckpointError) as e:
        SafetensorsReader(single.parent)
    assert str(e.value).startswith(f"{single}: truncated: tensor b.bias needs 14 bytes")
    assert str(e.value).endswith(f"found 4 ({len(data) - 10} bytes in the file).")


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (b"\x01\x02", "too short"),
        (raw({}, length=2**63), "header of"),
        (raw({}, length=100_000_001), "header of"),
        (raw({}, length=50), "header of"),
        (raw(b"{nope"), "not valid JSON"),
        (raw(b"\xff\xfe"), "not valid JSON"),
        (raw(b"[" * 100_000), "not valid JSON"),
        (raw(b"[1]"), "JSON object"),
        (raw(b'{"a": 1, "a": 2}'), "occurs twice"),
        (raw({"a": 1}), "tensor a is malformed"),
        (raw({"a": {}}), "tensor a is malformed"),
        (raw({"a": entry(shape=(-2,))}, b"0" * 8), "tensor a is malformed"),
        (raw({"a": entry(shape=(2.0,))}, b"0" * 8), "tensor a is malformed"),
        (raw({"a": entry(shape=(True, 2))}, b"0" * 8), "tensor a is malformed"),
        (raw({"a": entry(offsets=(0, 8, 9))}, b"0" * 8), "tensor a is malformed"),
        (raw({"a": entry(offsets=(-8, 0))}, b"0" * 8), "tensor a is malformed"),
        (raw({"a": entry(shape=(1,) * 40, offsets=(0, 4))}, b"0" * 4), "tensor a is malformed"),
        (raw({"a": entry(dtype="F4", offsets=(0, 16))}, b"0" * 16), "tensor a is F4"),
        (raw({"a": entry(shape=(3,))}, b"0" * 8), r"shape \[3\], needs 12 bytes"),
        (raw({"a": entry(shape=(2**40, 2**40))}, b"0" * 8), "needs"),
        (raw({"a": entry(shape=(2**38,), offsets=(0, 2**40))}, b"0" * 8), "truncated.*found 8"),
        (raw({"a": entry(), "b": entry()}, b"0" * 8), "neither overlaps"),
        (raw({"a": entry(), "b": entry(offsets=(4, 12))}, b"0" * 12), "neither overlaps"),
        (raw({"a": entry(offsets=(8, 16))}, b"0" * 16), "nor leaves holes"),
        (raw({"a": entry()}, b"0" * 12), "found"),
    ],
)
def test_malformed_files(tmp_path, content, message):
    path = tmp_path / SINGLE
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as e:
        SafetensorsReader(tmp_path)
    assert SINGLE in str(e.value)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_refuses_every_file_that_the_library_refuses(tmp_path_factory, data):
    """Bytes of a valid file changed at random; and where both read, both read the same."""
    directory = tmp_path_factory.mktemp("fuzz", numbered=True)
    path = directory / SINGLE
    save_file({"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.float16)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) - 4, len(content)))]
    path.write_bytes(bytes(content))
    try:
        theirs = load_file(path)
    except Exception:
        theirs = None
    try:
        reader = SafetensorsReader(directory)
        ours = {name: reader.read(name).copy() for name in reader.names()}
    except CheckpointError:
        ours = None
    if ours is not None:
        assert theirs is not None
        assert {k: v.tobytes() for k, v in ours.items()} == {
            k: v.tobytes() for k, v in theirs.items()
        }


def sharded(tmp_path, tensors):
    write(tmp_path, tensors, 40)
    return json.loads((tmp_path / INDEX).read_text())


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "", "a\\b.safetensors"]
    + ["x.bin", "x\0.safetensors", 3, None],
)
def test_index_may_name_plain_files_only(tmp_path, tensors, name):
    index = sharded(tmp_path, tensors)
    save_file({"a.weight": tensors["a.weight"]}, tmp_path.parent / "x.safetensors")
    index["weight_map"]["a.weight"] = name
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="plain .* file name"):
        SafetensorsReader(tmp_path)


def test_links_may_not_leave_the_directory(tmp_path, tensors):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    write(outside, tensors, 10**6)
    (inside / SINGLE).symlink_to(outside / SINGLE)
    with pytest.raises(CheckpointError, match="leaves its directory"):
        SafetensorsReader(inside)


def test_the_hub_cache_layout_of_links_is_read(tmp_path, tensors):
    repository = tmp_path / "models--x--y"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    write(blobs, tensors, 10**6)
    (blobs / SINGLE).rename(blobs / "abc")
    (snapshot / SINGLE).symlink_to("../../blobs/abc")
    same(SafetensorsReader(snapshot), tensors)


def test_index_and_shards_must_agree(tmp_path, tensors):
    index = sharded(tmp_path, tensors)
    files = index["weight_map"]

    def refuses(message, weight_map):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=message):
            SafetensorsReader(tmp_path)

    refuses("tensor ghost is not in", files | {"ghost": files["c"]})
    refuses("does not list", {k: v for k, v in files.items() if k != "b.bias"})
    refuses("no weight_map", None)
    os.remove(tmp_path / files["c"])
    refuses("is missing", files)


def test_nothing_there_and_pickles(tmp_path):
    with pytest.raises(CheckpointError, match="no model.safetensors"):
        SafetensorsReader(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match="pytorch_model.bin: convert"):
        SafetensorsReader(tmp_path)


def test_reading_is_lazy(tmp_path, tensors):
    """Only headers are read at first: the data may be anything."""
    write(tmp_path, tensors, 10**6)
    found = read_header(tmp_path / SINGLE)
    assert found["a.weight"].nbytes == 60
    assert SafetensorsReader(tmp_path).read("a.weight").base is not None
    with pytest.raises(CheckpointError, match="tensor x is missing"):
        SafetensorsReader(tmp_path).read("x")


def test_new_directory_is_whole_or_absent(tmp_path):
    target = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), new_directory(target) as draft:
        (draft / "half").write_text("")
        raise RuntimeError
    assert list((tmp_path / "deep").iterdir()) == []
    for text in ("one", "two"):
        with new_directory(target) as draft:
            (draft / "parity.json").write_text(text)
        assert [p.name for p in target.parent.iterdir()] == ["out"]
        assert (target / "parity.json").read_text() == text


def test_new_directory_spares_what_is_no_export(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for target in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(ConfigError, match="out_dir"), new_directory(target):
            pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
