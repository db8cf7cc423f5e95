"""Identity of what a run is trained on, and its comparison when the run goes on.

A checkpoint records the fingerprint of the tokenizer, and of each source the hash of its store's
content. A run whose data or tokenizer changed since would go on at the old position of another
stream, or give its token ids another meaning; it is refused unless the change is meant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from t5x_llm.checkpoint import Checkpointer, check_compatible
from t5x_llm.checkpoint.compat import is_allowed
from t5x_llm.core.errors import CheckpointError, ConfigError, DataError
from t5x_llm.core.paths import as_path
from t5x_llm.data.catalog import Opened, open_stores
from t5x_llm.data.sources import Data
from t5x_llm.run.config import SHARED_NAMES, Run
from t5x_llm.text import Tokenizer, load_tokenizer

MADE_FROM = "made_from"
# Fields whose change is judged by what the stores hold, or decides nothing that a run reads.
_JUDGED = ("Data.tokenizer", "Data.store_dir", "Data.name", "Source.files")
_FREE = ("Data.workers", "Source.license", "Chat.max_dropped")
_TOKENIZER = ("Data.tokenizer",)
# Fields that decide what a store holds: to allow one of them allows another content.
_CONTENT = (
    *("Source.files", "Source.kind", "Source.field", "Source.unit", "Source.score", "Source.tfds"),
    *("Source.format", "Source.columns", "Source.prompts", "Data.chat"),
    *("Source.tfds_split", "Source.tfds_data_dir", "Source.validation_fraction"),
    *("Data.validation_fraction", "Data.mixture", "Data.modules", "Data.seqio_mixture"),
    *("Data.tokenizer", "Mixture.sources"),
)


@dataclasses.dataclass(frozen=True)
class DataChange:
    """One difference between what a checkpoint was made from and what is there now.

    Attributes:
      names: entries of ``CheckpointConfig.allow_changes`` that allow it; the first is advised.
      text: the difference in words.
      remedy: what else can be done; "" where nothing comes to mind.
    """

    names: tuple[str, ...]
    text: str
    remedy: str = ""


def made_from(opened: Opened) -> dict[str, Any]:
    """Returns JSON for a checkpoint: fingerprints of the tokenizer and of every source's store."""
    sources = {
        name: {
            "content": store.content,
            "texts": opened.texts.get(name, ""),
            "documents": [len(store.train), len(store.validation)],
        }
        for name, store in opened.stores.items()
    }
    return {
        "tokenizer": opened.tokenizer.fingerprint,
        "tokenizer_path": opened.tokenizer_path,
        "sources": sources,
    }


def newest_checkpoint(run: Run) -> tuple[str, dict[str, Any]] | None:
    """Returns path and meta of the newest checkpoint of a run; None if it has none."""
    directory = as_path(run.directory) / "checkpoints"
    if not directory.exists():
        return None
    checkpointer = Checkpointer(directory, run.checkpoint, read_only=True)
    try:
        if (found := checkpointer.newest_meta()) is None:
            return None
        return str(checkpointer.path(found[0])), found[1]
    finally:
        checkpointer.close()


def check_config(run: Run, meta: Mapping[str, Any], where: str) -> list[str]:
    """Compares the configuration of a checkpoint with the run's.

    Returns:
      The differences that ``CheckpointConfig.allow_changes`` allows, in words.

    Raises:
      CheckpointError: naming every field that differs otherwise.
    """
    free = [*_FREE, *(_JUDGED if MADE_FROM in meta else ())]
    allow, shared = run.checkpoint.allow_changes, run.shared()
    return check_compatible(meta["config"], shared, where, allow, SHARED_NAMES, free)


def check_texts(run: Run) -> None:
    """Refuses changed files before anything is built of them; see ``check_opened``.

    Nothing is compared where the bytes of a source's input are not known.
    """
    found = newest_checkpoint(run)
    mixture = run.data.mixture
    if found is None or MADE_FROM not in found[1] or mixture is None:
        return
    if any(source.kind == "tfds" for source in mixture.sources):
        return
    from t5x_llm.data.inputs import make_plans

    where, meta = found
    saved = meta[MADE_FROM]
    plans, _ = make_plans(run.data, str(as_path(run.data.store_dir)), None)
    changes = []
    for plan in plans:
        before = saved["sources"].get(plan.name, {}).get("texts")
        if before and before != plan.texts:
            changes.append(_changed(plan.name, "other bytes, or read in another way"))
    if changes and not isinstance(run.data.tokenizer, str):
        changes.append(_other_tokenizer(saved, "one trained on the changed files"))
    _refuse(run, where, changes)


def check_opened(run: Run, opened: Opened) -> list[str]:
    """Compares the opened data with what the newest checkpoint of the run was made from.

    Returns:
      All that differs and is allowed, configuration included, in words: for the journal.

    Raises:
      CheckpointError: naming the tokenizer and the sources that changed.
    """
    if (found := newest_checkpoint(run)) is None:
        return []
    where, meta = found
    lines = check_config(run, meta, where)
    if MADE_FROM not in meta:  # an older version wrote it
        return lines
    changes = [*differences(meta[MADE_FROM], made_from(opened))]
    _refuse(run, where, changes)
    return [*lines, *(change.text for change in changes)]


