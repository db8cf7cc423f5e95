"""What people give in place of a model is named, with what to do; links are followed where safe."""

import json
import os
import shutil
import signal
import subprocess
import sys

import models
import numpy as np
import pytest

from t5x_llm.core.errors import CheckpointError, ConfigError, T5xLLMError
from t5x_llm.hf import reference
from t5x_llm.hf.drafts import make_draft, remove_abandoned
from t5x_llm.hf.import_ import import_model
from t5x_llm.hf.safetensors_write import new_directory
from t5x_llm.hf.source import open_source
from t5x_llm.run.load import load


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setattr(reference, "torch_available", lambda: False)


@pytest.fixture
def plain(tmp_path):
    models.write(tmp_path / "plain", models.tensors())
    return tmp_path / "plain"


def refused(path, message, error=T5xLLMError):
    with pytest.raises(error, match=message):
        open_source(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>no</html>", "web page.*accept a licence"),
        (b"\n<html><body>403", "web page"),
        (b"", "empty"),
        (b"GGUF" + b"\0" * 40, "GGUF file.*ends in .gguf"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json"])
def test_files_that_are_something_else(plain, name, content, message):
    (plain / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}.*{message}"):
        open_source(plain).generation()


def test_weights_in_ggufs_that_are_pointers(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(tmp_path / "x.gguf", "x.gguf: is a pointer of git-lfs")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq.*dequantize"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"bits": 2}, "bits': 2"),
    ],
)
def test_quantised_weights_are_named(tmp_path, settings, message):
    models.write(
        tmp_path / "q", models.tensors(), models.CONFIG | {"quantization_config": settings}
    )
    refused(tmp_path / "q", f"quantization_config.*{message}", ConfigError)


@pytest.mark.parametrize(
    ("ending", "how"),
    [
        ("qweight", "gptq or awq"),
        ("weight.absmax", "bitsandbytes"),
        ("weight_scale_inv", "fp8"),
        ("weight_packed", "compressed-tensors"),
    ],
)
def test_quantised_weights_without_a_word_in_config_json(tmp_path, ending, how):
    odd = {f"model.layers.0.self_attn.q_proj.{ending}": np.zeros(4, np.float32)}
    models.write(tmp_path / "q", models.tensors() | odd)
    refused(tmp_path / "q", how)


def test_adapters(plain, tmp_path):
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "me/tiny"}
    for place in (tmp_path / "adapter", plain):
        place.mkdir(exist_ok=True)
        (place / "adapter_config.json").write_text(json.dumps(adapter))
        (place / "model.safetensors").unlink(missing_ok=True)
        refused(place, "adapter.*'me/tiny'.*merge_and_unload")


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod."]
)
def test_names_behind_a_prefix(tmp_path, prefix):
    whole = {prefix + name: array for name, array in models.tensors().items()}
    models.write(tmp_path / "p", whole)
    with pytest.raises(CheckpointError, match=f"{len(whole)} of.*missing.*prefix '{prefix}'"):
        import_model(tmp_path / "p", check=False)


def test_tensors_of_training_that_have_no_place(tmp_path):
    for name, message in (
        ("v_head.summary.weight", "value head"),
        ("x.lora_A.weight", "merge_and"),
    ):
        models.write(tmp_path / "p", models.tensors() | {name: np.zeros((1, 16), np.float32)})
        with pytest.raises(CheckpointError, match=message):
            import_model(tmp_path / "p", check=False)
        shutil.rmtree(tmp_path / "p")


