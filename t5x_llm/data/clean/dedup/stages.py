"""Deduplication in phases: keys of parts, repeats by partition, clusters, parts without repeats.

Documents are numbered in the order of the parts; of equal or alike ones the first stays. Lines and
paragraphs are compared among the documents that stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from t5x_llm.core.paths import write_atomic
from t5x_llm.data.clean.clean_config import Clean
from t5x_llm.data.clean.dedup import exact, keys, minhash, near, originals, suffix
from t5x_llm.data.clean.dedup.context import DedupContext, stem
from t5x_llm.data.clean.document import Answer, Document, Drop
from t5x_llm.data.clean.hashing import text_key
from t5x_llm.data.clean.jobs import REMOVED
from t5x_llm.data.clean.parts import CorpusPart, LineWriter, PartWriter, dump_parts, read_part
from t5x_llm.data.clean.phases import CleanTask, Function, Phases, fingerprint
from t5x_llm.data.clean.tally import Tally

STEP = "dedup"
EXACT, NEAR, EMPTIED = "a copy", "a near copy", "nothing but repeats"


def deduplicate(
    clean: Clean, out: str, mark: str, parts: list[CorpusPart], phases: Phases, tally: Tally
) -> tuple[list[CorpusPart], list[str]]:
    """Runs the phases of deduplication.

    Args:
      clean: the configuration.
      out: directory of the run.
      mark: hash of all that decides the input.
      parts: parts in ``.work/parts``.
      phases: runner of the phases.
      tally: tally that takes the counts.

    Returns:
      The parts of the output; files that list what was removed.
    """
    dedup, work = clean.dedup, f"{out}/.work"
    assert dedup is not None
    listing = f"{work}/parts-{mark}.list"
    write_atomic(listing, dump_parts(parts))
    folder = f"{work}/written" if dedup.suffix else f"{out}/data"
    context = DedupContext(clean, work, folder, f"{work}/parts", listing)
    tasks = [
        CleanTask(stem(part), fingerprint(mark, part.file), part.bytes, number)
        for number, part in enumerate(parts)
    ]

    def partitioned(
        context: DedupContext, phase: str, records: int, function: Function, argument: Any
    ) -> DedupContext:
        """Runs a phase that looks at all keys, one range of them a task."""
        count = keys.partitions(records, dedup.partition_bytes)
        ranges = [
            CleanTask(
                f"{i:04d}",
                fingerprint(mark, count, i),
                records * keys.STORED.itemsize // count,
                argument(i),
            )
            for i in range(count)
        ]
        context = dataclasses.replace(context, partitions={**context.partitions, phase: count})
        phases.run(phase, function, context, ranges)
        return context

    if dedup.documents or dedup.minhash:
        phases.run("sign", sign, context, tasks)
        signed = list(phases.results("sign", tasks))
        if dedup.documents:
            records = sum(each["documents"] for each in signed)
            context = partitioned(
                context, "copies", records, exact.find_repeats, lambda i: ("sign", i, 1)
            )
        if dedup.minhash:
            records = sum(each["bands"] for each in signed)
            context = partitioned(context, "pairs", records, near.find_pairs, lambda i: i)
            one = CleanTask("clusters", mark, 8 * sum(part.documents for part in parts), None)
            phases.run("cluster", near.find_clusters, context, [one])
        one = CleanTask("originals", mark, 8 * sum(part.documents for part in parts), None)
        phases.run("originals", originals.find_originals, context, [one])
    if dedup.repeats:
        copies = dedup.repeats.copies
        phases.run("units", key_units, context, tasks)
        records = sum(phases.results("units", tasks))
        context = partitioned(
            context, "repeats", records, exact.find_repeats, lambda i: ("units", i, copies)
        )
    phases.run("write", write, context, tasks)
    removed = [phases.path("write", task) + REMOVED for task in tasks]
    made = _collect(phases, "write", tasks, tally)
    originals.show(context, tally, STEP)
    if dedup.suffix:
        listing = f"{work}/written-{mark}.list"
        write_atomic(listing, dump_parts(made))
        context = DedupContext(clean, work, f"{out}/data", folder, listing)
        tasks = suffix.tasks(context, mark)
        phases.run("suffix", suffix.cut, context, tasks)
        removed += [phases.path("suffix", task) + REMOVED for task in tasks]
        made = _collect(phases, "suffix", tasks, tally)
    return made, removed


def _collect(phases: Phases, phase: str, tasks: list[CleanTask], tally: Tally) -> list[CorpusPart]:
    parts: list[CorpusPart] = []
    for result in phases.results(phase, tasks):
        parts += [CorpusPart(*each) for each in result["parts"]]
        tally.merge(Tally.from_json(result["tally"]))
    return parts


def sign(context: DedupContext, number: int, base: str) -> dict[str, int]:
    """Writes the ids and keys of a part's documents: of whole texts, of bands of signatures."""
    dedup = context.dedup
    digests, signatures, signed, ids = bytearray(), [], [], []
    for unit, document in enumerate(read_part(context.path(number))):
        ids.append(document.id)
        if dedup.documents:
            digests += text_key(document.text)
        if dedup.minhash:
            grams = minhash.shingles(document.text, dedup.minhash)
            found = minhash.signature(grams, dedup.minhash)
            if found is not None:
                signatures.append(found)
                signed.append(unit)
    originals.write_ids(ids, base)
    left = {"documents": 0, "bands": 0}
    if dedup.documents:
        units = np.arange(context.parts[number].documents)
        left["documents"] = exact.write_keys(digests, units, 1, base)
    if dedup.minhash:
        bands, rows = dedup.minhash.shape
        values = np.array(signatures, np.uint32).reshape(-1, bands * rows)
        units = np.array(signed, np.int64)
        left["bands"] = near.write_bands(context, number, values, units, base)
    return left


