"""Mistakes through the command line: status 2, a message with a remedy, nothing half-written."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny

from t5x_llm.cli import main as command

DATA = {
    "empty": ("", ("'en'", "en.jsonl")),
    "no text": ('{"text": ""}\n', ("'en'", "no text")),
    "not UTF-8": (b'{"text": "fine"}\n{"text": "caf\xe9"}\n', ("en.jsonl:2", "not UTF-8", "iconv")),
    "broken line": ('{"text": "fine"}\n{"text": \n', ("en.jsonl:2", "Repair or remove the line")),
    "no field": ('{"text": "a b"}\n{"txet": "c"}\n', ("en.jsonl:2", "'text'", "Source.field")),
}
CONFIG = {
    "negative rate": (("Mixture.rates=(1, -1)",), ("Mixture.rates", "-1", "at least 0")),
    "all rates zero": (("Mixture.rates=(0, 0)",), ("Mixture.rates", "above 0")),
    "unknown rates": (("Mixture.rates='proportionl'",), ("'proportional'?",)),
    "typo in a field": (("Loop.stepz=3",), ("Loop.stepz", "Loop.steps")),
    "impossible heads": (("Llama.n_heads=5",), ("Llama.n_heads = 5", "Llama.d_model = 32")),
    "batch and mesh": (
        ("Loop.batch_size=3", "MeshConfig.fsdp=8"),
        ("Loop.batch_size = 3", "fsdp=8", "Set Loop.batch_size to 8"),
    ),
    "longer than positions": (
        ("Run.model=@GPT2()", "GPT2.vocab_size=400", "GPT2.d_model=32", "GPT2.n_layers=1")
        + ("GPT2.n_heads=2", "GPT2.max_length=16"),
        ("Loop.sequence_length = 32", "GPT2.max_length = 16", "shorten the sequence"),
    ),
    "devices that are not there": (("MeshConfig.fsdp=3",), ("MeshConfig.fsdp = 3", "8 devices")),
    "below a file": (("Run.directory='en.jsonl/run'",), ("Run.directory", "Choose another")),
    "store below a file": (("Data.store_dir='en.jsonl/x'",), ("Data.store_dir", "Choose another")),
    "no such start": (("Run.start_from='nowhere'",), ("nowhere", "config.json")),
}


def refused(capfd, *argv):
    """What a command says on stderr as it ends with status 2."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        command.main(argv)
    said = capfd.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in said, said
    return said


def leftovers(directory):
    """Files of half-done work."""
    return [p for p in directory.rglob("*") if "tmp" in p.name or p.name.startswith(".probe")]


@pytest.mark.parametrize("case", DATA)
def test_bad_text(here, capfd, case):
    content, said = DATA[case]
    content = content if isinstance(content, bytes) else content.encode()
    (here / "en.jsonl").write_bytes(content)
    message = refused(capfd, "prepare", "--gin_file=tiny.gin")
    assert message.count("DataError") == 1
    for part in said:
        assert part in message
    assert not leftovers(here) and not (here / "store" / "mixture.json").exists()


