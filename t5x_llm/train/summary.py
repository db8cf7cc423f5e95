"""Summary of a journal, for people."""

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
class SummaryLine:
    """One line of a summary: an event of a run, or several alike.

    Attributes:
      time: UTC, to the second.
      step: step of the event.
      event: name as in the journal; ``killed`` for a process that wrote no end.
      text: the event in words.
    """

    time: str
    step: int
    event: str
    text: str


def plain(value: object) -> str:
    """Formats any value of a journal as one short line without control characters."""
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
    """Formats [[source, file, line], ...] as ``en a.jsonl:7, ...``."""
    named = []
    for item in found:
        if isinstance(item, list) and len(item) == 3:
            named.append(
                f"{plain(item[0])} {plain(item[1])}:{item[2] if is_number(item[2]) else '?'}"
            )
        else:
            named.append(plain(item))
    return _list(named)


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


_SENTENCES: dict[str, Callable[[Line], str]] = {
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
    "set_aside": lambda line: "began anew; damaged checkpoints were moved aside",
    "mixture": _mixture,
    "changed": lambda line: f"changed since, as allowed: {plain(line.get('changes'))}",
    "stuck": lambda line: f"stuck{_reason(line)}",
    "alive": lambda line: f"training{_reason(line)}",
    "end": _end,
}


def _seconds(line: Line) -> str:
    return (
        f"; training waited {duration(line['seconds'])}" if is_number(line.get("seconds")) else ""
    )


def _sentence(line: Line) -> str:
    if line["event"] in _SENTENCES:
        return _SENTENCES[line["event"]](line)
    rest = {k: v for k, v in line.items() if k not in _COMMON}
    return plain(line["event"]) + (f": {plain(rest)}" if rest else "")


def _bad_steps(group: Sequence[Line]) -> str:
    """Returns one sentence for bad steps in a row and their skipped updates."""
    steps = len({line["step"] for line in group})
    skipped = sum(line["event"] == "skip" for line in group)
    text = "a bad step" if steps == 1 else f"{steps} bad steps from {group[0]['step']:,} on"
    if skipped:
        text += ", update skipped" if steps == 1 else f", {skipped} updates skipped"
    return text + next((_reason(line) for line in group if line.get("reason")), "")


def _saves(group: Sequence[Line], life: Sequence[Line]) -> str:
    """Returns one sentence for saves in a row; '' where the group has signs of life alone."""
    saves = [line for line in group if line["event"] == "save"]
    if not saves:
        return ""
    steps = [line["step"] for line in saves]
    text = f"saved at step {steps[-1]:,}"
    if len(steps) > 1:
        text = f"saved {len(steps)} times, last at step {steps[-1]:,}"
    complete = {line["step"] for line in life if line["event"] == "saved"}
    if lacking := [f"{step:,}" for step in steps if step not in complete]:
        text += f"; not known to be complete: step {_list(lacking)}"
    waited = sum(line["seconds"] for line in saves if is_number(line.get("seconds")))
    return text + (f"; training waited {duration(waited)}" if waited >= 0.05 else "")


def _summary_line(line: Line, text: str, event: str = "", step: int | None = None) -> SummaryLine:
    time = plain(line["time"][:19].replace("T", " "))
    step = line["step"] if step is None else step
    return SummaryLine(time, step, event or plain(line["event"]), text)


def _between(before: Sequence[Line], life: Sequence[Line]) -> list[SummaryLine]:
    """Returns the lines about the end of one process and the start of the next."""
    last, reached = before[-1], max(line["step"] for line in before)
    gap = duration(max(when(life[0]) - when(last), 0.0))
    found = [_summary_line(life[0], f"started again, {gap} after that", "again", reached)]
    if last["event"] not in _LAST:
        text = f"killed; its last line was of step {reached:,}"
        found.insert(0, _summary_line(last, text, "killed", reached))
    return found


def summary_lines(lines: Sequence[Line], everything: bool = False) -> list[SummaryLine]:
    """Returns the events in order, without signs of life; saves and bad steps in a row are one.

    Args:
      lines: lines from ``read_journal``.
      everything: True gives every line of the journal a line of its own.
    """
    found: list[SummaryLine] = []
    before: list[Line] = []
    for life in lives(lines):
        if before:
            found += _between(before, life)
        for group in [[line] for line in life] if everything else _grouped(life):
            text = _sentence(group[0])
            if not everything and group[0]["event"] in _ROUTINE:
                text = _saves(group, life)
            elif not everything and group[0]["event"] in _BAD:
                text = _bad_steps(group)
            if everything or (text and not _is_known_end(group, life)):
                found.append(_summary_line(group[-1], text, step=_step_of(group[-1], life)))
        before = life
    return found


def _is_known_end(group: Sequence[Line], life: Sequence[Line]) -> bool:
    """Returns True for the end of a process that reported its preemption before."""
    if group[0]["event"] == "end" and group[0].get("status") == "preempted":
        return any(line["event"] == "preemption" for line in life)
    return False


def _step_of(line: Line, life: Sequence[Line]) -> int:
    """Returns the step of a line; the last line may come from a thread that knows none."""
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


def event_counts(lines: Sequence[Line]) -> str:
    """Counts what befell a run: ``2 restarts (1 killed), 1 rewind, 1 damaged checkpoint``."""
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


def summary(lines: Sequence[Line], everything: bool = False, width: int = 100) -> str:
    """Formats a journal, a paragraph a line, for a terminal ``width`` columns wide.

    Args:
      lines: lines from ``read_journal``.
      everything: see ``summary_lines``.
      width: columns.
    """
    found = summary_lines(lines, everything)
    steps = max((len(f"{each.step:,}") for each in found), default=1)
    paragraphs = []
    for each in found:
        head = f"{each.time}  step {each.step:>{steps},}  "
        paragraphs.append(
            textwrap.fill(
                each.text,
                max(width, len(head) + 30),
                initial_indent=head,
                subsequent_indent=" " * len(head),
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return "\n".join([*paragraphs, "", f"In all: {event_counts(lines)}."])