def _verdicts(context: DedupContext, number: int) -> Iterator[tuple[Document, str]]:
    """Yields a part's documents, each with the reason to leave it out, empty if it stays."""
    part = context.parts[number]
    copies = np.zeros(part.documents, bool)
    alike = np.zeros(part.documents, bool)
    if context.dedup.documents:
        copies[exact.repeated(context, number, "sign", "copies")["unit"]] = True
    if context.dedup.minhash:
        begin = int(context.offsets[number])
        alike = near.first_of_clusters(context, number) != np.arange(begin, begin + part.documents)
    for unit, document in enumerate(read_part(context.path(number))):
        yield document, EXACT if copies[unit] else NEAR if alike[unit] else ""


def key_units(context: DedupContext, number: int, base: str) -> int:
    """Writes the keys of the lines or paragraphs of documents that stay, and their documents."""
    repeats = context.dedup.repeats
    assert repeats is not None
    digests, ids, firsts = bytearray(), [], []
    for document, reason in _verdicts(context, number):
        ids.append(document.id)
        firsts.append(len(digests) // 16)
        if not reason:
            for piece, counted in exact.pieces(document.text, repeats):
                if counted:
                    digests += text_key(piece)
    originals.write_ids(ids, base)
    originals.write_firsts(firsts, base)
    return exact.write_keys(digests, np.arange(len(digests) // 16), repeats.copies, base)


def write(context: DedupContext, number: int, base: str) -> dict[str, Any]:
    """Writes a part without repeats.

    Returns:
      ``parts``, at most one, and the ``tally``.
    """
    repeats, tally = context.dedup.repeats, Tally()
    again, drop = np.empty(0, keys.REPEAT), np.zeros(0, bool)
    if repeats:
        again = exact.repeated(context, number, "units", "repeats")
        drop = np.zeros(int(again["unit"].max()) + 1 if len(again) else 0, bool)
        drop[again["unit"]] = True
    part, unit = context.parts[number], 0
    writer = PartWriter(context.folder, stem(part), context.clean.compression, None)
    stays = originals.Originals(context, number)
    with LineWriter(base + REMOVED) as listed:
        for at, (document, reason) in enumerate(_verdicts(context, number)):
            answer: Answer = document
            of: list[str] = []
            if reason:
                original, name = stays(at)
                of, answer = [name], Drop(reason, f"repeats {name}")
                tally.answered(STEP, document, answer, original=str(original))
            else:
                tally.answered(STEP, document, answer)
            if isinstance(answer, Document) and repeats:
                begin = unit
                text, unit = exact.without(document.text, repeats, unit, drop)
                if text.strip():
                    answer = document.with_text(text)
                else:
                    of = originals.of_units(context, again, begin, unit)
                    answer = Drop(EMPTIED, f"repeats {', '.join(of)}" if of else "")
                tally.answered("repeats", document, answer)
            if isinstance(answer, Drop):
                listed.write(id=document.id, step=STEP, reason=answer.reason, repeats=of)
                continue
            writer.write(answer)
            if not context.dedup.suffix:
                tally.kept(answer)
    return {
        "parts": [dataclasses.astuple(each) for each in writer.close()],
        "tally": tally.to_json(),
    }
