"""Pictures of a run, from its lines of metrics."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

Line = dict[str, Any]
Series = list[tuple[float, float]]
Curve = tuple[str, Series, str, str]

# Readable on white and on near-black alike.
COLOURS = ("#3b82d6", "#e0702b", "#2fa36b", "#b45ad0", "#d2434c", "#8c8c2f", "#1fa3a8", "#c75a94")
# Text and axes are drawn in this colour, which the page replaces by its own.
_INK = "#010203"


def series(lines: Sequence[Line], *keys: str) -> Series:
    """(step, value) of every line that has the nested key; what is not finite is left out."""
    found = []
    for line in lines:
        value: Any = line
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, (int, float)) and math.isfinite(value):
            found.append((float(line["step"]), float(value)))
    return found


def smoothed(values: Series, width: int) -> Series:
    """Centred running mean over ``width`` points, narrower towards the ends."""
    out = []
    for i, (x, _) in enumerate(values):
        half = min(width // 2, i, len(values) - 1 - i)
        window = [y for _, y in values[i - half : i + half + 1]]
        out.append((x, sum(window) / len(window)))
    return out


def _names(lines: Sequence[Line], key: str) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in line.get(key, {})))


def loss_curves(lines: Sequence[Line], ascii_only: bool = False) -> list[Curve]:
    """(label, points, colour, style) of the loss: train, by source, held out.

    Args:
      lines: of metrics.
      ascii_only: names that a picture's font may lack become ``source 2``.
    """
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


def _draw_loss(axes: Any, lines: Sequence[Line], ink: str) -> None:
    curves = loss_curves(lines, ascii_only=True)
    for label, points, colour, style in curves:
        x, y = zip(*points, strict=True)
        colour = ink if colour == "ink" else colour
        if style == "o":
            axes.plot(x, y, "o--", color=colour, ms=4.5, lw=1, mfc="none", label=label, zorder=3)
        else:
            axes.plot(x, y, "-", color=colour, lw=1.6, alpha=0.9, label=label)
    axes.set_ylabel("loss (nats per token)")
    _limit(axes, [p for _, points, _, _ in curves for p in points])


def _limit(axes: Any, points: Series) -> None:
    """Leaves the tall beginning of the curve out of the view if it would flatten the rest."""
    if len(points) < 8:
        return
    last = max(x for x, _ in points)
    low = min(y for _, y in points)
    early = sorted(y for x, y in points if x >= 0.02 * last)
    top = max(early)
    axes.set_ylim(low - 0.04 * (top - low), top + 0.04 * (top - low) or None)


def _draw(axes: Any, lines: Sequence[Line], key: str, label: str, colour: str) -> None:
    points = series([line for line in lines if line["kind"] == "train"], key)
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "-", color=colour, lw=1.3)
    axes.set_ylabel(label)


def _style(figure: Any, all_axes: Sequence[Any], ink: str) -> None:
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


def loss_png(lines: Sequence[Line], path: str | os.PathLike[str], title: str = "") -> None:
    """Writes the loss curves as a PNG with a legend, dark on white."""
    from t5x_llm.core.paths import write_atomic

    figure, axes = _figure(9.0, 5.0)
    ink = "#222222"
    _draw_loss(axes, lines, ink)
    if axes.lines:
        legend = axes.legend(frameon=False, fontsize=9, labelcolor=ink)
        legend.set_zorder(4)
    if title:
        axes.set_title(title, color=ink, fontsize=11, loc="left")
    _style(figure, [axes], ink)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white")
    write_atomic(path, buffer.getvalue())


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _svg(draw: Callable[[Any], None], width: float, height: float) -> str:
    """An SVG element whose ink is the page's text colour."""
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


def loss_svg(lines: Sequence[Line]) -> str:
    """The loss curves; their legend is left to the page, which has the fonts for any name."""
    return _svg(lambda axes: _draw_loss(axes, lines, _INK), 9.0, 4.2)


def small_svgs(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """(caption, SVG) of learning rate, gradient norm, tokens/s and batch size if it changes."""
    train = [line for line in lines if line["kind"] == "train"]
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

            def draw(axes: Any, key: str = key, colour: str = colour) -> None:
                _draw(axes, train, key, "", colour)
                axes.set_ylim(bottom=0)

            pictures.append((caption, _svg(draw, 4.4, 2.5)))
    return pictures
