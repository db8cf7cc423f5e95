"""Engine of cleaning, from dirty to clean text: phases of independent tasks, safe to kill.

    <output>/data/*.jsonl.zst   what is kept: text, id, source, meta; named in the inputs' order
    <output>/quarantine.jsonl   what could not be read, with the reason
    <output>/removed.jsonl      what decontamination and deduplication left out
    <output>/report.html        counts and samples of all that was left out; counts in report.json
    <output>/manifest.json      written last: configuration, hashes of inputs and of outputs
    <output>/.work/             phases in progress; the hashes of inputs stay there

Phases: scan (files), clean (shards of them to parts), those of deduplication (parts to keys to
repeats), write (parts without repeats). Each is a list of tasks that are pure functions of their
files; see ``phases``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from t5x_llm.core import filesystems
from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.core.paths import as_path, check_writable, write_json
from t5x_llm.core.units import size
from t5x_llm.data.clean.clean_config import Clean
from t5x_llm.data.clean.input_config import Input
from t5x_llm.data.clean.jobs import (
    QUARANTINE,
    REMOVED,
    CleanContext,
    Shard,
    clean_shard,
    open_steps,
    scan_files,
)
from t5x_llm.data.clean.parts import CorpusPart, LineWriter
from t5x_llm.data.clean.phases import BeamRunner, CleanTask, Phases, PoolRunner, fingerprint
from t5x_llm.data.clean.read.files import File, find_files
from t5x_llm.data.clean.read.records import Bad
from t5x_llm.data.clean.report_page import write_report
from t5x_llm.data.clean.tally import Tally
from t5x_llm.data.formats import Format, suffix_of
from t5x_llm.data.reading import Scan, plan_jobs

FORMAT = 3
_KINDS_SHOWN = 5
_SCAN_FILES, _SCAN_BYTES = 1000, 256 << 20


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Outcome of a run: its manifest, and whether the manifest was there already."""

    manifest: dict[str, Any]
    unchanged: bool


def run(clean: Clean, say: Callable[[str], object] = tqdm.write) -> Outcome:
    """Cleans what has not been cleaned yet.

    Args:
      clean: the configuration.
      say: receives lines of progress.

    Raises:
      ConfigError: an output that cannot be written, a step that lacks what it needs.
      DataError: an input that is not there; inputs of which nothing can be read.
    """
    begin = time.monotonic()
    check_writable("Clean.output", clean.output)
    out = str(as_path(clean.output)).rstrip("/")
    _, search = open_steps(clean)  # what they lack is found before anything is read
    for note in search.notes if search else ():
        say(f"clean: {note}")
    runner = PoolRunner(clean.workers) if clean.runner == "pool" else BeamRunner(clean.beam_options)
    with _lock(out), runner:
        phases = Phases(f"{out}/.work", runner)
        plan = _plan(clean, out, phases)
        manifest = _finished(out, plan.fingerprint)
        if manifest is not None:
            say(f"clean: {out} is up to date, nothing to do")
            return Outcome(manifest, True)
        as_path(f"{out}/manifest.json").unlink(missing_ok=True)
        manifest = _run(clean, out, plan, phases)
        say(_summary(manifest, out, time.monotonic() - begin))
    return Outcome(manifest, False)


@dataclasses.dataclass(frozen=True)
class CleanPlan:
    """Plan of a run.

    Attributes:
      fingerprint: of all that decides the output.
      files: those that are read, by input.
      bad: paths that are not read, with the reason.
      left_out: files among them.
      tasks: of the clean phase.
    """

    fingerprint: str
    files: dict[str, list[dict[str, Any]]]
    bad: list[Bad]
    left_out: list[File]
    tasks: list[CleanTask]


