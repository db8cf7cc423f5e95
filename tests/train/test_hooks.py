"""Hooks: the record, the bar, the trace, TensorBoard."""

import io
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import toy
from journals import files_of_at_most
from test_loop import go

from t5x_llm.core.errors import Preempted
from t5x_llm.data.positions import DataState
from t5x_llm.train import jsonl
from t5x_llm.train.config import Loop
from t5x_llm.train.flops import Peak
from t5x_llm.train.goodput import goodput
from t5x_llm.train.hooks import (
    Hook,
    Journaling,
    JsonLines,
    Metrics,
    Profiler,
    Progress,
    StepRecord,
    TensorBoard,
    Throughput,
    read_lines,
)
from t5x_llm.train.hooks.journal import process_age
from t5x_llm.train.hooks.lines import flatten
from t5x_llm.train.journal import Journal, accounts, read_journal
from t5x_llm.train.loop import RunRecord, Start, Trainer


def record(step, loss=2.0, tokens=100.0, seconds=0.5, compiled=False):
    values = {"loss": loss, "z_loss": 0.1, "grad_norm": float(step), "learning_rate": 1e-3}
    return StepRecord(
        step=step,
        position=8 * step,
        size=8,
        values=values | {"tokens": tokens},
        sums={
            "loss_by_source": np.float32([loss * tokens, 0.0]),
            "tokens_by_source": np.float32([tokens, 0.0]),
        },
        seconds=seconds,
        waited=0.05,
        compiled=compiled,
    )


def live(tmp_path, hooks=(), steps=20, log_every=2):
    config = Loop(steps=steps, batch_size=8, sequence_length=16, log_every=log_every)
    start = Start(toy.init(), DataState())
    return Trainer(config, start, toy.MEASURES, hooks, RunRecord(tmp_path))


def test_metrics_lines_are_means_over_tokens(tmp_path):
    throughput = Throughput(flops_per_token=1e6, peak=Peak(1e9, "ten toy chips"))
    hook = Metrics([JsonLines(tmp_path / "m.jsonl")], throughput)
    run = live(tmp_path, [hook])
    run.facts = {"parameters": 7}
    hook.on_start(run)
    hook.on_step(run, record(1, loss=1.0, tokens=100, seconds=9.0, compiled=True))
    hook.on_step(run, record(2, loss=4.0, tokens=300, seconds=0.5))
    run.step = 2
    run.evaluated({"en": {"loss": float("nan"), "bits_per_byte": 1.5}})
    hook.on_end(run, None)
    start, train, held = read_lines(tmp_path / "m.jsonl")
    assert start["kind"] == "start" and start["parameters"] == 7
    assert start["peak"] == "ten toy chips" and "6N" in start["flops_convention"]
    assert train["loss"] == pytest.approx((100 + 1200) / 400)
    assert train["loss_by_source"] == {"en": pytest.approx(3.25)}
    assert train["tokens_by_source"] == {"en": 400.0, "zh": 0.0}
    assert train["grad_norm"] == 1.5 and train["grad_norm_max"] == 2.0
    # The step that compiled is no measure of speed.
    assert train["tokens_per_second"] == 600 and train["mfu"] == pytest.approx(0.6)
    assert train["data_wait"] == pytest.approx(0.1)
    results = {"en": {"loss": None, "bits_per_byte": 1.5}}
    assert held == {"kind": "eval", "step": 2, "rewinds": 0, "results": results}