@pytest.mark.extended
def test_bad_text_ends_training_too(here):
    (here / "en.jsonl").write_text("{\n")
    done = tiny.train(here, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("en.jsonl:1") == 1
    assert not list((here / "run").iterdir()) and not leftovers(here)


@pytest.mark.parametrize("case", CONFIG)
def test_bad_config(here, capfd, case):
    bindings, said = CONFIG[case]
    flags = [f"--gin.{b}" for b in bindings]
    for command_line in (["train", *flags], ["train", "--dry_run", *flags]):
        if case == "devices that are not there" and "--dry_run" in command_line:
            continue  # a plan for other devices is fine
        if case == "store below a file" and "--dry_run" not in command_line:
            continue  # another process says so, see test_bad_text_ends_training_too
        message = refused(capfd, *command_line[:1], "--gin_file=tiny.gin", *command_line[1:])
        for part in said:
            assert part in message
    assert not (here / "run").exists() or not list((here / "run").iterdir())


def test_unknown_seqio_mixture(here):
    (here / "my_tasks.py").write_text(
        "import seqio\nseqio.TaskRegistry.add('books', seqio.TextLineDataSource({'train': 'x'}),"
        " output_features={})\n"
    )
    done = tiny.python(
        *("-m", "t5x_llm.cli.main", "prepare", "--gin_file=tiny.gin", "--gin.Data.mixture=None"),
        *("--gin.Data.seqio_mixture='boks'", "--gin.Data.modules=('my_tasks',)"),
        cwd=here,
        check=False,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "boks" in done.stderr and "books" in done.stderr


def test_tokenizer_of_another_size(trained, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(trained[0])
    where = f"--gin.Run.directory='{tmp_path}/run'"
    for extra in ([], ["--dry_run"]):
        flags = ("--gin_file=tiny.gin", "--gin.Llama.vocab_size=500", where)
        said = refused(capfd, "train", *flags, *extra)
        assert "Llama.vocab_size = 500" in said and "Set it to 400" in said


def test_checkpoint_of_another_run(trained, monkeypatch, capfd):
    monkeypatch.chdir(trained[0])
    run = trained[0] / "run"
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    for binding, said in (
        ("Llama.d_ff=128", "Llama.d_ff: 64 -> 128"),
        ("Schedule.peak=1e-3", "Schedule.peak: 0.01 -> 0.001"),
    ):
        for extra in ([], ["--dry_run"]):
            message = refused(capfd, "train", "--gin_file=tiny.gin", f"--gin.{binding}", *extra)
            assert said in message and "CheckpointConfig.allow_changes" in message
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*")}


def test_start_from_another_model(trained, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(trained[0])
    flags = ("--gin_file=tiny.gin", "--gin.Run.start_from='run/hf'", "--gin.Llama.n_layers=3")
    said = refused(capfd, "train", *flags, f"--gin.Run.directory='{tmp_path}/run'")
    assert "Llama.n_layers: 2 -> 3" in said and "start_from" in said


def test_truncated_safetensors(trained, tmp_path, capfd):
    shutil.copytree(trained[0] / "run" / "hf", tmp_path / "hf")
    weights = tmp_path / "hf" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for argv in (
        ["parity", tmp_path / "hf"],
        ["import", tmp_path / "hf", tmp_path / "out"],
        ["generate", tmp_path / "hf", "--prompt", "a"],
    ):
        said = refused(capfd, *map(str, argv))
        assert "CheckpointError" in said and "model.safetensors" in said
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


@contextlib.contextmanager
def small_disk(path, size):
    """A file system of ``size`` bytes at ``path``, if this user may make one."""
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True
    )
    try:
        yield made.returncode == 0
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.extended
def test_full_disk_while_saving(trained, tmp_path):
    directory, _ = trained
    flags = [f"--gin.Run.directory='{tmp_path}/disk/run'"]
    with small_disk(tmp_path / "disk", 900_000) as mounted:
        if not mounted:
            pytest.skip("no right to mount a small file system")
        once = "--gin.CheckpointConfig.give_up_minutes=0"
        done = tiny.train(directory, *flags, once, check=False)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr and "Free space" in done.stderr
        whole = sorted(
            int(p.parent.name)
            for p in (tmp_path / "disk" / "run" / "checkpoints").glob("*/_CHECKPOINT_METADATA")
            if json.loads(p.read_text()).get("commit_timestamp_nsecs")
        )
        assert whole and whole[-1] < 8
        subprocess.run(["mount", "-o", "remount,size=50m", str(tmp_path / "disk")], check=True)
        again = tiny.train(directory, *flags)
        assert "Continuing" in again.stderr
        assert tiny.losses(tmp_path / "disk" / "run") == tiny.losses(directory / "run")


@pytest.mark.extended
def test_a_disk_that_is_freed_in_time_ends_nothing(trained, tmp_path):
    directory, _ = trained
    with small_disk(tmp_path / "disk", 900_000) as mounted:
        if not mounted:
            pytest.skip("no right to mount a small file system")
        process = subprocess.Popen(
            [sys.executable, tiny.ROOT / "train.py", "--gin_file=tiny.gin"]
            + [f"--gin.Run.directory='{tmp_path}/disk/run'"],
            cwd=directory, env=tiny.environment(), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        told = ""
        while "the save is tried again" not in told:
            told = process.stderr.readline()
            assert told, "it ended before it warned"
        subprocess.run(["mount", "-o", "remount,size=50m", str(tmp_path / "disk")], check=True)
        _, rest = process.communicate(timeout=200)
        assert process.returncode == 0, rest
        assert tiny.losses(tmp_path / "disk" / "run") == tiny.losses(directory / "run")
        wanted, got = (tiny.arrays(p, 8) for p in (directory / "run", tmp_path / "disk" / "run"))
        for name, array in wanted.items():
            np.testing.assert_array_equal(array, got[name], err_msg=name)


@pytest.mark.extended
def test_limit_on_file_size(trained, tmp_path):
    directory, _ = trained

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    where = f"--gin.Run.directory='{tmp_path}/run'"
    env = {**tiny.environment(), "JAX_COMPILATION_CACHE_DIR": ""}
    done = subprocess.run(
        [sys.executable, tiny.ROOT / "train.py", "--gin_file=tiny.gin", where]
        + ["--gin.CheckpointConfig.give_up_minutes=0"],
        cwd=directory, env=env, preexec_fn=limit, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_one_document_of_50_mb(here):
    text = " ".join(f"word{i % 9973}" for i in range(6_000_000))[: 50 << 20]
    (here / "en.jsonl").write_text(
        (here / "en.jsonl").read_text() + json.dumps({"text": text}) + "\n"
    )
    tiny.train(here)
    assert os.path.exists(here / "run" / "hf" / "model.safetensors")
