"""The page report.html: what cleaning kept, dropped and changed, and why, with samples."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_llm.core.page import cards, escape, page, table
from t5x_llm.core.paths import as_path, write_atomic
from t5x_llm.data.clean.tally import PRIVATE

_COLOURS = {"read": "#8a93a3", "kept": "#2fa36b", "score": "#3b82d6"}
_STYLE = (
    "<style>td:nth-child(2).name, .samples td { text-align: left; vertical-align: top; }"
    ".samples pre { margin: 0; max-height: 16rem; overflow-y: auto; } "
    ".samples { margin: .5rem 0 1rem; }</style>"
)
Counts = Mapping[str, Any]


def write_report(
    directory: str | os.PathLike[str], counts: Counts, steps: Sequence[str] = ()
) -> str:
    """Writes ``report.html`` of a run of cleaning.

    Args:
      directory: where the run's output lies.
      counts: ``Tally.to_json()`` of the whole run.
      steps: names in the order in which they were applied; others follow, by name.

    Returns:
      The path of the page.
    """
    path = as_path(directory)
    name = path.absolute().name if "://" not in str(path) else path.name
    target = path / "report.html"
    write_atomic(target, render(name, counts, steps))
    return os.fspath(target)


def render(name: str, counts: Counts, steps: Sequence[str] = ()) -> str:
    """Returns the page as HTML; equal counts give equal bytes."""
    found = counts.get("steps", {})
    order = [step for step in dict.fromkeys(steps) if step in found]
    order += sorted(step for step in found if step not in order)
    return page(
        name,
        [
            _STYLE,
            f"<h1>{escape(name)}</h1>",
            "<p class=soft>What was cleaned, what was left out, and why.</p>",
            _head(counts),
            "<h2>Sources</h2>",
            _sources(counts.get("sources", {})),
            "<h2>Steps</h2>",
            _steps(found, order),
            _copies_note(found),
            _reasons(found, order),
            _counted(found, order),
            _quarantined(counts.get("quarantined", {})),
            _lengths(counts.get("lengths", {})),
            _scores(counts.get("scores", {}), order),
            _samples(counts.get("samples", {}), [*order, "quarantined"]),
        ],
    )


def dropped_before_copies(steps: Counts) -> int:
    """Returns how many documents steps dropped before copies were looked for; 0 without that."""
    if "dedup" not in steps:
        return 0
    after = ("dedup", "repeats", "suffix")
    return sum(
        reason["documents"]
        for name, counts in steps.items()
        if name not in after
        for reason in counts.get("dropped", {}).values()
    )


def _copies_note(steps: Counts) -> str:
    dropped = dropped_before_copies(steps)
    if not dropped:
        return ""
    return (
        f"<p class=soft>{dropped:,} documents were dropped by a step before copies were looked "
        "for. If one of them has a copy that passed, the copy stays, whichever is the better text: "
        "where a corpus has the same text in two formats, put the better one into an input of its "
        "own, first, and look here for what its rules dropped.</p>"
    )


def _of(counts: Counts, *keys: str) -> int:
    for key in keys[:-1]:
        counts = counts.get(key, {})
    return counts.get(keys[-1], 0)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "–"


def _bar(part: int, whole: int) -> str:
    return f"<div class=bar><i style='width:{_share(part, whole) if whole else 0}'></i></div>"


def _head(counts: Counts) -> str:
    sources = counts.get("sources", {}).values()
    total = {
        (what, unit): sum(_of(source, what, unit) for source in sources)
        for what in ("read", "kept")
        for unit in ("documents", "characters")
    }
    read, kept = total["read", "documents"], total["kept", "documents"]
    edited = sum(_of(s, "edited", "documents") for s in counts.get("steps", {}).values())
    return cards(
        [
            (f"{read:,}", "documents read"),
            (f"{kept:,}", f"documents kept, {_share(kept, read)}"),
            (f"{total['kept', 'characters']:,}", "characters kept, "
             + _share(total["kept", "characters"], total["read", "characters"])),
            (f"{edited:,}", "changes of a document by a step"),
            (f"{sum(counts.get('quarantined', {}).values()):,}", "quarantined"),
        ]
    )  # fmt: skip


def _sources(sources: Counts) -> str:
    rows = []
    for name in sorted(sources):
        read, kept = (_of(sources[name], what, "documents") for what in ("read", "kept"))
        came, left = (_of(sources[name], what, "characters") for what in ("read", "kept"))
        figures = [f"{read:,}", f"{kept:,}", _share(kept, read)]
        figures += [f"{came:,}", f"{left:,}", _share(left, came)]
        rows.append([escape(name), _bar(left, came), *figures])
    head = ("source", "", "documents read", "kept", "", "characters read", "kept", "")
    return table(head, rows)


def _steps(found: Counts, order: Sequence[str]) -> str:
    rows = []
    for name in order:
        step = found[name]
        seen, characters = _of(step, "seen", "documents"), _of(step, "seen", "characters")
        dropped = sum(_of(r, "documents") for r in step.get("dropped", {}).values())
        lost = sum(_of(r, "characters") for r in step.get("dropped", {}).values())
        edited = _of(step, "edited", "documents")
        change = _of(step, "edited", "after") - _of(step, "edited", "before")
        figures = [f"{seen:,}", f"{dropped:,}", _share(dropped, seen), _share(lost, characters)]
        figures += [f"{edited:,}", _share(edited, seen), f"{change:+,}" if edited else ""]
        rows.append([escape(name), *figures])
    head = ("step", "documents", "dropped", "", "of characters", "changed", "", "characters")
    return table(head, rows)


def _reasons(found: Counts, order: Sequence[str]) -> str:
    rows, most = [], 1
    for name in order:
        for reason, lost in found[name].get("dropped", {}).items():
            rows.append((name, reason, _of(lost, "documents"), _of(lost, "characters")))
            most = max(most, _of(lost, "documents"))
    if not rows:
        return ""
    rows.sort(key=lambda row: (-row[2], order.index(row[0]), row[1]))
    cells = [[escape(n), escape(r), _bar(d, most), f"{d:,}", f"{c:,}"] for n, r, d, c in rows]
    head = ("step", "reason", "", "documents", "characters")
    return "<h2>Reasons of what was dropped</h2>" + table(head, cells)


def _counted(found: Counts, order: Sequence[str]) -> str:
    rows = [
        [escape(name), escape(what), f"{n:,}"]
        for name in order
        for what, n in sorted(found[name].get("counts", {}).items())
    ]
    if not rows:
        return ""
    return "<h2>Counted by steps</h2>" + table(("step", "what", ""), rows)


def _quarantined(quarantined: Counts) -> str:
    if not quarantined:
        return ""
    rows = [[escape(reason), f"{n:,}"] for reason, n in sorted(quarantined.items())]
    return (
        "<h2>Quarantined</h2><p class=soft>What could not be read, or made a step fail; the rest "
        "went on.</p>" + table(("reason", ""), rows)
    )


def _lengths(lengths: Counts) -> str:
    read, kept = lengths.get("read", {}), lengths.get("kept", {})
    if not read:
        return ""
    chart = _bars([("read", read), ("kept", kept)])
    legend = "".join(
        f"<span><i class=box style='background:{_COLOURS[k]}'></i>{k}</span>"
        for k in ("read", "kept")
    )
    return (
        f"<h2>Lengths</h2><figure>{chart}<div class=legend>{legend}</div>"
        "<figcaption>Documents by characters, each bar from its number to twice it.</figcaption>"
        "</figure>"
    )


def _scores(scores: Counts, order: Sequence[str]) -> str:
    if not scores:
        return ""
    at = {name: n for n, name in enumerate(order)}
    names = sorted(scores, key=lambda name: (at.get(name.split(":")[0], len(at)), name))
    figures = "".join(
        f"<figure>{_bars([('score', scores[name])])}<figcaption>{escape(name)}; what was dropped "
        "for it is counted too</figcaption></figure>"
        for name in names
    )
    return f"<h2>Scores</h2><div class=small>{figures}</div>"


def _bars(series: Sequence[tuple[str, Counts]], width: int = 640, height: int = 190) -> str:
    """Draws histograms side by side, by the lower end of each bucket, as SVG."""
    buckets = sorted({key for _, counts in series for key in counts}, key=float)
    most = max((n for _, counts in series for n in counts.values()), default=0) or 1
    step = (width - 10) / max(1, len(buckets))
    wide = step * 0.8 / len(series)
    parts = [f"<svg viewBox='0 0 {width} {height}' role=img aria-label='histogram'>"]
    every = max(1, round(len(buckets) * 60 / width))
    for i, key in enumerate(buckets):
        for j, (name, counts) in enumerate(series):
            n = counts.get(key, 0)
            tall = (height - 40) * n / most
            parts.append(
                f"<rect x='{5 + i * step + j * wide:.1f}' y='{height - 24 - tall:.1f}' "
                f"width='{wide:.1f}' height='{tall:.1f}' fill='{_COLOURS[name]}'>"
                f"<title>{escape(key)}: {n:,}</title></rect>"
            )
        if i % every == 0:
            parts.append(
                f"<text x='{5 + i * step:.1f}' y='{height - 8}' font-size='11' "
                f"fill='currentColor'>{escape(_short(key))}</text>"
            )
    parts.append(f"<text x='5' y='12' font-size='11' fill='currentColor'>{most:,}</text></svg>")
    return "".join(parts)


def _short(key: str) -> str:
    value = float(key)
    for size, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _samples(samples: Counts, order: Sequence[str]) -> str:
    at = {name: n for n, name in enumerate(order)}
    names = sorted(samples, key=lambda name: (at.get(name.split("\n")[0], len(at)), name))
    parts = []
    for name in names:
        step, _, reason = name.partition("\n")
        rows = []
        for sample in samples[name]:
            cells = [f"<b>{escape(sample['id'])}</b>"]
            if sample.get("detail"):
                cells[0] += f"<br><span class=soft>{escape(sample['detail'])}</span>"
            if "before" in sample:
                cells += [_text(sample["before"]), _text(sample.get("text", ""))]
            elif "text" in sample:
                cells.append(_text(sample["text"]))
            rows.append(cells)
        if not reason and step not in PRIVATE:
            head: tuple[str, ...] = ("document", "before", "after")
        elif "before" in samples[name][0]:
            head = ("document", "what stays for it", "text")
        else:
            head = ("document", "text") if "text" in samples[name][0] else ("document",)
        title = f"{step}: {reason or 'changed'}"
        parts.append(
            f"<details><summary>{escape(title)}</summary>"
            f"<div class=samples>{table(head, rows)}</div></details>"
        )
    if not parts:
        return ""
    return (
        "<h2>Samples</h2><p class=soft>Chosen by hash of the document: the same whatever the "
        "number of workers.</p>" + "".join(parts)
    )


def _text(text: str) -> str:
    return f"<pre class=text>{escape(text)}</pre>"
