"""The report: one page without network, from the files of a run directory."""

import html.parser
import json
import math
import re

import pytest
from journals import eventful, write

from t5x_llm.core.errors import DataError
from t5x_llm.train.environment import environment
from t5x_llm.train.goodput import CATEGORIES
from t5x_llm.train.journal import decisions
from t5x_llm.train.plots import (
    loss_curves,
    loss_svg,
    lost_curves,
    series,
    smoothed,
    split_at_rewinds,
)
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


def rewound():
    """To step 50, back to 20, to 40, back to 10, on to 50."""
    parts = [(0, 50, 0), (20, 40, 1), (10, 50, 2)]
    lines = []
    for start, end, rewinds in parts:
        if rewinds:
            lines.append({"kind": "rewind", "step": start, "rewinds": rewinds})
        part = [x for x in make_lines() if start < x["step"] <= end or (x["step"], start) == (0, 0)]
        high = {"loss": 7.0} if rewinds < 2 else {}
        lines += [
            x | {"rewinds": rewinds} | (high if x["step"] == end and x["kind"] == "train" else {})
            for x in part
        ]
    return lines


def test_what_rewinds_gave_up():
    current, lost = split_at_rewinds(rewound())
    steps = [x["step"] for x in current if x["kind"] == "train"]
    assert steps == list(range(1, 51)), "each step once"
    assert {x["rewinds"] for x in current} == {0, 2}
    assert [(part[0]["step"], part[-1]["step"]) for part in lost] == [(11, 50), (20, 40)]
    assert max(y for _, y in series(current, "loss")) < 4
    for _, points, *_ in loss_curves(rewound()):
        assert max(y for _, y in points) < 4 and len({x for x, _ in points}) == len(points)
    curves = lost_curves(rewound())
    assert [curve[0][0] for curve in curves] == [10, 20], "from the last point that counts"
    assert [curve[-1] for curve in curves] == [(50, 7.0), (40, 7.0)]
    # A process that was killed between deciding and going back wrote no line of the rewind.
    lines = [x for x in rewound() if x["kind"] != "rewind"]
    lines.insert(-45, {"kind": "start", "step": 10, "rewinds": 2})
    assert len([x for x in split_at_rewinds(lines)[0] if x["kind"] == "train"]) == 50
    assert split_at_rewinds(make_lines()) == (make_lines(), [])


def test_rewinds_are_drawn():
    lines, rewinds = rewound(), decisions(eventful())
    plain, drawn = loss_svg(lines), loss_svg(lines, rewinds)
    assert "stroke-dasharray" in plain and "#d2434c" not in plain
    assert drawn.count("#d2434c") > 2
    page = render("x", lines, journal=eventful())
    assert "given up by a rewind" in page
    assert "1: from step 138 back to 50, examples 400 to 2,800 of the data left out" in page
    assert "given up" not in render("x", make_lines())


def test_recovery_in_the_report(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rewound()))
    journal = eventful()
    journal[7]["reason"] = "<script>alert(1)</script>"
    write(tmp_path / "journal.jsonl", journal)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    text = " ".join(checker.text)
    assert checker.open == [] and "<script" not in page and "<script>alert(1)" in text
    for part in (
        "Goodput 38.4% of 5 min 30 s: 2 restarts (1 killed), 1 rewind, 1 preemption, 1 damaged ch",
        "rewound to step 50",
        "killed; its last line was of step 150",
    ):
        assert part in text, part
    widths = [float(x) for x in re.findall(r"<i style='width:([\d.]+)%;background", page)]
    assert len(widths) == len(CATEGORIES) and sum(widths) == pytest.approx(100, abs=0.1)
    assert "Recovery" not in render("x", make_lines())
    # A journal that someone damaged costs the arrows, not the report.
    journal[8]["skip"] = "all"
    write(tmp_path / "journal.jsonl", journal)
    write_report(tmp_path)
    assert "rewound to step 50" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_starvation_in_the_report():
    lines = make_lines()
    assert "Loop.prefetch" not in render("x", lines)
    for line in lines:
        line["data_wait"] = 0.06
    assert "The loop waited for data 6% of its time" in render("x", lines)
