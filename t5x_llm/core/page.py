"""A page of HTML that needs no network: its style, and the parts that reports share."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

CSS = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667085; --line: #d9dee7;
  --paper: #ffffff; --card: #f6f8fb; --accent: #3b82d6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --soft: #98a2b3; --line: #303845;
  --paper: #12161d; --card: #1a2029; --accent: #6aa5ec; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem; }
.soft { color: var(--soft); } a { color: var(--accent); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: .7rem; margin: 1.3rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .65rem .85rem; }
.card b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .82rem; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .85rem; }
svg { width: 100%; height: auto; color: var(--ink); }
.small { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: .3rem 0 0; font-size: .88rem; }
.legend i { display: inline-block; width: 1.5rem; vertical-align: middle; margin-right: .4rem;
  border-top: 3px solid; } .legend i.o { border-top-style: dotted; }
.legend i.lost { border-top-style: dashed; opacity: .45; }
.legend i.box { border: 0; width: .8rem; height: .8rem; border-radius: .2rem; }
.stack { display: flex; height: 1.5rem; border-radius: .4rem; overflow: hidden;
  background: var(--line); } .stack i { display: block; height: 100%; }
.events { margin-top: .8rem; } .events td:first-child { white-space: nowrap; }
.events th:last-child, .events td:last-child { text-align: left; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; font-size: .85rem; }
th:first-child, td:first-child { text-align: left; }
.bar { background: var(--line); border-radius: .3rem; height: .55rem; min-width: 8rem; }
.bar i { display: block; height: 100%; border-radius: .3rem; background: var(--accent); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .9rem 1.1rem; overflow-x: auto; font: .85rem/1.55 ui-monospace, "SF Mono", Menlo,
  Consolas, "Noto Sans Mono CJK SC", monospace; }
pre.text { white-space: pre-wrap; overflow-wrap: anywhere; font-family: inherit;
  font-size: .95rem; }
details > summary { cursor: pointer; color: var(--accent); }
"""


def escape(value: Any) -> str:
    """``value`` as text in HTML."""
    return html.escape(str(value))


def page(title: str, body: Sequence[str]) -> str:
    """A whole page; parts of the body that are empty are left out."""
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def cards(figures: Sequence[tuple[str, str]]) -> str:
    """(value, what it is), each on a card."""
    inner = "".join(
        f"<div class=card><b>{escape(v)}</b><span>{escape(k)}</span></div>" for v, k in figures
    )
    return f"<div class=cards>{inner}</div>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    inner = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{top}</tr>{inner}</table></div>"
