"""The journal told to people."""

from __future__ import annotations

import collections
import dataclasses
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from t5x_llm.train.goodput import duration, lives
from t5x_llm.train.journal import when
from t5x_llm.train.jsonl import Line, is_number, is_step

_COMMON = ("time", "event", "step", "life", "account")
_ROUTINE = ("save", "saved", "alive")
_BAD = ("peak", "skip")
_LAST = ("end", "stuck")
_ITEMS, _LENGTH = 6, 400


@dataclasses.dataclass(frozen=True)
class Entry:
    """One event, or several alike.

    Attributes:
      time: UTC, to the second.
      step: at which.
      event: as in the journal; ``killed`` for a process that ended without a word.
      text: what happened.
    """

    time: str
    step: int
    event: str
    text: str


def plain(value: Any) -> str:
    """Any value of a journal as one short line without control characters."""
    if isinstance(value, bool) or value is None:
        text = str(value)
    elif isinstance(value, (int, float)):
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    elif isinstance(value, dict):
        text = _list([f"{plain(k)} {plain(v)}" for k, v in value.items()])
    elif isinstance(value, (list, tuple)):
        text = _list([plain(v) for v in value])
    else:
        text = "".join(c if c.isprintable() else " " for c in str(value))
    return text if len(text) <= _LENGTH else text[: _LENGTH - 3] + "..."


def _list(items: Sequence[str]) -> str:
    more = f" and {len(items) - _ITEMS} more" if len(items) > _ITEMS else ""
    return ", ".join(items[:_ITEMS]) + more


def _reason(line: Line, key: str = "reason") -> str:
    return f": {plain(line[key])}" if line.get(key) else ""


def _start(line: Line) -> str:
    begins = "goes on from" if line.get("resumed") else "begins at"
    text = f"{begins} step {line['step']:,}"
    if line.get("steps"):
        text += f" of {plain(line['steps'])}"
    facts = [plain(line[key]) for key in ("devices",) if line.get(key)]
    if isinstance(line.get("mesh"), dict) and line["mesh"]:
        facts.append("mesh " + ", ".join(f"{plain(k)}={plain(v)}" for k, v in line["mesh"].items()))
    if is_number(line.get("processes")):
        facts.append(f"{line['processes']} process{'es' if line['processes'] != 1 else ''}")
    return text + (f" ({'; '.join(facts)})" if facts else "")


def _restore(line: Line) -> str:
    took = f" in {duration(line['seconds'])}" if is_number(line.get("seconds")) else ""
    return f"checkpoint of step {plain(line.get('from_step', line['step']))} restored{took}"


def _spike(line: Line) -> str:
    onset, detected = plain(line.get("onset")), plain(line.get("detected", line["step"]))
    text = f"spike from step {onset} on, seen at step {detected}{_reason(line)}"
    if line.get("tokens_by_source"):
        text += f"; its tokens by source: {plain(line['tokens_by_source'])}"
    if isinstance(line.get("documents"), list) and line["documents"]:
        text += f"; its documents: {_documents(line['documents'])}"
    return text


def _documents(found: list[Any]) -> str:
    """[[source, file, line], ...] as ``en a.jsonl:7, ...``."""
    told = []
    for item in found:
        if isinstance(item, list) and len(item) == 3:
            told.append(
                f"{plain(item[0])} {plain(item[1])}:{item[2] if is_number(item[2]) else '?'}"
            )
        else:
            told.append(plain(item))
    return _list(told)


def _rewind(line: Line) -> str:
    text = f"rewound to step {plain(line.get('to_step'))}"
    skip = line.get("skip")
    if isinstance(skip, list) and len(skip) == 2 and all(map(is_number, skip)):
        text += f"; examples {skip[0]:,} to {skip[1]:,} of the data are skipped"
    return text + _reason(line)


def _end(line: Line) -> str:
    return f"ended: {plain(line.get('status', 'unknown'))}" + (
        f" ({plain(line['reason'])})" if line.get("reason") else ""
    )


def _save_failed(line: Line) -> str:
    attempt = f" (attempt {plain(line['attempt'])})" if line.get("attempt") else ""
    return f"saving failed{attempt}{_reason(line)}"


def _mixture(line: Line) -> str:
    place = line.get("stream_position")
    where = f"row {place:,}" if is_step(place) and place else "the beginning"
    return f"mixture from {where} on: {plain(line.get('weights'))}"


_TELL: dict[str, Callable[[Line], str]] = {
    "start": _start,
    "restore": _restore,
    "save": lambda line: f"saved{_seconds(line)}",
    "saved": lambda line: f"checkpoint of step {line['step']:,} complete",
    "save_failed": _save_failed,
    "damaged": lambda line: f"checkpoint of step {line['step']:,} is damaged{_reason(line)}",
    "preemption": lambda line: f"preempted{_reason(line)}",
    "peak": lambda line: f"a bad step{_reason(line)}",
    "spike": _spike,
    "rewind": _rewind,
    "skip": lambda line: f"update skipped{_reason(line)}",
    "mixture": _mixture,
    "stuck": lambda line: f"stuck{_reason(line)}",
    "alive": lambda line: f"training{_reason(line)}",
    "end": _end,
}


def _seconds(line: Line) -> str:
    return (
        f"; training waited {duration(line['seconds'])}" if is_number(line.get("seconds")) else ""
    )


