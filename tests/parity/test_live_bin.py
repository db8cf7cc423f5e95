"""pytorch_model.bin: read by torch's weights-only loader alone; what else is in it never runs."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import shutil
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from cases import GOLDEN  # noqa: E402

from t5x_llm.core.errors import CheckpointError, ConfigError  # noqa: E402
from t5x_llm.hf.convert import convert  # noqa: E402
from t5x_llm.hf.safetensors_io import SafetensorsReader  # noqa: E402
from t5x_llm.hf.source import open_source  # noqa: E402
from t5x_llm.hf.torch_bin import FILE, INDEX  # noqa: E402


@pytest.fixture
def weights():
    reader = SafetensorsReader(GOLDEN / "llama_untied")
    return {name: torch.from_numpy(reader.read(name).copy()) for name in reader.names()}


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "model").mkdir()
    shutil.copy(GOLDEN / "llama_untied" / "config.json", tmp_path / "model")
    return tmp_path / "model"


def sharded(directory, weights):
    names = sorted(weights)
    halves = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, held in halves.items():
        torch.save({name: weights[name] for name in held}, directory / file)
    index = {name: file for file, held in halves.items() for name in held}
    (directory / INDEX).write_text(json.dumps({"weight_map": index}))
    return index


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_bin_is_converted(directory, tmp_path, weights, dtype):
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    torch.save(weights, directory / FILE)
    assert open_source(directory).kind == "bin"
    report = convert(directory, tmp_path / "out").report
    assert report.passed and report.reference.startswith("transformers")
    assert set(report.prompts) == {"long", "short", "source long", "source short"}
    reader = SafetensorsReader(tmp_path / "out")
    for name, tensor in weights.items():
        found = torch.from_numpy(reader.read(name).astype(np.float32))
        assert torch.equal(found, tensor.float())


def test_shards_and_tensors_that_share_memory(directory, weights):
    head = weights["lm_head.weight"]
    weights["lm_head.weight"] = torch.cat([head, head])[1::2].T.contiguous().T[: len(head)]
    sharded(directory, weights)
    reader = open_source(directory).weights
    for name, tensor in weights.items():
        assert reader.shape(name) == tuple(tensor.shape)
        np.testing.assert_array_equal(reader.read(name), tensor.numpy())


class Attack:
    """What a pickle may ask for: a call of anything."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("where", ["value", "name", "top"])
def test_code_in_a_pickle_does_not_run(directory, tmp_path, weights, where):
    canary = tmp_path / "canary"
    content = {
        "value": weights | {"model.norm.weight": Attack(canary)},
        "name": {("x", Attack(canary)): weights["model.norm.weight"]},
        "top": Attack(canary),
    }[where]
    torch.save(content, directory / FILE)
    with pytest.raises(CheckpointError, match="weights-only loader refuses.*Nothing in it was run"):
        convert(directory, tmp_path / "out")
    assert not canary.exists() and not (tmp_path / "out").exists()
    torch.load(directory / FILE, weights_only=False)  # the attack is a real one
    assert canary.exists()


def test_a_bare_pickle_is_not_even_opened(directory, tmp_path):
    (directory / FILE).write_bytes(pickle.dumps(Attack(tmp_path / "canary")))
    with pytest.raises(CheckpointError, match="bare pickles"):
        open_source(directory)
    torch.save({"a": torch.ones(2)}, directory / FILE, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="bare pickles"):
        open_source(directory)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"a": 3}, "'a' is a int"),
        ({3: torch.ones(2)}, "3 is a Tensor"),
        ({"a": torch.ones(3).expand(10**12, 3)}, "claims more than is stored"),
        ({"a": torch.eye(3).to_sparse()}, "not a plain dense tensor"),
    ],
)
def test_what_is_no_weights(directory, content, message):
    torch.save(content, directory / FILE)
    with pytest.raises(CheckpointError, match=message):
        open_source(directory)


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in change(entries).items():
            archive.writestr(name, data)


def test_zip_tricks(directory, weights):
    path = directory / FILE

    def refuses(message, change=lambda e: e, **more):
        torch.save(weights, path)
        rewritten(path, change, **more)
        with pytest.raises(CheckpointError, match=message):
            open_source(directory)

    refuses("compressed", compression=zipfile.ZIP_DEFLATED)
    refuses("not one torch writes", lambda e: e | {"../../escape": b"x"})
    refuses("not one torch writes", lambda e: e | {"/etc/x": b"x"})
    refuses("weights-only loader", lambda e: dict(list(e.items())[:3]))
    torch.save(weights, path)
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError):
            open_source(directory)
    rng = np.random.default_rng(0)
    for _ in range(30):  # the directory of the zip lies at the end
        spoilt = bytearray(whole)
        for at in rng.integers(len(whole) - 3000, len(whole), 3):
            spoilt[at] = rng.integers(256)
        path.write_bytes(spoilt)
        try:
            reader = open_source(directory).weights
            assert sum(reader.read(n).nbytes for n in reader.names()) <= len(whole)
        except CheckpointError:
            pass


@pytest.mark.parametrize("name", ["../x.bin", "/tmp/x.bin", "a/b.bin", "x.safetensors", 3, None])
def test_the_index_may_name_plain_files_only(directory, weights, name):
    index = sharded(directory, weights)
    torch.save(weights, directory.parent / "x.bin")
    (directory / INDEX).write_text(json.dumps({"weight_map": index | {"lm_head.weight": name}}))
    with pytest.raises(CheckpointError, match="plain .* file name"):
        open_source(directory)


def test_links_and_missing_shards(directory, weights):
    index = sharded(directory, weights)
    first = pathlib.Path(directory / index["lm_head.weight"])
    outside = first.rename(directory.parent / "outside.bin")
    with pytest.raises(CheckpointError, match="is missing"):
        open_source(directory)
    first.symlink_to(outside)
    with pytest.raises(CheckpointError, match="leaves its directory"):
        open_source(directory)
    first.unlink()
    outside.rename(first)
    (directory / INDEX).write_text(json.dumps({"weight_map": index | {"ghost": first.name}}))
    with pytest.raises(CheckpointError, match="tensor ghost is not in"):
        open_source(directory)
    index.pop("lm_head.weight")
    (directory / INDEX).write_text(json.dumps({"weight_map": index}))
    with pytest.raises(CheckpointError, match="does not list lm_head.weight"):
        open_source(directory)


def test_safetensors_beside_a_pickle_are_what_is_read(directory, tmp_path):
    shutil.copy(GOLDEN / "llama_untied" / "model.safetensors", directory)
    torch.save({"x": Attack(tmp_path / "canary")}, directory / FILE)
    assert open_source(directory).kind == "safetensors"
    assert convert(directory, tmp_path / "out").report.passed
    assert not (tmp_path / "canary").exists()


def test_an_old_torch_is_refused(directory, weights, monkeypatch):
    torch.save(weights, directory / FILE)
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(ConfigError, match="2.6 or later"):
        open_source(directory)
