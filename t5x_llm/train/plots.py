"""Plots of a run, from its lines of metrics."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from t5x_llm.train.journal import Decision
from t5x_llm.train.jsonl import Line, rewinds_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = list[tuple[float, float]]
Curve = tuple[str, Series, str, str]

# Readable on white and on near-black alike.
COLOURS = ("#3b82d6", "#e0702b", "#2fa36b", "#b45ad0", "#d2434c", "#8c8c2f", "#1fa3a8", "#c75a94")
REWIND = "#d2434c"
# Text and axes are drawn in this colour, which the page replaces by its own.
_INK = "#010203"


def series(lines: Sequence[Line], *keys: str) -> Series:
    """Returns (step, value) of every line that has the nested key, if the value is finite."""
    found = []
    for line in lines:
        value: Any = line
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, (int, float)) and math.isfinite(value):
            found.append((float(line["step"]), float(value)))
    return found


def smoothed(values: Series, width: int) -> Series:
    """Computes a centred running mean over ``width`` points, narrower towards the ends."""
    out = []
    for i, (x, _) in enumerate(values):
        half = min(width // 2, i, len(values) - 1 - i)
        window = [y for _, y in values[i - half : i + half + 1]]
        out.append((x, sum(window) / len(window)))
    return out


def split_at_rewinds(lines: Sequence[Line]) -> tuple[list[Line], list[list[Line]]]:
    """Splits lines into those that still count, and those that each rewind gave up."""
    lowest: dict[int, int] = {}
    for line in lines:
        rewinds = rewinds_of(line)
        lowest[rewinds] = min(line["step"], lowest.get(rewinds, line["step"]))
    # Lines of fewer rewinds end where those of more begin.
    ends, end = {}, math.inf
    for rewinds in sorted(lowest, reverse=True):
        ends[rewinds] = end
        end = min(end, lowest[rewinds])
    current = [line for line in lines if line["step"] <= ends[rewinds_of(line)]]
    lost: dict[int, list[Line]] = {}
    for line in lines:
        if line["step"] > ends[rewinds_of(line)]:
            lost.setdefault(rewinds_of(line), []).append(line)
    return current, list(lost.values())


def lost_curves(lines: Sequence[Line], key: str = "loss") -> list[Series]:
    """Returns the curves that rewinds gave up, each from the last point that still counts."""
    current, lost = split_at_rewinds(lines)
    counted = series([line for line in current if line["kind"] == "train"], key)
    curves = []
    for part in lost:
        points = series([line for line in part if line["kind"] == "train"], key)
        before = [point for point in counted if points and point[0] < points[0][0]]
        if points:
            curves.append(before[-1:] + points)
    return curves


def _names(lines: Sequence[Line], key: str) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in line.get(key, {})))


def loss_curves(lines: Sequence[Line], ascii_only: bool = False) -> list[Curve]:
    """Returns the curves of the loss that still counts: of training, by source, and held out.

    Args:
      lines: lines of metrics.
      ascii_only: True writes ``source 2`` for names that a picture's font may lack.

    Returns:
      (label, points, colour, style) each.
    """
    lines, _ = split_at_rewinds(lines)
    train = [line for line in lines if line["kind"] == "train"]
    held = [line for line in lines if line["kind"] == "eval"]
    curves = []
    sources = _names(train, "loss_by_source")
    width = max(1, len(train) // 100)

    def shown(name: str, at: int) -> str:
        return name if name.isascii() or not ascii_only else f"source {at + 1}"

    if len(sources) != 1:
        curves.append(("train", smoothed(series(train, "loss"), width), "ink", "-"))
    for i, name in enumerate(sources):
        points = smoothed(series(train, "loss_by_source", name), width)
        label = f"train, {shown(name, i)}" if len(sources) > 1 else "train"
        curves.append((label, points, COLOURS[i % len(COLOURS)], "-"))
    for i, name in enumerate(_names(held, "results")):
        points = series(held, "results", name, "loss")
        known = name in sources
        at = sources.index(name) if known else len(sources) + i
        colour = "ink" if name == "all" else COLOURS[at % len(COLOURS)]
        curves.append((f"held out, {shown(name, at)}", points, colour, "o"))
    return [curve for curve in curves if curve[1]]


def _draw_loss(
    axes: Axes, lines: Sequence[Line], ink: str, rewinds: Sequence[Decision] = ()
) -> None:
    curves = loss_curves(lines, ascii_only=True)
    for label, points, colour, style in curves:
        x, y = zip(*points, strict=True)
        colour = ink if colour == "ink" else colour
        if style == "o":
            axes.plot(x, y, "o--", color=colour, ms=4.5, lw=1, mfc="none", label=label, zorder=3)
        else:
            axes.plot(x, y, "-", color=colour, lw=1.6, alpha=0.9, label=label)
    lost = lost_curves(lines)
    _draw_lost(axes, lost, ink, "given up by a rewind")
    for number, decision in enumerate(rewinds, 1):
        _draw_rewind(axes, number, decision)
    axes.set_ylabel("loss (nats per token)")
    _limit(axes, [p for _, points, _, _ in curves for p in points], lost)


def _draw_lost(axes: Axes, lost: Sequence[Series], ink: str, label: str | None = None) -> None:
    for points in lost:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "--", color=ink, lw=1.1, alpha=0.45, label=label, dashes=(3, 2))
        label = None


def _draw_rewind(axes: Axes, number: int, decision: Decision) -> None:
    """Draws an arrow from the spike back to the checkpoint, over the steps that were given up."""
    top = axes.get_xaxis_transform()
    height = 0.97 - 0.055 * ((number - 1) % 4)
    axes.axvspan(decision.to_step, decision.detected, color=REWIND, alpha=0.07, lw=0)
    axes.axvline(decision.onset, color=REWIND, lw=0.9, ls=":", alpha=0.8)
    axes.annotate(
        "",
        xy=(decision.to_step, height),
        xytext=(decision.onset, height),
        xycoords=top,
        textcoords=top,
        arrowprops={"arrowstyle": "->", "color": REWIND, "lw": 1.2, "shrinkA": 0, "shrinkB": 0},
    )
    axes.annotate(
        f"rewind {number}" if number <= 3 else str(number),
        xy=(decision.detected, height),
        xycoords=top,
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        color=REWIND,
        fontsize=8.5,
    )


def _limit(axes: Axes, points: Series, lost: Sequence[Series] = ()) -> None:
    """Leaves the tall beginning of the curve out of the view if it would flatten the rest.

    The view takes in as much of the curves given up as of what counts, no more.
    """
    if len(points) < 8:
        return
    last = max(x for x, _ in points)
    low = min(y for _, y in points)
    early = sorted(y for x, y in points if x >= 0.02 * last)
    top = max(early)
    peak = max((y for curve in lost for x, y in curve if x >= 0.02 * last), default=top)
    top = max(top, min(peak, top + (top - low)))
    axes.set_ylim(low - 0.04 * (top - low), top + 0.04 * (top - low) or None)


def _draw(axes: Axes, lines: Sequence[Line], key: str, label: str, colour: str) -> None:
    current, _ = split_at_rewinds(lines)
    points = series([line for line in current if line["kind"] == "train"], key)
    lost = lost_curves(lines, key)
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "-", color=colour, lw=1.3)
        _draw_lost(axes, lost, colour)
        highest = max(y)
        peak = max([highest, *(v for curve in lost for _, v in curve)])
        axes.set_ylim(0, 1.05 * min(peak, 2 * highest) or None)
    axes.set_ylabel(label)


def _style(figure: Figure, all_axes: Sequence[Axes], ink: str) -> None:
    for axes in all_axes:
        axes.set_xlabel("step")
        axes.grid(True, color=ink, alpha=0.12, lw=0.7)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(ink)
            axes.spines[side].set_alpha(0.4)
        axes.tick_params(colors=ink, labelsize=9)
        axes.xaxis.label.set_color(ink)
        axes.yaxis.label.set_color(ink)
        axes.margins(x=0.01)
    figure.tight_layout()


def loss_png(
    lines: Sequence[Line],
    path: str | os.PathLike[str],
    title: str = "",
    rewinds: Sequence[Decision] = (),
) -> None:
    """Writes the loss curves as a PNG with a legend, dark on white."""
    from t5x_llm.core.paths import write_atomic

    figure, axes = _figure(9.0, 5.0)
    ink = "#222222"
    _draw_loss(axes, lines, ink, rewinds)
    if axes.lines:
        legend = axes.legend(frameon=False, fontsize=9, labelcolor=ink)
        legend.set_zorder(4)
    if title:
        axes.set_title(title, color=ink, fontsize=11, loc="left")
    _style(figure, [axes], ink)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white")
    write_atomic(path, buffer.getvalue())


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Makes a figure without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _svg(draw: Callable[[Axes], None], width: float, height: float) -> str:
    """Draws an SVG element whose ink is the page's text colour."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "t5x_llm"}):
        figure, axes = _figure(width, height)
        draw(axes)
        _style(figure, [axes], _INK)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1).replace(
        "<svg", '<svg role="img"', 1
    )


