"""``python train.py`` from text to exported model: the record, the same again, kill and resume."""

import json
import shutil

import numpy as np
import pytest
import tiny

ROOMS = ("tensorflow", "seqio", "torch", "tensorflow_datasets")
WATCHED = f"""
import atexit, runpy, sys
atexit.register(lambda: print("LOADED", sorted(set({ROOMS}) & set(sys.modules))))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
KILLED = """
import os, signal, sys
from t5x_llm.train.hooks import Metrics
before = Metrics.on_step
def on_step(self, run, record):
    before(self, run, record)
    if record.step == 5:
        self.on_end = None
        os.kill(os.getpid(), signal.SIGKILL)
Metrics.on_step = on_step
from t5x_llm.cli.train import main
main(sys.argv[1:])
"""
COUNTED = """
import sys
import jax
names = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **facts: names.append((event.split("/")[-1], facts.get("fun_name", "")))
)
from t5x_llm.cli.train import main
main(sys.argv[1:])
for event in ("jaxpr_trace_duration", "backend_compile_duration"):
    print(event, sum(e == event and "train_step" in name for e, name in names))
"""


def test_a_run_leaves_everything(trained):
    directory, done = trained
    run = directory / "run"
    left = {p.name for p in run.iterdir()}
    assert left == {
        *("metrics.jsonl", "operative_config.gin", "report.html", "loss.png", "samples.txt"),
        *("checkpoints", "hf", "tensorboard", "journal.jsonl"),
    }
    kinds = [json.loads(x)["kind"] for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("train") == 8 and kinds.count("eval") == 2
    assert "[春]" in (run / "samples.txt").read_text()
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"} <= {
        p.name for p in (run / "hf").iterdir()
    }
    assert "bits/byte" in done.stderr and "Next: t5x-llm generate run" in done.stderr
    for noise in ("Traceback", "WARNING", "tensorflow/", "xla/", "Error"):
        assert noise not in done.stderr + done.stdout


def test_operative_config_alone_is_the_same_run_without_tensorflow(trained, tmp_path):
    directory, _ = trained
    shutil.copy(directory / "run" / "operative_config.gin", tmp_path / "alone.gin")
    done = tiny.python(
        *("-c", WATCHED, tiny.ROOT / "train.py", f"--gin_file={tmp_path}/alone.gin"),
        f"--gin.Run.directory='{tmp_path}/again'",
        cwd=directory,
    )
    assert "LOADED []" in done.stdout
    assert tiny.losses(tmp_path / "again") == tiny.losses(directory / "run")
    wanted, got = (tiny.arrays(p, 8) for p in (directory / "run", tmp_path / "again"))
    assert wanted.keys() == got.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(array, got[name], err_msg=name)


@pytest.mark.extended
def test_the_step_is_traced_and_compiled_once(trained, tmp_path):
    """In a thread, before the run needs it: the loop's own call must find it."""
    directory, _ = trained
    flags = ("--gin_file=tiny.gin", f"--gin.Run.directory='{tmp_path}/run'")
    for steps, wanted in ((4, 1), (8, 1), (8, 0)):  # a fresh run, one resumed, one finished
        more = (f"--gin.Loop.steps={steps}", "--gin.Export.enabled=False")
        done = tiny.python("-c", COUNTED, *flags, *more, cwd=directory)
        for event in ("jaxpr_trace_duration", "backend_compile_duration"):
            assert f"{event} {wanted}\n" in done.stdout, (steps, done.stdout)


def test_killed_and_resumed_is_the_same_run(trained, tmp_path):
    directory, _ = trained
    flags = ("--gin_file=tiny.gin", f"--gin.Run.directory='{tmp_path}/run'")
    killed = tiny.python("-c", KILLED, *flags, cwd=directory, check=False)
    assert killed.returncode == -9
    assert not (tmp_path / "run" / "checkpoints" / "8").exists()
    done = tiny.train(directory, flags[1])
    assert "Continuing" in done.stderr
    assert tiny.losses(tmp_path / "run") == tiny.losses(directory / "run")
    wanted, got = (tiny.arrays(p, 8) for p in (directory / "run", tmp_path / "run"))
    for name, array in wanted.items():
        np.testing.assert_array_equal(array, got[name], err_msg=name)


@pytest.mark.extended
def test_a_finished_run_says_so(trained, tmp_path):
    directory, _ = trained
    shutil.copytree(directory / "run", tmp_path / "run")
    done = tiny.train(directory, f"--gin.Run.directory='{tmp_path}/run'")
    assert "is finished" in done.stderr and "Next: t5x-llm generate" in done.stderr
    assert tiny.losses(tmp_path / "run") == tiny.losses(directory / "run")


@pytest.mark.extended
def test_resume_says_what_is_wanted(trained, tmp_path):
    directory, _ = trained
    done = tiny.train(directory, "--resume=never", check=False)
    assert done.returncode == 2 and "there is step 8" in done.stderr
    where = f"--gin.Run.directory='{tmp_path}/run'"
    done = tiny.train(directory, "--resume=always", where, check=False)
    assert done.returncode == 2 and "a checkpoint, as --resume=always" in done.stderr


@pytest.mark.extended
def test_other_rates_hold_from_there_on(trained, tmp_path):
    """The past stays as it was: its history is in the journal and in the checkpoint."""
    directory, _ = trained
    shutil.copytree(directory / "run", tmp_path / "run")
    flags = (f"--gin.Run.directory='{tmp_path}/run'", "--gin.Mixture.rates=(3.0, 1.0)")
    refused = tiny.train(directory, *flags, check=False)
    assert refused.returncode == 2 and "Mixture.rates" in refused.stderr
    allowed = "--gin.CheckpointConfig.allow_changes=('Mixture.rates',)"
    tiny.train(directory, *flags, allowed, "--gin.Loop.steps=12")
    lines = [json.loads(x) for x in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    first, second = [x for x in lines if x["event"] == "mixture"]
    assert first["stream_position"] == 0 and second["stream_position"] == 8 * 8
    assert second["weights"] == {"en": 0.75, "zh": 0.25}
    meta = tmp_path / "run" / "checkpoints" / "12" / "meta" / "metadata"
    history = json.loads(meta.read_text())["data"]["history"]
    assert [start for start, _ in history] == [0, 64] and history[0][1] == first["weights"]


@pytest.mark.slow
def test_two_processes_of_four_devices(tmp_path):
    import socket
    import subprocess
    import sys

    tiny.corpus(tmp_path)
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    group = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, str(tiny.ROOT / "train.py"), "--gin_file=tiny.gin"]
    processes = [
        subprocess.Popen(
            [*command, "--gin.MeshConfig.tensor=2"],
            cwd=tmp_path,
            env={**tiny.environment(4), **group, "JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        printed = [p.communicate(timeout=300) for p in processes]
    finally:
        for p in processes:
            p.kill()
    for p, (_, err) in zip(processes, printed, strict=True):
        assert p.returncode == 0, err
    assert "to export     t5x-llm export run" in printed[0][1] and "samples" not in printed[0][1]
    assert "Training" not in printed[1][1]
    tiny.train(tmp_path, "--gin.Run.directory='alone'")
    here, there = tiny.losses(tmp_path / "alone"), tiny.losses(tmp_path / "run")
    assert here.keys() == there.keys()
    assert all(abs(here[step] - there[step]) < 2e-2 * here[step] for step in here)
    tiny.python("-m", "t5x_llm.cli.main", "export", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "hf" / "model.safetensors").exists()