def test_what_a_rewind_gave_up_stays_in_the_record(tmp_path):
    path = tmp_path / "m.jsonl"
    hook = Metrics([JsonLines(path)])
    run = live(tmp_path, [hook])
    initial = hook.state()
    hook.on_start(run)
    for step in range(1, 7):
        hook.on_step(run, record(step))
    hook.restore(initial)
    run.step, run.rewinds = 0, 1
    hook.on_rewind(run)
    for step in range(1, 5):
        hook.on_step(run, record(step, loss=1.0))
    hook.on_end(run, None)

    def seen():
        return [(x["kind"], x["step"], x["rewinds"]) for x in read_lines(path)]

    whole = [
        *(("start", 0, 0), ("train", 2, 0), ("train", 4, 0), ("train", 6, 0)),
        *(("rewind", 0, 1), ("train", 2, 1), ("train", 4, 1)),
    ]
    assert seen() == whole
    assert read_lines(path)[-1]["tokens"] == 400, "not those given up"
    # A process that resumes at step 2 writes step 4 again, and leaves earlier lines alone.
    JsonLines(path).open(2, 1)
    assert seen() == whole[:-1]
    # One that is killed between the decision and the restore writes nothing after it.
    JsonLines(path).open(0, 2)
    assert seen() == whole[:-1]


def test_a_full_disk_does_not_end_the_record(tmp_path, capsys):
    path = tmp_path / "m.jsonl"
    writers = [JsonLines(path), TensorBoard(tmp_path / "tb", retry=0.0)]
    for writer in writers:
        writer.open(0)
    # Lines longer than any buffer, so that the disk refuses in the middle of one.
    many = {f"number {i}": float(i) for i in range(1000)}
    lines = [{"kind": "train", "step": i, "many": many} for i in range(50)]
    with files_of_at_most(100_000):
        for line in lines[:-1]:
            for writer in writers:
                writer.write(line)
                writer.flush()
    assert 0 < len(read_lines(path)) < 10
    for writer in writers:
        writer.write(lines[-1])
        writer.close()
    assert [x["step"] for x in read_lines(path)] == list(range(50)), "late, but all"
    assert capsys.readouterr().err.count("cannot be written for now") == 2, "each once"
    found = [step for step, _, _ in scalars(tmp_path / "tb")]
    assert found[-1] == 49 and found == sorted(found)


def scalars(directory):
    """(step, tag, value) of event files as TensorFlow reads them; what a later file purges left
    out, as TensorBoard does."""
    from tensorflow.compat.v1.train import summary_iterator
    from tensorflow.errors import DataLossError

    found = []
    for file in sorted(directory.iterdir()):
        try:
            for event in summary_iterator(str(file)):
                if event.HasField("session_log"):
                    found = [x for x in found if x[0] < event.step]
                found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
        except DataLossError:
            continue
    return found


def test_tensorboard_shows_what_counts(tmp_path):
    writer = TensorBoard(tmp_path)
    writer.open(0)
    for step in range(1, 7):
        writer.write({"kind": "train", "step": step, "rewinds": 0, "loss": 9.0})
    writer.rewind(2, 1)
    writer.write({"kind": "rewind", "step": 2, "rewinds": 1})
    writer.write({"kind": "train", "step": 3, "rewinds": 1, "loss": 1.0, "by": {"en": 2.0}})
    writer.close()
    tag = "train/loss"
    assert scalars(tmp_path) == [
        *((1, tag, 9.0), (2, tag, 9.0), (3, tag, 1.0), (3, "train/by/en", 2.0))
    ]
    again = TensorBoard(tmp_path)
    again.open(2, 1)
    again.close()
    assert scalars(tmp_path) == [(1, tag, 9.0), (2, tag, 9.0)]


def test_lines_past_the_restored_step_are_dropped(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 5}\n{"step": 10, "name": "诗"}\n{"step": 15}\n{"step": 2')
    writer = JsonLines(path)
    writer.open(10)
    writer.write({"step": 11, "loss": float("inf")})
    assert (
        path.read_text() == '{"step": 5}\n{"step": 10, "name": "诗"}\n{"step": 11, "loss": null}\n'
    )
    writer.close()
    assert not [p for p in tmp_path.iterdir() if p != path]


def test_each_line_is_on_disk_at_once(tmp_path):
    writer = JsonLines(tmp_path / "m.jsonl")
    writer.open(0)
    writer.write({"step": 1})
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 1}
    writer.close()


