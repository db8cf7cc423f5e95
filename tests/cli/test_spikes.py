"""Real text, real runs: poisoned documents heal, ordinary runs give no alarm. Slow: minutes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny

from t5x_llm.train.journal import read_journal

pytestmark = pytest.mark.slow

GIN = """
include 'configs/recipes/quickstart.gin'
Optimizer.name = 'adamw'
Optimizer.update_rms = None
Schedule.peak = 6e-3
Data.store_dir = 'store'
Llama.d_model = 64
Llama.n_layers = 2
Llama.d_ff = 176
Loop.steps = 600
Loop.batch_size = 8
Loop.sequence_length = 64
Loop.log_every = 1
Loop.eval_every = 0
Samples.prompts = ()
Export.enabled = False
CheckpointConfig.every_steps = 50
CheckpointConfig.keep = 20
SpikeConfig.rewind_steps = 20
SpikeConfig.skip_batches = 150
"""
# Rows of rising numbers, each from another start: a lesson that is wrong, wrong for every row in
# the same way, and learnable. (The same token over and over does less harm, noise hardly any.)
POISON = """
import sys
import numpy as np, tensorstore as ts
from t5x_llm.run.data import open_data
from t5x_llm.run.config import load_run
from t5x_llm.config import parse_flags
first, count = map(int, sys.argv[1:3])
run, _ = load_run(parse_flags(sys.argv[3:]))
data = open_data(run)
for position in range(first, first + count):
    for piece in data.stream.documents(position):
        split = data.opened.stores[piece.source].train
        start = int(split.offsets[piece.document]) + piece.start
        length = piece.stop - piece.start
        path = f"{split.store.path}/train/tokens"
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
        array = ts.open(spec).result()
        text = 300 + (np.arange(length) * 37 + position) % (run.model.vocab_size - 300)
        array[start : start + length].write(text.astype(array.dtype.numpy_dtype)).result()