def _plan(clean: Clean, out: str, phases: Phases) -> CleanPlan:
    """Looks at the inputs, each file once."""
    bad: list[Bad] = []
    left_out: list[File] = []
    tasks: list[CleanTask] = []
    owners: list[tuple[Input, tuple[File, ...]]] = []
    for number, source in enumerate(clean.inputs):
        files, wrong = find_files(source)
        inside = [file for file in files if file.path.startswith(f"{out}/")]
        if inside:
            raise ConfigError(
                "Clean.output", clean.output,
                f"a directory that input {source.name!r} does not read",
                f"It would read {inside[0].path}; choose another directory.",
            )  # fmt: skip
        bad += wrong
        about = [dataclasses.asdict(source), dataclasses.asdict(clean.limits), clean.shard_bytes]
        for batch in _batches(files):
            mark = fingerprint(FORMAT, about, batch)
            held = sum(file.size for file in batch)
            tasks.append(CleanTask(f"{source.name}-{len(tasks):05d}", mark, held, (number, batch)))
            owners.append((source, batch))
    phases.run("scan", scan_files, CleanContext(clean, ""), tasks)
    scans: dict[str, list[tuple[File, Format, Scan]]] = {s.name: [] for s in clean.inputs}
    for (source, batch), found in zip(owners, phases.results("scan", tasks), strict=True):
        for file, seen in zip(batch, found, strict=True):
            if "reason" in seen:
                bad.append(Bad(f"{source.name}/{file.name}", seen["reason"], seen["detail"]))
                left_out.append(file)
                continue
            cuts = tuple((int(byte), int(number)) for byte, number in seen["cuts"])
            scan = Scan(file.path, seen["size"], seen["sha256"], cuts)
            scans[source.name].append((file, Format(*seen["kind"]), scan))
    if not any(scans.values()):
        reasons = ", ".join(f"{each.id}: {each.reason}" for each in bad[:3])
        raise DataError(f"No input can be read ({reasons}). Check Input.files and Input.format.")
    how = [clean.described()[name] for name in ("steps", "decontaminate", "limits", "compression")]
    how = [FORMAT, how, _content_of(how), clean.shard_bytes, clean.dedup is None]
    shards: list[CleanTask] = []
    for number, source in enumerate(clean.inputs):
        shards += _shards(clean, number, scans[source.name], how)
    described = {
        source.name: [
            {"file": file.name, "bytes": scan.size, "sha256": scan.sha256}
            for file, _, scan in scans[source.name]
        ]
        for source in clean.inputs
    }
    mark = fingerprint(
        clean.described()["dedup"], [task.fingerprint for task in shards],
        [dataclasses.astuple(each) for each in bad],
    )  # fmt: skip
    return CleanPlan(mark, described, bad, left_out, shards)


def _batches(files: Sequence[File]) -> Iterator[tuple[File, ...]]:
    held: list[File] = []
    total = 0
    for file in files:
        if held and (len(held) >= _SCAN_FILES or total + file.size > _SCAN_BYTES):
            yield tuple(held)
            held, total = [], 0
        held.append(file)
        total += file.size
    if held:
        yield tuple(held)


def _shards(
    clean: Clean, number: int, scans: list[tuple[File, Format, Scan]], how: list[Any]
) -> Iterator[CleanTask]:
    """Yields the tasks that clean one input."""
    source = clean.inputs[number]
    for index, stretches in enumerate(plan_jobs([s for *_, s in scans], clean.shard_bytes)):
        of = [scans[stretch.file] for stretch in stretches]
        names = tuple(file.name for file, *_ in of)
        shard = Shard(number, stretches, names, tuple(kind for _, kind, _ in of))
        seen = [
            [name, kind, scan.sha256, stretch.start, stretch.stop, stretch.line]
            for name, kind, (*_, scan), stretch in zip(
                names, shard.kinds, of, stretches, strict=True
            )
        ]
        about = {**dataclasses.asdict(source), "files": ()}
        held = sum(stretch.stop - stretch.start for stretch in stretches)
        yield CleanTask(f"{source.name}-{index:05d}", fingerprint(how, about, seen), held, shard)