def test_object_store_gets_the_file_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "is_remote", lambda path: True)
    writer = JsonLines(tmp_path / "m.jsonl", every=1000)
    for step in (0, 2):
        writer.open(step)
        writer.write({"step": step + 1})
        writer.write({"step": step + 2})
        writer.close()
    assert [line["step"] for line in read_lines(tmp_path / "m.jsonl")] == [1, 2, 3, 4]


def test_plain_progress_has_no_carriage_returns(tmp_path):
    out = io.StringIO()
    hook = Progress(Throughput(2e6, Peak(1e9, "8 x TPU v4, vendor's")), out, interval=10)
    run = live(tmp_path)
    hook.on_start(run)
    hook.on_step(run, record(1, seconds=12.0, compiled=True))
    for step in range(2, 21):
        hook.on_step(run, record(step))
    run.step = 20
    hook.on_eval(run, {"en": {"loss": 1.0, "bits_per_byte": 1.25}, "zh": {"tokens": 0}})
    hook.on_eval(run, {"en": {"loss": 1.0, "bits_per_byte": 1.25, "change": 0.0123}})
    hook.on_end(run, None)
    text = out.getvalue()
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[5] == "  since the start (a rise is forgetting): en +1.23%"
    assert len(lines) == 6, "the first step, the last, and nothing between within ten seconds"
    assert "first step 12.0 s" in lines[1]
    assert "step 20/20" in lines[2]
    for part in ("loss 2.000", "lr 1.00e-03", "grad 20.00", "200 tok/s", "MFU 40.0%", "0:00 left"):
        assert part in lines[2], part
    assert "waiting for data 10%" in lines[2]
    assert lines[3] == "held out at step 20: en 1.250 bits/byte"