def loss_svg(lines: Sequence[Line], rewinds: Sequence[Decision] = ()) -> str:
    """Draws the loss curves; the legend is left to the page, which has the fonts for any name."""
    return _svg(lambda axes: _draw_loss(axes, lines, _INK, rewinds), 9.0, 4.2)


def small_svgs(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Draws learning rate, gradient norm and tokens/s: (caption, SVG) each.

    Batch size is drawn if it changes, and held-out bits per byte if they are compared with the
    start.
    """
    train = [line for line in split_at_rewinds(lines)[0] if line["kind"] == "train"]
    wanted = [
        ("Learning rate", "learning_rate", COLOURS[0]),
        ("Gradient norm before clipping", "grad_norm", COLOURS[1]),
        ("Tokens per second", "tokens_per_second", COLOURS[2]),
    ]
    if len({line.get("batch_size") for line in train}) > 1:
        wanted.append(("Rows of a batch", "batch_size", COLOURS[3]))
    pictures = []
    for caption, key, colour in wanted:
        if series(train, key):

            def draw(axes: Axes, key: str = key, colour: str = colour) -> None:
                _draw(axes, lines, key, "", colour)

            pictures.append((caption, _svg(draw, 4.4, 2.5)))
    held = [line for line in split_at_rewinds(lines)[0] if line["kind"] == "eval"]
    changes = {n: series(held, "results", n, "change") for n in _names(held, "results")}
    if any(changes.values()):

        def draw_changes(axes: Axes) -> None:
            for i, (name, points) in enumerate(changes.items()):
                label = name if name.isascii() else f"source {i + 1}"
                x, y = zip(*points, strict=True) if points else ((), ())
                axes.plot(x, [100 * v for v in y], "o-", ms=3, label=label, color=COLOURS[i % 8])
            axes.axhline(0, color=_INK, lw=0.8)
            axes.legend(frameon=False, fontsize=8, labelcolor=_INK)

        caption = "Held-out bits per byte since the start, in %: a rise is forgetting"
        pictures.append((caption, _svg(draw_changes, 4.4, 2.5)))
    return pictures