def _content_of(described: object) -> list[str]:
    """Hashes the files that a configuration names: lists of words, models."""
    if isinstance(described, dict):
        values = list(described.values())
        folder = described.get("model")
        if isinstance(folder, str) and os.path.isdir(folder):  # a classifier
            values += [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
        files = described.get("files")
        for each in files if isinstance(files, list) else ():
            if isinstance(each, str) and filesystems.is_pattern(each):
                values += filesystems.matches(each)
        return [h for value in values for h in _content_of(value)]
    if isinstance(described, list):
        return [h for value in described for h in _content_of(value)]
    if isinstance(described, str) and 0 < len(described) < 1024 and "\0" not in described:
        with contextlib.suppress(OSError, ConfigError):  # words that only look like a path
            if os.path.isfile(described) or filesystems.scheme_of(described):
                return [_hash(described)]
    return []


def _hash(path: str) -> str:
    digest = hashlib.sha256()
    with filesystems.open_input(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _run(clean: Clean, out: str, plan: CleanPlan, phases: Phases) -> dict[str, Any]:
    """Runs all phases but scan; writes and returns the manifest."""
    data, work = f"{out}/data", f"{out}/.work"
    last = clean.dedup is None
    phases.run(
        "clean", clean_shard, CleanContext(clean, data if last else f"{work}/parts"), plan.tasks
    )
    tally = Tally()
    for bad in plan.bad:
        tally.quarantined(bad.reason, bad.id, bad.detail)
    parts: list[CorpusPart] = []
    quarantined = len(plan.bad)
    for result in phases.results("clean", plan.tasks):
        parts += [CorpusPart(*each) for each in result["parts"]]
        tally.merge(Tally.from_json(result["tally"]))
        quarantined += result["quarantined"]
    listed = [phases.path("clean", task) + REMOVED for task in plan.tasks]
    if not last:
        from t5x_llm.data.clean.dedup.stages import deduplicate

        parts, more = deduplicate(clean, out, plan.fingerprint, parts, phases, tally)
        listed += more
    with LineWriter(f"{out}/quarantine.jsonl") as file:
        for bad in plan.bad:
            file.write(id=bad.id, reason=bad.reason, detail=bad.detail)
        for task in plan.tasks:
            file.copy(phases.path("clean", task) + QUARANTINE)
    with LineWriter(f"{out}/removed.jsonl") as file:
        for path in listed:
            file.copy(path)
    _tidy(data, {part.file for part in parts})
    counts = tally.to_json()
    write_json(f"{out}/report.json", counts)
    last_steps = ("decontaminate", "dedup", "repeats", "suffix")
    write_report(out, counts, [*(step.name for step in clean.steps), *last_steps])
    manifest = {
        "format": FORMAT,
        "fingerprint": plan.fingerprint,
        "config": clean.described(),
        "inputs": [
            {"name": s.name, "license": s.license, "files": plan.files[s.name]}
            for s in clean.inputs
        ],
        "sources": counts["sources"],
        "quarantined": quarantined,
        "left_out": _counted(plan.left_out),
        "outputs": [dataclasses.asdict(part) for part in parts],
    }
    write_json(f"{out}/manifest.json", manifest)
    for folder in as_path(work).iterdir():
        if folder.name != "scan":
            folder.rmtree()
    return manifest


def _counted(files: Sequence[File]) -> list[dict[str, Any]]:
    """Counts files and their bytes by suffix, most bytes first."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        suffix = suffix_of(file.path)
        kind = f".{suffix}" if suffix else "without suffix"
        each = found.setdefault(kind, {"kind": kind, "files": 0, "bytes": 0})
        each["files"] += 1
        each["bytes"] += file.size
    return sorted(found.values(), key=lambda each: (-each["bytes"], each["kind"]))


def _finished(out: str, mark: str) -> dict[str, Any] | None:
    """Returns the manifest if all that it names is there and of this plan, else None."""
    try:
        manifest = json.loads(as_path(f"{out}/manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("fingerprint") != mark:
        return None
    there = all(as_path(f"{out}/data/{part['file']}").exists() for part in manifest["outputs"])
    return manifest if there else None


def _tidy(data: str, wanted: set[str]) -> None:
    """Removes parts of an earlier run, and half-written files of a killed one."""
    folder = as_path(data)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        ours = path.name.endswith((".jsonl", ".jsonl.zst", ".tmp"))
        if ours and path.name not in wanted:
            path.unlink()


def _summary(manifest: dict[str, Any], out: str, seconds: float) -> str:
    lines = []
    for name, counts in manifest["sources"].items():
        read, kept = (
            counts.get(what, {"documents": 0, "characters": 0}) for what in ("read", "kept")
        )
        lines.append(
            f"clean: {name}: {read['documents']:,} documents read, {kept['documents']:,} kept, "
            f"{kept['characters']:,} of {read['characters']:,} characters"
        )
    if left_out := manifest.get("left_out"):
        files, held = (sum(each[what] for each in left_out) for what in ("files", "bytes"))
        kinds = ", ".join(f"{each['files']:,} {each['kind']}" for each in left_out[:_KINDS_SHOWN])
        more = f" and {len(left_out) - _KINDS_SHOWN} more kinds" * (len(left_out) > _KINDS_SHOWN)
        lines.append(
            f"clean: {files:,} files of {size(held)} were left out ({kinds}{more}). Those that "
            "hold text are read if an Input of their own has Input.format = 'text'"
        )
    bad = manifest["quarantined"]
    if bad:
        lines.append(f"clean: {bad:,} could not be read; see {out}/quarantine.jsonl")
    lines.append(f"clean: {out} written in {seconds:.1f} s; see {out}/report.html")
    return "\n".join(lines)


@contextlib.contextmanager
def _lock(out: str) -> Iterator[None]:
    """Lets one process in at a time; the system frees the lock when a process dies."""
    if "://" in out:
        yield
        return
    with open(f"{out}/.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                "Clean.output", out, "a directory that no other run writes now",
                "Wait for it, or choose another.",
            ) from None  # fmt: skip
        yield
