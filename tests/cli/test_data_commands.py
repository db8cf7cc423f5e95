"""``t5x-llm data plan`` and ``data trace``; a run that follows its plan."""

import json

import numpy as np
import pytest
import tiny

from t5x_llm.checkpoint import CheckpointConfig, Checkpointer
from t5x_llm.cli import main as command
from t5x_llm.config import parse_flags
from t5x_llm.data.positions import DataState
from t5x_llm.run.config import load_run
from t5x_llm.run.data import open_data


@pytest.fixture
def prepared(trained, monkeypatch):
    """The directory of the tiny run, to work in."""
    monkeypatch.chdir(trained[0])
    return trained[0]


def data(capfd, *arguments):
    command.main(["data", *arguments])
    return capfd.readouterr().out


BLEND = (
    "--gin.Data.bins=4",
    "--gin.Data.packing='similar'",
    "--gin.Mixture.stages=((2, {'en': 0.2, 'zh': 0.8}),)",
    "--gin.zh/Source.tokens='1k'",
)


def test_plan_before_and_after_a_run(prepared, capfd):
    text = data(capfd, "plan", "--gin_file=tiny.gin")
    assert "2 sources, 64 rows, 2.05k places, rows of 32 tokens, concat" in text
    assert "├─ en " in text and "schedule" not in text
    assert data(capfd, "plan", "run") == text
    assert data(capfd, "diet", "run") == text, "the earlier name of the command"
    told = json.loads(data(capfd, "plan", "run", "--json"))
    assert sum(s["rows"] for s in told["sources"].values()) == 64 and not told["warnings"]


def test_plan_of_a_blend_and_what_it_refuses(prepared, capfd):
    text = data(capfd, "plan", "--gin_file=tiny.gin", *BLEND)
    assert "similar, 4 bins" in text and "from step 2, row 16" in text and "zh used up" in text
    for flag, said in (
        ("--gin.Mixture.max_epochs=0.01", "Mixture.max_epochs = 0.01: expected at least"),
        ("--gin.en/Source.tokens=100", "zh would be read beyond"),
    ):
        with pytest.raises(SystemExit):
            data(capfd, "plan", "--gin_file=tiny.gin", *BLEND, flag)
        assert said in capfd.readouterr().err
    command.main(["train", "--dry_run", "--gin_file=tiny.gin", "--gin.Run.directory='new'", *BLEND])
    assert text.splitlines()[1] in capfd.readouterr().out


def test_trace_names_the_lines_that_the_batch_holds(prepared, capfd):
    run = load_run(parse_flags(["--gin_file=tiny.gin"]))[0]
    opened = open_data(run)
    rows = [json.loads(x) for x in data(capfd, "trace", "run", "--step=3", "--json").splitlines()]
    batch = opened.stream.batch(16, 8)
    assert [r["example"] for r in rows] == list(range(16, 24))
    assert [r["source"] for r in rows] == [opened.stream.sources[i] for i in batch.source]
    for row, tokens in zip(rows, batch.tokens, strict=True):
        for piece in row["pieces"]:
            line = (prepared / piece["file"]).read_text().splitlines()[piece["line"] - 1]
            read = tokens[piece["column"] :][: np.diff(piece["tokens"])[0]].tolist()
            assert opened.opened.tokenizer.decode(read).strip() in json.loads(line)["text"]
            assert piece["text"].removesuffix("...") in json.loads(line)["text"]
    text = data(capfd, "trace", "--gin_file=tiny.gin", "--step", "3", "--rows", "1,5", "--chars=9")
    assert text.startswith("step 3: examples 16 to 23, 8 rows\nrow 1: ") and "\nrow 5: " in text
    assert f"{rows[1]['pieces'][0]['file']}:{rows[1]['pieces'][0]['line']}, tokens " in text


def test_trace_follows_changes_and_skips_of_a_run(prepared, capfd, tmp_path):
    for name in ("operative_config.gin", "journal.jsonl"):
        (tmp_path / name).write_text((prepared / "run" / name).read_text())
    lines = [
        {"event": "mixture", "stream_position": 32, "weights": {"en": 0.0, "zh": 1.0}},
        {"event": "rewind", "onset": 3, "detected": 3, "to_step": 2, "skip": [16, 24]},
    ]
    with open(tmp_path / "journal.jsonl", "a") as file:
        for line in lines:
            file.write(json.dumps({"time": "2025-01-01T00:00:00Z", "step": 3, **line}) + "\n")
    rows = data(capfd, "trace", str(tmp_path), "--step=3", "--json").splitlines()
    assert [json.loads(row)["stream_position"] for row in rows] == list(range(24, 32))
    rows = data(capfd, "trace", str(tmp_path), "--step=4", "--json").splitlines()
    assert {json.loads(row)["source"] for row in rows} == {"zh"}
    assert "from step 3, row 24" in data(capfd, "plan", str(tmp_path))


def test_what_cannot_be_traced(prepared, capfd):
    for flags, said in (
        (("--gin_file=tiny.gin", "--step=0"), "--step = 0"),
        (("--gin_file=tiny.gin", "--step=1", "--rows=9"), "rows from 0 to 7"),
        (("--gin_file=tiny.gin", "run", "--step=1"), "no gin flags beside it"),
        (("nowhere", "--step=1"), "operative_config.gin"),
        (("--gin_file=tiny.gin", "--step=1", "--gin.Data.name='other'"), "t5x-llm prepare"),
    ):
        with pytest.raises(SystemExit):
            data(capfd, "trace", *flags)
        assert said in capfd.readouterr().err


@pytest.mark.slow
def test_a_run_follows_its_plan_over_a_resume(trained, tmp_path):
    """Killed or not, the same mixtures and the same losses; one line a mixture in the journal."""
    directory, _ = trained
    losses = []
    for name, steps in (("whole", (8,)), ("halves", (3, 8))):
        where = f"--gin.Run.directory='{tmp_path}/{name}'"
        for last in steps:
            tiny.train(directory, where, *BLEND, f"--gin.Loop.steps={last}",
                       "--gin.Schedule.name='constant'")  # fmt: skip
        losses.append(tiny.losses(tmp_path / name))
        lines = (tmp_path / name / "journal.jsonl").read_text().splitlines()
        told = [x for x in map(json.loads, lines) if x["event"] == "mixture"]
        keeper = Checkpointer(tmp_path / name / "checkpoints", CheckpointConfig(), read_only=True)
        history = DataState.from_json(keeper.newest_meta()[1]["data"]).history
        keeper.close()
        assert [(x["stream_position"], x["weights"]) for x in told] == list(history)
        assert [start for start, _ in history][:2] == [0, 16] and len(history) == 3
    assert losses[0] == losses[1]
