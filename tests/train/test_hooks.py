"""Hooks: the record, the bar, the trace, TensorBoard."""

import io
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import toy
from test_loop import go

from t5x_llm.data.positions import DataState
from t5x_llm.train.config import Loop
from t5x_llm.train.flops import Peak, flops_per_token, peak_of
from t5x_llm.train.hooks import (
    Hook,
    JsonLines,
    Metrics,
    Profiler,
    Progress,
    StepRecord,
    TensorBoard,
    Throughput,
    read_lines,
)
from t5x_llm.train.hooks.lines import flatten
from t5x_llm.train.loop import Run


def record(step, loss=2.0, tokens=100.0, seconds=0.5, compiled=False):
    values = {"loss": loss, "z_loss": 0.1, "grad_norm": float(step), "learning_rate": 1e-3}
    return StepRecord(
        step=step,
        position=8 * step,
        size=8,
        values=values | {"tokens": tokens},
        source_nll=np.float32([loss * tokens, 0.0]),
        source_tokens=np.float32([tokens, 0.0]),
        seconds=seconds,
        waited=0.05,
        compiled=compiled,
    )


def live(tmp_path, hooks=(), steps=20, log_every=2):
    config = Loop(steps=steps, batch_size=8, sequence_length=16, log_every=log_every)
    return Run(config, tmp_path, toy.init(), DataState(), toy.SOURCES, hooks)


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
    assert held == {"kind": "eval", "step": 2, "results": {"en": {"loss": None} | held_bits()}}


def held_bits():
    return {"bits_per_byte": 1.5}


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


def test_object_store_gets_the_file_whole(tmp_path):
    writer = JsonLines(tmp_path / "m.jsonl", every=1000)
    writer._remote = True
    writer.open(0)
    writer.write({"step": 1})
    writer.write({"step": 2})
    writer.close()
    assert [line["step"] for line in read_lines(tmp_path / "m.jsonl")] == [1, 2]


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
    hook.on_end(run, None)
    text = out.getvalue()
    assert "\r" not in text
    lines = text.splitlines()
    assert len(lines) == 4, "the first step, the last, and nothing between within ten seconds"
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


def test_flops_convention():
    # Workload W1 of docs/benchmarks.md: N = 29.89 M, d 512, 8 layers, T 512. And PaLM 540B,
    # appendix B: 46.2% MFU with attention, 45.7% without; masked products are counted there.
    assert flops_per_token(29_890_000, 8, 512, 512) == pytest.approx(191.9e6, rel=1e-3)
    full = 2 * (flops_per_token(0, 118, 48 * 256, 2048))
    assert full / (6 * 540.35e9) == pytest.approx(46.2 / 45.7 - 1, abs=0.004)


class Chip:
    platform, process_index = "tpu", 0

    def __init__(self, kind):
        self.device_kind = kind


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 2307e12 / 2),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
    ],
)
def test_peaks(kind, flops):
    assert peak_of([Chip(kind)] * 4).flops == 4 * flops


def test_peak_elsewhere():
    assert peak_of([Chip("Fancy 9000")]) is None
    peak = peak_of(jax.devices(), "float32")
    assert 1e9 < peak.flops < 1e14 and "measured" in peak.source


def test_tensorboard_is_a_writer(tmp_path):
    hook = Metrics([TensorBoard(tmp_path / "tb")])
    go(tmp_path, hooks=[hook], every=0)
    assert list((tmp_path / "tb").iterdir())