"""
ONSET, STEPS_OF_POISON = 401, 100


@pytest.fixture
def text(tmp_path):
    (tmp_path / "small.gin").write_text(GIN)
    (tmp_path / "data").symlink_to(tiny.ROOT / "data")
    return tmp_path


def go(cwd, name, *flags):
    """A run; its losses and bits per byte, and its journal."""
    search = f"--gin_search_paths={tiny.ROOT}"
    tiny.train(cwd, search, f"--gin.Run.directory='{name}'", *flags, gin="small.gin", long=True)
    lines = [json.loads(x) for x in (cwd / name / "metrics.jsonl").read_text().splitlines()]
    train = [(x["step"], x["loss"], x["rewinds"]) for x in lines if x["kind"] == "train"]
    last = [x["results"] for x in lines if x["kind"] == "eval"][-1]
    return train, last["all"]["loss"], read_journal(cwd / name / "journal.jsonl")


def events(journal, *names):
    return [line for line in journal if line["event"] in names]


def test_poisoned_documents_heal(text):
    subprocess.run(
        [sys.executable, "-m", "t5x_llm.cli.main", "prepare", "--gin_file=small.gin"]
        + [f"--gin_search_paths={tiny.ROOT}"],
        cwd=text,
        env=tiny.environment(),
        check=True,
        capture_output=True,
    )
    _, clean, _ = go(text, "clean")
    tiny.python(
        *("-c", POISON, 8 * (ONSET - 1), 8 * STEPS_OF_POISON),
        *("--gin_file=small.gin", f"--gin_search_paths={tiny.ROOT}"),
        cwd=text,
    )
    _, unwatched, _ = go(text, "unwatched", "--gin.SpikeConfig.enabled=False")
    _, healed, journal = go(text, "healed")
    (rewind,) = events(journal, "rewind")
    assert rewind["onset"] == ONSET and rewind["detected"] < ONSET + 5
    assert healed < 1.01 * clean
    assert unwatched > 1.02 * clean
    (spike,) = events(journal, "spike")
    assert spike["documents"] and sum(spike["tokens_by_source"].values()) > 0
    # The same skips from the start: the same run to the bit.
    start, stop = rewind["skip"]
    go(text, "given", f"--gin.Loop.skips=(({start}, {stop}),)")
    wanted, got = tiny.arrays(text / "healed", 600), tiny.arrays(text / "given", 600)
    for name, array in wanted.items():
        np.testing.assert_array_equal(array, got[name], err_msg=name)
    print(f"held out: clean {clean:.4f}, healed {healed:.4f}, unwatched {unwatched:.4f}")
    for name in ("healed", "unwatched"):
        assert (text / name / "loss.png").exists()


SMALL = [
    "--gin.Loop.steps=120",
    "--gin.Schedule.name='constant'",
    "--gin.Schedule.peak=3e-3",
    "--gin.Loop.eval_every=0",
    "--gin.Samples.prompts=()",
    "--gin.Export.enabled=False",
    "--gin.CheckpointConfig.every_steps=10",
    "--gin.CheckpointConfig.keep=100",
    "--gin.SpikeConfig.window=32",
    "--gin.SpikeConfig.warmup=16",
    "--gin.SpikeConfig.rewind_steps=8",
    "--gin.SpikeConfig.skip_batches=30",
]


def test_two_processes_reach_the_verdict_of_one(tmp_path):
    """Four devices in one process and in two, whose sums round differently: one decision."""
    found = {}
    for processes in (1, 2):
        cwd = tmp_path / str(processes)
        cwd.mkdir()
        tiny.corpus(cwd, documents=600)
        tiny.python("-m", "t5x_llm.cli.main", "prepare", "--gin_file=tiny.gin", cwd=cwd)
        tiny.python("-c", POISON, 8 * 70, 8 * 20, "--gin_file=tiny.gin", cwd=cwd)
        command = [sys.executable, str(tiny.ROOT / "train.py"), "--gin_file=tiny.gin", *SMALL]
        if processes > 1:
            launch = [sys.executable, "-m", "t5x_llm.cli.main", "launch", "--restarts=0"]
            command = [*launch, "--processes=2", "--devices=2", "--", *command]
        subprocess.run(command, cwd=cwd, env=tiny.environment(4), check=True, timeout=600)
        journal = read_journal(cwd / "run" / "journal.jsonl")
        (rewind,) = events(journal, "rewind")
        skipped = [line["step"] for line in events(journal, "skip", "peak")]
        kept = {k: rewind[k] for k in ("onset", "detected", "to_step", "skip", "kind")}
        found[processes] = (kept, skipped, tiny.losses(cwd / "run")[120])
    assert found[1][:2] == found[2][:2] and found[1][0]["onset"] == 71
    assert found[1][2] == pytest.approx(found[2][2], rel=1e-2)


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--gin.Loop.seed=1", "--gin.Schedule.peak=1e-2", "--gin.Schedule.name='cosine'"),
        ("--gin.Loop.seed=2", "--gin.Schedule.name='wsd'", "--gin.Optimizer.name='lion'",
         "--gin.Schedule.peak=3e-4"),
    ],
)  # fmt: skip
def test_ordinary_runs_give_no_alarm(text, flags):
    """2,000 steps with warmup and a batch ramp."""
    ramp = ("--gin.Loop.ramp=@BatchRamp()", "--gin.BatchRamp.stages=((0,4),(2000,8))")
    thresholds = ("--gin.SpikeConfig.rewind_steps=100", "--gin.SpikeConfig.skip_batches=300")
    steps = ("--gin.Loop.steps=2000", "--gin.Schedule.warmup_steps=100")
    train, _, journal = go(text, "run", *ramp, *thresholds, *steps, *flags)
    assert len(train) == 2000
    assert events(journal, "spike", "rewind", "skip", "peak") == []