@pytest.mark.parametrize(
    "path", ["org/name", "hf://org/name", "https://huggingface.co/org/name/tree/main"]
)
def test_names_on_the_hub(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for take in (load, open_source):
        with pytest.raises(T5xLLMError, match="hf download org/name --local-dir models/name"):
            take(path)


def hub(tmp_path, plain):
    """A repository in the hub's download cache."""
    repo = tmp_path / "hub" / "models--me--tiny"
    snapshot = repo / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for i, name in enumerate(("config.json", "model.safetensors")):
        shutil.copy(plain / name, repo / "blobs" / f"b{i}")
        (snapshot / name).symlink_to(f"../../blobs/b{i}")
    return repo, snapshot


def test_the_download_cache_of_the_hub(plain, tmp_path):
    repo, snapshot = hub(tmp_path, plain)
    for place in (repo, repo / "snapshots"):
        refused(place, f"give {snapshot}")
    refused(repo.parent, "download cache.*models--me--tiny")
    assert open_source(snapshot).weights.names()
    linked = tmp_path / "mine"
    linked.symlink_to(snapshot)
    assert open_source(linked).weights.names()
    copied = tmp_path / "copy" / "snapshots" / "main"  # a copy under another name
    shutil.copytree(repo, tmp_path / "copy", symlinks=True)
    (tmp_path / "copy" / "snapshots" / "0123abc").rename(copied)
    assert open_source(copied).weights.names()


def test_a_directory_of_links_into_the_cache(plain, tmp_path):
    repo, _ = hub(tmp_path, plain)
    local = tmp_path / "local"
    local.mkdir()
    for i, name in enumerate(("config.json", "model.safetensors")):
        (local / name).symlink_to(repo / "blobs" / f"b{i}")
    assert open_source(local).weights.names()
    (repo / "blobs" / "b1").unlink()
    refused(local, "model.safetensors: is a link to .*b1, and there is no such file")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
def test_links_to_anywhere_else_are_refused_with_a_remedy(plain, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "x"
    if (plain / name).exists():
        (plain / name).rename(target)
    else:
        target.write_text("{}")
    (plain / name).symlink_to(target)
    with pytest.raises(CheckpointError, match=f"{name}: is a link that leaves.*link the whole dir"):
        open_source(plain).generation()
    # Neither a directory called blobs nor one called models-- is enough of a cache.
    for place in (tmp_path / "x" / "blobs", tmp_path / "models--a"):
        place.mkdir(parents=True)
        shutil.copy(target, place / "x")
        (plain / name).unlink()
        (plain / name).symlink_to(place / "x")
        with pytest.raises(CheckpointError, match="leaves"):
            open_source(plain).generation()


def test_directories_near_a_model(plain, tmp_path):
    refused(tmp_path, f"one level deeper: give {plain}")
    refused(plain / "model.safetensors", "It is a file; give the directory")
    for name, message in (
        ("consolidated.safetensors", "Mistral's own layout"),
        ("model.fp16.safetensors", "call it model.safetensors"),
        ("tf_model.h5", "TensorFlow"),
        ("x.gguf", "give the file itself"),
    ):
        (plain / "model.safetensors").rename(plain / name)
        refused(plain, message)
        (plain / name).rename(plain / "model.safetensors")
    (plain / "model.safetensors").unlink()
    refused(plain, "no weights at all")


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path):
    target = tmp_path / "hf"
    dead, other = tmp_path / ".hf.0123abcd.tmp", tmp_path / ".hf2.0123abcd.tmp"
    for place in (dead, other, tmp_path / ".hf.mine.tmp"):
        place.mkdir()
        (place / "model.safetensors").write_bytes(b"x")
    alive = make_draft(target)
    with new_directory(target) as draft:
        assert not dead.exists() and alive.path.exists() and draft.exists()
        (draft / "parity.json").write_text("{}")
    assert other.exists() and (tmp_path / ".hf.mine.tmp").exists()
    os.close(alive.lock)
    assert remove_abandoned(target) == [alive.path] and (target / "parity.json").exists()


def test_an_earlier_export_that_was_moved_aside_comes_back(tmp_path):
    target = tmp_path / "hf"
    for name in (".hf.0123abcd.tmp", ".hf.0123abcd.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "parity.json").write_text(name)
    remove_abandoned(target)
    assert (target / "parity.json").read_text() == ".hf.0123abcd.old"
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]
    link = tmp_path / ".hf.89abcdef.tmp"
    link.symlink_to(target)
    assert remove_abandoned(target) == [] and (target / "parity.json").exists()


def test_a_draft_is_held_while_its_process_lives(tmp_path):
    code = (
        "import pathlib, sys, time; from t5x_llm.hf.drafts import make_draft\n"
        f"print(make_draft(pathlib.Path({str(tmp_path / 'hf')!r})).path, flush=True)\n"
        "time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    draft = child.stdout.readline().strip()
    assert remove_abandoned(tmp_path / "hf") == [] and os.path.isdir(draft)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert [str(p) for p in remove_abandoned(tmp_path / "hf")] == [draft]