def test_progress_bar_on_a_terminal(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    hook = Progress(Throughput(2e6), out)
    run = live(tmp_path)
    hook.on_start(run)
    for step in range(1, 21):
        hook.on_step(run, record(step))
    hook.on_end(run, None)
    text = out.getvalue()
    assert "20/20" in text and "loss 2.000" in text and "GFLOP/s" in text


def test_the_bar_goes_back_with_the_run(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    hook = Progress(Throughput(2e6), Terminal())
    run = live(tmp_path)
    hook.on_start(run)
    for step in range(1, 11):
        hook.on_step(run, record(step, loss=9.0))
    run.step = 4
    hook.on_rewind(run)
    assert hook._bar.n == 4
    hook.on_step(run, record(5, loss=1.0))
    assert hook._bar.n == 5 and "loss 1.000" in hook._bar.postfix
    hook.on_end(run, None)


def test_a_loop_that_waits_for_data_is_told_so(tmp_path):
    def said(seconds):
        out = io.StringIO()
        hook = Progress(stream=out, starvation=10.0)
        run = live(tmp_path, steps=1000)
        hook.on_start(run)
        for step in range(1, 301):
            hook.on_step(run, record(step, seconds=seconds))
        return out.getvalue().count("warning: The loop waited for data")

    # 0.05 s of every step are waiting. Warned after 10, 20, 40 and 80 of 150 seconds.
    assert said(0.5) == 4 and said(2.0) == 0


def test_measured_peak_is_not_called_mfu(tmp_path):
    out = io.StringIO()
    hook = Progress(Throughput(2e6, Peak(1e9, "a matmul measured here")), out)
    run = live(tmp_path, steps=2)
    hook.on_start(run)
    hook.on_step(run, record(1))
    assert "40% of matmul" in out.getvalue() and "MFU" not in out.getvalue()


def test_profiler_traces_chosen_steps(tmp_path):
    go(tmp_path, hooks=[Profiler((3, 4))], every=0)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_profiler_from_the_first_step(tmp_path):
    config = Loop(steps=2, batch_size=8, sequence_length=16)
    go(tmp_path, config, hooks=[Profiler((1, 9))], every=0)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_tensorboard_without_tensorflow(tmp_path):
    code = f"""
import sys
from t5x_llm.train.hooks import TensorBoard
writer = TensorBoard({str(tmp_path)!r})
writer.open(0)
writer.write({{"kind": "train", "step": 3, "loss": 1.5, "loss_by_source": {{"en": 2.5}}}})
writer.close()
assert not [m for m in sys.modules if m.split(".")[0] in ("tensorflow", "seqio", "torch")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    (events,) = tmp_path.iterdir()
    data = events.read_bytes()
    assert b"train/loss" in data and b"train/loss_by_source/en" in data


def test_flatten_names_numbers_alone():
    line = {"step": 1, "kind": "train", "a": {"b": 2, "c": None}, "d": True, "e": 1.5}
    assert dict(flatten("train", line)) == {"train/a/b": 2.0, "train/e": 1.5}


def test_the_journal_of_a_run(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    config = Loop(steps=4, batch_size=8, sequence_length=16)
    run = go(tmp_path, config, hooks=[Journaling(journal, every=0.0)], every=2)
    lines = read_journal(tmp_path / "journal.jsonl")
    written = [line for line in lines if line["event"] in ("start", "alive", "end")]
    assert [(x["event"], x["step"]) for x in written] == [
        *(("start", 0), ("alive", 1), ("alive", 2), ("alive", 3), ("alive", 4), ("end", 4))
    ]
    assert written[0]["resumed"] is False and written[0]["steps"] == 4
    assert written[-1]["status"] == "finished" and written[-1]["position"] == 32
    totals = [accounts(line) for line in written]
    assert all(a["total"] <= b["total"] for a, b in itertools.pairwise(totals))
    assert totals[-1]["compile"] == pytest.approx(run.seconds["compile"], abs=1e-3)
    spent = goodput(lines)
    assert spent.total == pytest.approx(totals[-1]["total"], abs=0.5)
    assert spent.seconds["compile"] > 0 and spent.lives == 1
    assert 0 < process_age() < 86400 * 365 and process_age() >= totals[-1]["total"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        *((KeyboardInterrupt(), "interrupted"), (Preempted("bye"), "preempted")),
        *((OSError("x" * 900), "OSError"), (None, "stopped")),
    ],
)
def test_the_journal_tells_how_a_run_ended(tmp_path, error, status):
    hook = Journaling(Journal(tmp_path / "journal.jsonl"))
    run = live(tmp_path)
    hook.on_start(run)
    hook.on_rewind(run)
    hook.on_step(run, record(1))
    hook.on_end(run, error)
    start, alive, end = read_journal(tmp_path / "journal.jsonl")
    assert alive["event"] == "alive" and end["status"] == status, "a minute has not passed"
    assert len(end.get("reason", "")) == (500 if status == "OSError" else 0)


def test_only_the_first_process_writes(tmp_path):
    hook = Metrics([JsonLines(tmp_path / "m.jsonl")])
    run = live(tmp_path, [hook])
    run.primary = False
    hook.on_start(run)
    hook.on_step(run, record(1))
    hook.on_end(run, None)
    assert not (tmp_path / "m.jsonl").exists()


def test_every_hook_is_ended_even_if_one_fails(tmp_path):
    ended = []

    class Noisy(Hook):
        def __init__(self, fails):
            self.fails = fails

        def on_end(self, run, error):
            ended.append(self.fails)
            if self.fails:
                raise RuntimeError("in on_end")

    with pytest.raises(RuntimeError, match="in on_end"):
        go(tmp_path, hooks=[Noisy(False), Noisy(True)], every=0)
    assert ended == [True, False]


def test_tensorboard_is_a_writer(tmp_path):
    hook = Metrics([TensorBoard(tmp_path / "tb")])
    go(tmp_path, hooks=[hook], every=0)
    assert list((tmp_path / "tb").iterdir())
