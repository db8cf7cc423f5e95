"""Report of a run: one page that needs no network, made from the run directory alone."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from etils import epath

from t5x_llm.core import page
from t5x_llm.core.errors import DataError
from t5x_llm.core.page import escape as _e
from t5x_llm.core.paths import as_path, write_atomic
from t5x_llm.train.goodput import CATEGORIES, STARVED, duration, goodput, starved
from t5x_llm.train.journal import JOURNAL, Decision, decisions, read_journal
from t5x_llm.train.jsonl import Line, read_lines
from t5x_llm.train.plots import (
    loss_curves,
    loss_png,
    loss_svg,
    lost_curves,
    small_svgs,
    split_at_rewinds,
)
from t5x_llm.train.summary import event_counts, summary_lines

# Colours of ``CATEGORIES``.
_COLOURS = {
    "productive": "#2fa36b",
    "startup": "#8c8c2f",
    "compile": "#3b82d6",
    "restore": "#1fa3a8",
    "save": "#6f7fd8",
    "data": "#b45ad0",
    "eval": "#c75a94",
    "other": "#8f7a66",
    "rewinds": "#d2434c",
    "kills": "#e0702b",
    "down": "#8a93a3",
}
_MANY = 20  # events shown without being unfolded


def write_report(directory: str | os.PathLike[str]) -> str:
    """Writes ``report.html`` and ``loss.png`` of a run, from the files in its directory.

    It reads ``metrics.jsonl``, and where they exist ``journal.jsonl``, ``operative_config.gin`` and
    ``samples.txt``.

    Returns:
      The path of the page.

    Raises:
      DataError: the directory holds no metrics.
    """
    run = as_path(directory)
    lines = read_lines(run / "metrics.jsonl")
    if not any(line.get("kind") == "train" for line in lines):
        raise DataError(f"{run / 'metrics.jsonl'} holds no step of training: nothing to report.")
    name = run.absolute().name if "://" not in str(run) else run.name
    target = run / "report.html"
    journal = read_journal(run / JOURNAL)
    config = _read(run, "operative_config.gin")
    write_atomic(target, render(name, lines, config, _samples(run), journal))
    loss_png(lines, run / "loss.png", name, _rewinds(journal))
    return os.fspath(target)


def _read(run: epath.Path, name: str) -> str:
    file = run / name
    return file.read_text(encoding="utf-8") if file.exists() else ""


def _samples(run: epath.Path, most: int = 20_000) -> str:
    """Reads the samples; of many the newest."""
    text = _read(run, "samples.txt")
    return text if len(text) <= most else "[earlier samples left out]\n" + text[-most:]


def _rewinds(journal: Sequence[Line]) -> list[Decision]:
    try:
        return decisions(journal)
    except DataError:
        return []  # a damaged journal ends no report


def render(
    name: str,
    lines: Sequence[Line],
    config: str = "",
    samples: str = "",
    journal: Sequence[Line] = (),
) -> str:
    """Renders the page as HTML.

    Args:
      name: name of the run.
      lines: lines of ``metrics.jsonl``.
      config: the operative config.
      samples: generated text.
      journal: lines of ``journal.jsonl``.
    """
    every, (lines, _) = lines, split_at_rewinds(lines)
    rewinds = _rewinds(journal)
    train = [line for line in lines if line["kind"] == "train"]
    evals = [line for line in lines if line["kind"] == "eval"]
    start = next((line for line in reversed(lines) if line["kind"] == "start"), {})
    body = [
        f"<h1>{_e(name)}</h1>",
        f"<p class=soft>{_e(_summary(start, train))}</p>",
        _cards(train, evals),
        "<h2>Loss</h2>",
        f"<figure>{loss_svg(every, rewinds)}{_legend(every, rewinds)}</figure>",
        _recovery(journal),
        "<h2>Curves</h2>",
        f"<div class=small>{''.join(_figure(c, svg) for c, svg in small_svgs(every))}</div>",
        _speed(start, train),
        _evaluation(evals),
        _mixture(start, train),
    ]
    if samples.strip():
        body.append(_texts(samples.strip()))
    if config.strip():
        body.append(
            "<h2>Configuration</h2><details><summary>operative_config.gin: alone, it reproduces "
            f"this run</summary><pre>{_e(config.strip())}</pre></details>"
        )
    body.append(_environment(start))
    return page.page(name, body)


def _figure(caption: str, svg: str) -> str:
    return f"<figure>{svg}<figcaption>{_e(caption)}</figcaption></figure>"


def _summary(start: Line, train: Sequence[Line]) -> str:
    parts = []
    if start.get("parameters"):
        parts.append(f"{_count(start['parameters'])} parameters")
    for unit in ("tokens", "examples"):
        if unit in train[-1]:
            parts.append(f"{_count(train[-1][unit])} {unit}")
    devices = start.get("environment", {}).get("devices")
    if devices:
        parts.append(f"on {devices}")
    return ", ".join(parts)


def _count(value: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def _cards(train: Sequence[Line], evals: Sequence[Line]) -> str:
    cards = [(f"{train[-1]['step']:,}", "steps")]
    if train[-1].get("loss") is not None:
        cards.append((f"{train[-1]['loss']:.3f}", "training loss, nats per token"))
    for source, r in (evals[-1]["results"] if evals else {}).items():
        if r.get("bits_per_byte") is not None:
            cards.append((f"{r['bits_per_byte']:.3f}", f"held-out bits per byte, {source}"))
    speeds = sorted(line["tokens_per_second"] for line in train if line.get("tokens_per_second"))
    if speeds:
        cards.append((f"{speeds[len(speeds) // 2]:,.0f}", "tokens per second, median"))
    return page.cards(cards)


def _legend(lines: Sequence[Line], rewinds: Sequence[Decision]) -> str:
    items = []
    for label, _, colour, style in loss_curves(lines):
        colour = "currentColor" if colour == "ink" else colour
        mark = " class=o" if style == "o" else ""
        items.append(f"<span><i{mark} style='border-color:{colour}'></i>{_e(label)}</span>")
    if lost_curves(lines):
        items.append("<span><i class=lost></i>given up by a rewind</span>")
    legend = f"<div class=legend>{''.join(items)}</div>"
    captions = [
        f"{n}: from step {d.onset:,} back to {d.to_step:,}, examples {d.skip[0]:,} to "
        f"{d.skip[1]:,} of the data left out"
        for n, d in enumerate(rewinds, 1)
    ]
    if captions:
        legend += f"<figcaption>Rewinds. {_e('; '.join(captions))}.</figcaption>"
    return legend


def _recovery(journal: Sequence[Line]) -> str:
    """Renders the account of time, as a bar, and the events."""
    if not journal:
        return ""
    account = goodput(journal)
    parts = [(k, v) for k, v in account.seconds.items() if v > 0]
    bar = "".join(
        f"<i style='width:{account.share(k):.3%};background:{_COLOURS[k]}'></i>" for k, _ in parts
    )
    legend = "".join(
        f"<span><i class=box style='background:{_COLOURS[k]}'></i>{_e(CATEGORIES[k].label)} "
        f"{account.share(k):.1%} ({_e(duration(v))})</span>"
        for k, v in parts
    )
    head = f"{event_counts(journal)}."
    if account.total > 0:
        head = f"Goodput {account.share('productive'):.1%} of {duration(account.total)}: {head}"
    events = summary_lines(journal)
    rows = [[_e(event.time), f"{event.step:,}", _e(event.text)] for event in events]
    table = f"<div class=events>{page.table(('time (UTC)', 'step', 'event'), rows)}</div>"
    if len(events) > _MANY:
        table = f"<details><summary>{len(events)} events</summary>{table}</details>"
    return (
        f"<h2>Recovery and time</h2><p class=soft>{_e(head)}</p>"
        f"<div class=stack role=img aria-label='where the time went'>{bar}</div>"
        f"<div class=legend>{legend}</div>{table}"
    )


def _speed(start: Line, train: Sequence[Line]) -> str:
    shares = sorted(line["mfu"] for line in train if line.get("mfu"))
    flops = sorted(line["gflops_per_second"] for line in train if line.get("gflops_per_second"))
    waits = sorted(line["data_wait"] for line in train if line.get("data_wait") is not None)
    parts = []
    if flops:
        parts.append(f"{flops[len(flops) // 2]:,.0f} GFLOP/s (median)")
    if shares:
        middle = shares[len(shares) // 2]
        parts.append(f"{middle:.1%} of the peak: {start.get('peak')}")
    if parts:
        parts.append(str(start.get("flops_convention", "")))
    if waits:
        parts.append(f"waiting for data {waits[len(waits) // 2]:.1%} of the time")
    text = f"<p class=soft>{_e('; '.join(parts))}.</p>" if parts else ""
    share = sum(waits) / len(waits) if waits else 0.0
    return text + (f"<p>{_e(starved(share))}</p>" if share > STARVED else "")


def _evaluation(evals: Sequence[Line]) -> str:
    if not evals:
        return ""
    rows = []
    compared = any("change" in r for r in evals[-1]["results"].values())
    for name, r in evals[-1]["results"].items():
        figures = [r.get(key) for key in ("bits_per_byte", "loss", "perplexity")]
        counts = [r.get(key) for key in ("tokens", "bytes", "documents")]
        rows.append(
            [_e(name)]
            + ["" if f is None else f"{f:,.3f}" for f in figures]
            + ["" if c is None else f"{c:,}" for c in counts]
        )
        if compared:
            rows[-1].append(f"{r['change']:+.2%}" if "change" in r else "")
    head = ["source", "bits per byte", "loss", "perplexity", "tokens", "bytes", "documents"]
    head += ["since the start"] if compared else []
    return (
        f"<h2>Held-out text at step {evals[-1]['step']:,}</h2>"
        + page.table(head, rows)
        + "<p class=soft>Every token but the first of a document is predicted once, in windows of "
        "the sequence length, end of text included; context does not reach across windows. Bits "
        "per byte: nats / ln 2 / UTF-8 bytes.</p>"
    )


def _mixture(start: Line, train: Sequence[Line]) -> str:
    consumed: dict[str, float] = train[-1].get("tokens_by_source", {})
    total = sum(consumed.values())
    if not total:
        return ""
    planned: dict[str, float] = start.get("mixture") or {}
    scale = sum(planned.values()) or 1.0
    rows = []
    for name, tokens in consumed.items():
        share = tokens / total
        plan = f"{planned[name] / scale:.2%}" if name in planned else ""
        bar = f"<div class=bar><i style='width:{share:.2%}'></i></div>"
        rows.append([_e(name), bar, f"{share:.2%}", plan, f"{tokens:,.0f}"])
    head = ("source", "", "of tokens consumed", "of rows planned", "tokens consumed")
    return "<h2>Mixture</h2>" + page.table(head, rows)


def _texts(samples: str) -> str:
    """Renders the newest section (``=== step N ===``) open, earlier ones folded."""
    sections = [part for part in re.split(r"^(?==== )", samples, flags=re.M) if part.strip()]
    newest, earlier = sections[-1], sections[:-1]
    body = f"<h2>Samples</h2><pre class=text>{_e(newest.strip())}</pre>"
    if earlier:
        inner = _e("".join(earlier).strip())
        body += f"<details><summary>Earlier</summary><pre class=text>{inner}</pre></details>"
    return body


def _environment(start: Line) -> str:
    facts = start.get("environment")
    if not facts:
        return ""
    packages = ", ".join(f"{k} {v}" for k, v in facts.get("packages", {}).items())
    rows = [[_e(k), _e(v)] for k, v in facts.items() if k != "packages"]
    rows.append(["packages", _e(packages)])
    inner = "".join(f"<tr><td>{k}</td><td style='text-align:left'>{v}</td></tr>" for k, v in rows)
    return f"<h2>Environment</h2><div class=wide><table>{inner}</table></div>"