def _tell(line: Line) -> str:
    if line["event"] in _TELL:
        return _TELL[line["event"]](line)
    rest = {k: v for k, v in line.items() if k not in _COMMON}
    return plain(line["event"]) + (f": {plain(rest)}" if rest else "")


def _bad_steps(group: Sequence[Line]) -> str:
    """One sentence for bad steps in a row, and whether their updates were skipped."""
    steps = len({line["step"] for line in group})
    skipped = sum(line["event"] == "skip" for line in group)
    text = "a bad step" if steps == 1 else f"{steps} bad steps from {group[0]['step']:,} on"
    if skipped:
        text += ", update skipped" if steps == 1 else f", {skipped} updates skipped"
    return text + next((_reason(line) for line in group if line.get("reason")), "")


def _saves(group: Sequence[Line], life: Sequence[Line]) -> str:
    """One sentence for saves in a row; '' for signs of life and for saves that were told."""
    begun = [line for line in group if line["event"] == "save"]
    if not begun:
        return ""
    steps = [line["step"] for line in begun]
    text = f"saved at step {steps[-1]:,}"
    if len(steps) > 1:
        text = f"saved {len(steps)} times, last at step {steps[-1]:,}"
    complete = {line["step"] for line in life if line["event"] == "saved"}
    if lacking := [f"{step:,}" for step in steps if step not in complete]:
        text += f"; not known to be complete: step {_list(lacking)}"
    waited = sum(line["seconds"] for line in begun if is_number(line.get("seconds")))
    return text + (f"; training waited {duration(waited)}" if waited >= 0.05 else "")


def _entry(line: Line, text: str, event: str = "", step: int | None = None) -> Entry:
    time = plain(line["time"][:19].replace("T", " "))
    return Entry(time, line["step"] if step is None else step, event or plain(line["event"]), text)


def _between(before: Sequence[Line], life: Sequence[Line]) -> list[Entry]:
    """From the last word of one process to the first of the next."""
    last, reached = before[-1], max(line["step"] for line in before)
    gap = duration(max(when(life[0]) - when(last), 0.0))
    told = [_entry(life[0], f"started again, {gap} after that", "again", reached)]
    if last["event"] not in _LAST:
        text = f"killed; its last word was of step {reached:,}"
        told.insert(0, _entry(last, text, "killed", reached))
    return told


def entries(lines: Sequence[Line], everything: bool = False) -> list[Entry]:
    """The events in order; signs of life left out, saves and bad steps in a row told as one.

    Args:
      lines: of ``read_journal``.
      everything: every line for itself.
    """
    told: list[Entry] = []
    before: list[Line] = []
    for life in lives(lines):
        if before:
            told += _between(before, life)
        for group in [[line] for line in life] if everything else _grouped(life):
            text = _tell(group[0])
            if not everything and group[0]["event"] in _ROUTINE:
                text = _saves(group, life)
            elif not everything and group[0]["event"] in _BAD:
                text = _bad_steps(group)
            if everything or (text and not _told_already(group, life)):
                told.append(_entry(group[-1], text, step=_where(group[-1], life)))
        before = life
    return told


def _told_already(group: Sequence[Line], life: Sequence[Line]) -> bool:
    """Whether it is the end of a process that told of its preemption."""
    if group[0]["event"] == "end" and group[0].get("status") == "preempted":
        return any(line["event"] == "preemption" for line in life)
    return False


def _where(line: Line, life: Sequence[Line]) -> int:
    """The step of a line; last words may come from a thread that knows none."""
    if line["event"] not in _LAST or line["step"]:
        return line["step"]
    return next((x["step"] for x in reversed(life) if x["event"] not in _LAST), 0)


def _grouped(life: Sequence[Line]) -> list[list[Line]]:
    groups: list[list[Line]] = []
    for line in life:
        kinds = next((k for k in (_ROUTINE, _BAD) if line["event"] in k), ())
        if groups and groups[-1][0]["event"] in kinds:
            groups[-1].append(line)
        else:
            groups.append([line])
    return groups


def summary(lines: Sequence[Line]) -> str:
    """``2 restarts (1 killed), 1 rewind, 1 damaged checkpoint``."""
    every = list(lives(lines))
    counts = collections.Counter(line["event"] for line in lines)
    killed = sum(life[-1]["event"] not in _LAST for life in every[:-1])
    damaged = {line["step"] for line in lines if line["event"] == "damaged"}
    parts = [
        _count(len(every) - 1, "restart") + (f" ({killed} killed)" if killed else ""),
        _count(counts["rewind"], "rewind"),
        _count(counts["preemption"], "preemption"),
        _count(len(damaged), "damaged checkpoint"),
        _count(counts["save_failed"], "failed save"),
        _count(counts["skip"], "skipped update"),
    ]
    return ", ".join(part for part in parts if part) or "no restart, no rewind, no damage"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n != 1 else ''}" if n > 0 else ""


def story(lines: Sequence[Line], everything: bool = False, width: int = 100) -> str:
    """All entries, a paragraph each, for a terminal ``width`` columns wide."""
    told = entries(lines, everything)
    steps = max((len(f"{entry.step:,}") for entry in told), default=1)
    paragraphs = []
    for entry in told:
        head = f"{entry.time}  step {entry.step:>{steps},}  "
        paragraphs.append(
            textwrap.fill(
                entry.text,
                max(width, len(head) + 30),
                initial_indent=head,
                subsequent_indent=" " * len(head),
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return "\n".join([*paragraphs, "", f"In all: {summary(lines)}."])
