"""The report: one page without network, from the files of a run directory."""

import html.parser
import json
import math
import re

import pytest

from t5x_llm.core.errors import DataError
from t5x_llm.train.environment import environment
from t5x_llm.train.plots import loss_curves, series, smoothed
from t5x_llm.train.report import render, write_report

SOURCES = ("speeches", "诗词")


def make_lines(steps=50, evals=True):
    lines = [
        {
            "kind": "start",
            "step": 0,
            "parameters": 5_200_000,
            "mixture": {"speeches": 1, "诗词": 3},
            "environment": environment(),
            "peak": "four toy chips",
            "flops_convention": "6N and so on",
        }
    ]
    for step in range(1, steps + 1):
        loss = 2 + math.exp(-step / 10)
        lines.append(
            {
                "kind": "train",
                "step": step,
                "tokens": step * 400,
                "loss": None if step == 7 else loss,
                "learning_rate": 1e-3,
                "grad_norm": 1.0,
                "batch_size": 8,
                "loss_by_source": {"speeches": loss - 0.2, "诗词": loss + 0.2},
                "tokens_by_source": {"speeches": step * 100.0, "诗词": step * 300.0},
                "tokens_per_second": 1000.0,
                "gflops_per_second": 12.0,
                "mfu": 0.41,
                "data_wait": 0.001,
            }
        )
        if evals and step % 25 == 0:
            measures = {"loss": loss, "perplexity": 9.0, "bits_per_byte": 2.125}
            counts = {"tokens": 1234, "bytes": 5678, "documents": 9}
            lines.append(
                {"kind": "eval", "step": step, "results": dict.fromkeys(SOURCES, measures | counts)}
            )
    return lines


class Checker(html.parser.HTMLParser):
    """Every tag that must close is closed; nothing is loaded from anywhere."""

    VOID = {"meta", "br", "path", "use", "rect"}

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                assert value.startswith("#"), (tag, value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_report_from_files_alone(tmp_path):
    run = tmp_path / "my run <1>"
    run.mkdir()
    with (run / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for line in make_lines():
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    (run / "operative_config.gin").write_text("Loop.steps = 50\nLlama.d_model = 256\n")
    (run / "samples.txt").write_text("> 床前明月光\n疑是地上霜 <script>alert(1)</script> & more\n")
    path = write_report(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert path == str(run / "report.html")
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    text = " ".join(checker.text)
    for part in (
        "my run <1>",
        "5.2M parameters",
        "20k tokens",
        "疑是地上霜 <script>alert(1)</script> & more",
        "Llama.d_model = 256",
        "held out, 诗词",
        "2.125",
        "9.000",
        "1,234",
        "75.00%",
        "15,000",
        "41.0% of the peak: four toy chips",
        "6N and so on",
        "jax",
    ):
        assert part in text, part
    assert "<script" not in page and "http-equiv" not in page
    assert not re.search(r"url\((?!#)", page) and "@import" not in page
    assert page.count("<svg") == 4 and "#010203" not in page
    png = (run / "loss.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 10_000
    before = page
    write_report(run)
    assert (run / "report.html").read_text(encoding="utf-8") == before


@pytest.mark.filterwarnings("error")
def test_least_of_runs(tmp_path):
    """One step, one source, no evaluation, nothing else in the directory."""
    line = {"kind": "train", "step": 1, "tokens": 5, "loss": 1.0, "loss_by_source": {"a": 1.0}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    write_report(tmp_path)
    assert "Samples" not in (tmp_path / "report.html").read_text()
    line["loss"], line["loss_by_source"] = None, {}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    write_report(tmp_path)


def test_no_metrics(tmp_path):
    with pytest.raises(DataError, match="nothing to report"):
        write_report(tmp_path)


def test_only_the_newest_samples_are_shown(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(make_lines()[1]) + "\n")
    (tmp_path / "samples.txt").write_text("first\n" + "x" * 30_000 + "\nlast\n")
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "last" in page and "first\n" not in page and "earlier samples left out" in page


def test_newest_samples_come_first():
    samples = "=== step 5 ===\n\n[a]b\n\n=== step 10 ===\n\n[a]c ==== d\n"
    page = render("x", make_lines(), samples=samples)
    assert page.index("step 10 ===") < page.index("Earlier") < page.index("step 5 ===")
    assert page.count("<pre") == 2


def test_curves():
    lines = make_lines()
    assert len(series(lines, "loss")) == 49, "what is not a number is left out"
    labels = [label for label, *_ in loss_curves(lines)]
    assert labels == ["train", "train, speeches", "train, 诗词"] + [
        f"held out, {name}" for name in SOURCES
    ]
    assert all(label.isascii() for label, *_ in loss_curves(lines, ascii_only=True))
    assert smoothed([(0, 1.0), (1, 2.0), (2, 6.0)], 3) == [(0, 1.0), (1, 3.0), (2, 6.0)]
    assert "Rows of a batch" not in render("x", lines)