def differences(saved: Mapping[str, Any], present: Mapping[str, Any]) -> Iterator[DataChange]:
    """Yields the changes between two results of ``made_from``."""
    retokenized = saved["tokenizer"] != present["tokenizer"]
    if retokenized:
        yield _other_tokenizer(saved, f"{present['tokenizer'][:12]}, {present['tokenizer_path']}")
    for name, now in present["sources"].items():
        before = saved["sources"].get(name)
        if before is None or before["content"] == now["content"]:
            continue  # a new source is a change of the configuration
        if retokenized and before["texts"] == now["texts"] and now["texts"]:
            continue
        if retokenized and before["documents"] == now["documents"]:
            continue  # what the other tokenizer makes of the same documents
        counts = [" + ".join(f"{n:,}" for n in each["documents"]) for each in (before, now)]
        text = f"documents trained on + held out: {counts[0]} -> {counts[1]}"
        yield _changed(name, text if counts[0] != counts[1] else "other text in as many documents")


def trained_tokenizer(
    data: Data, checkpointer: Checkpointer, steps: Sequence[int | None]
) -> Tokenizer:
    """Loads the tokenizer that checkpoints of a run were trained with.

    It is that of the run's data; where this was prepared again with another, or is gone, the one
    that was recorded, if it is still there or was exported with the run.

    Args:
      data: of the run.
      checkpointer: its checkpoints.
      steps: those used; None is the newest sound one.

    Raises:
      CheckpointError: there is none under which the token ids of the model mean what they meant.
      DataError: the data was not prepared, and no checkpoint records its tokenizer.
    """
    metas = [checkpointer.meta(step) for step in steps]
    records = [meta[MADE_FROM] for meta in metas if MADE_FROM in meta]
    wanted = {record["tokenizer"]: record["tokenizer_path"] for record in records}
    try:
        opened = open_stores(data)
        present, path = opened.tokenizer, opened.tokenizer_path
    except DataError:
        if len(wanted) != 1:
            raise
        present, path = None, ""
    if not wanted or (present is not None and wanted.keys() == {present.fingerprint}):
        assert present is not None
        return present
    if len(wanted) > 1:
        steps_of = ", ".join(str(meta["step"]) for meta in metas)
        raise CheckpointError(
            f"The checkpoints of steps {steps_of} in {checkpointer.directory} were trained with "
            f"{len(wanted)} tokenizers: {', '.join(wanted.values())}. Take those of one."
        )
    ((fingerprint, recorded),) = wanted.items()
    for place in (recorded, str(checkpointer.directory.parent / "hf")):
        try:
            found = load_tokenizer(place)
        except (ConfigError, DataError):
            continue
        if found.fingerprint == fingerprint:
            return found
    now = f"{present.fingerprint[:12]} ({path})" if present is not None else "none"
    raise CheckpointError(
        f"{checkpointer.path(metas[0]['step'])} was trained with the tokenizer {fingerprint[:12]} "
        f"({recorded}), which is not there any more. The run's data has {now}, under which its "
        "token ids mean other text. Put the data back as it was, and run `t5x-llm prepare` with "
        "the operative_config.gin of the run."
    )


def changed_since(directory: str, opened: Opened, step: int | None = None) -> list[str]:
    """Returns in words how prepared data differs from what a run's checkpoint was trained on."""
    checkpointer = Checkpointer(as_path(directory) / "checkpoints", read_only=True)
    try:
        saved = checkpointer.meta(step).get(MADE_FROM)
    finally:
        checkpointer.close()
    return [] if saved is None else [c.text for c in differences(saved, made_from(opened))]


def _changed(name: str, text: str) -> DataChange:
    scoped = (f"{name}/{field}" for field in _CONTENT if field.startswith("Source."))
    return DataChange(
        (*_CONTENT, *scoped),
        f"Source.files of {name!r}: its documents changed ({text})",
        "Put the files back as they were to continue that run.",
    )


def _other_tokenizer(saved: Mapping[str, Any], now: str) -> DataChange:
    path = saved["tokenizer_path"]
    return DataChange(
        _TOKENIZER,
        f"Data.tokenizer: {saved['tokenizer'][:12]}, {path} -> {now}",
        f"Token ids would mean other text to the trained model: Data.tokenizer = {path!r} keeps "
        "the tokenizer that it was trained with.",
    )


def _refuse(run: Run, where: str, changes: list[DataChange]) -> None:
    allow = run.checkpoint.allow_changes
    refused = [c for c in changes if not _allows(allow, c)]
    if not refused:
        return
    lines = "\n".join(f"  {change.text}" for change in refused)
    remedies = " ".join(dict.fromkeys(change.remedy for change in refused))
    # To go on with another tokenizer is hardly ever meant: its name is told, not advised.
    advised = dict.fromkeys(c.names[0] for c in refused if c.names != _TOKENIZER) or _TOKENIZER
    raise CheckpointError(
        f"{where} was made from other data (checkpoint -> this run):\n{lines}\n{remedies} A run "
        "for the data as it is now needs another Run.directory. A change that is meant goes into "
        f"CheckpointConfig.allow_changes, e.g. {tuple(advised)}."
    )


def _allows(allow: tuple[str, ...], change: DataChange) -> bool:
    # The tokenizer must be named itself; its class may be allowed for other fields.
    if change.names == _TOKENIZER:
        return any(name.rpartition("/")[2].endswith("Data.tokenizer") for name in allow)
    return is_allowed(change.names, allow)
