"""Makes tokenizer and token stores of text: fingerprinted, safe to kill, skipped when unchanged.

    <store_dir>/.lock                   held while preparing
    <store_dir>/.tmp-*                  work in progress: never read, removed by the next run
    <store_dir>/.inputs.json            hashes of input files by (size, modification time)
    <store_dir>/tokenizer-<hash>/       if one is trained
    <store_dir>/<source>-<hash>/        token stores
    <store_dir>/<Data.name>.json        the catalogue, written last

Nothing is changed in place: another input, tokenizer or setting has another hash. Several processes
may call this at once. On a file system the first takes the lock and builds, the others wait and
find the work done. In a bucket, without locks, process 0 builds and the others await the catalogue.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tqdm import tqdm

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.core.holding import Held, Hold
from t5x_llm.core.paths import as_path, check_writable, write_json
from t5x_llm.data.blending import mixed_sizes
from t5x_llm.data.building import StorePlan, build_store, is_remote, workspace
from t5x_llm.data.catalog import Opened, catalog_path, described, open_stores, read_catalog
from t5x_llm.data.inputs import content_hash, make_plans
from t5x_llm.data.instruct.encoding import chat_identity, check_dropped, prove_template
from t5x_llm.data.jobs import training_texts
from t5x_llm.data.sources import Data
from t5x_llm.data.store import FORMAT, TokenStore
from t5x_llm.text import Tokenizer, load_tokenizer, train_tokenizer

_WAIT_SECONDS = 6 * 3600.0
_TRAINED = "trained.json"


def prepare(
    data: Data,
    *,
    force: bool = False,
    verify: bool = False,
    process_index: int = 0,
    say: Callable[[str], object] = tqdm.write,
) -> Opened:
    """Builds what is missing of the tokenizer and the token stores, and opens them.

    Args:
      data: the configuration.
      force: look at the inputs of seqio tasks again even if they seem unchanged; verify the stores
        of a bucket too.
      verify: read the stores that are there, and build a damaged one again; those of a bucket with
        ``force`` alone.
      process_index: of this process, where several prepare the same directory in a bucket.
      say: takes the lines that tell what is done.

    Raises:
      ConfigError: a directory that cannot be written, a module or seqio mixture that is not there.
      DataError: an input that cannot be used, by file and line; nothing half-written remains.
    """
    try:
        check_writable("Data.store_dir", data.store_dir)
    except ConfigError:  # read-only stores will do where nothing is to be built
        if not force and _is_up_to_date(data):
            say(f"data: {data.name} in {data.store_dir} is up to date, nothing to do")
            return open_stores(data)
        raise
    if is_remote(data.store_dir):
        if process_index:
            _await_catalog(data, say)
        else:
            with _turn(data.store_dir, say):
                _prepare(data, force, force and verify, say)
        return open_stores(data)
    with _lock(data.store_dir, say):
        for leftover in as_path(data.store_dir).glob(".tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            _prepare(data, force, verify or force, say)
        except OSError as e:
            raise DataError(
                f"Preparing data in {data.store_dir} failed: {e.strerror or e}. "
                "Free space, or choose another Data.store_dir."
            ) from e
    return open_stores(data)


def _is_up_to_date(data: Data) -> bool:
    """Returns True if the stores are those of the inputs as they are now; writes nothing."""
    root, catalog = str(as_path(data.store_dir)), _catalog_of(data)
    if catalog is None:
        return False
    plans, _ = make_plans(data, root, catalog["seqio_inputs"])
    same = catalog["inputs"] == {plan.name: plan.digest for plan in plans}
    return same and _is_complete(data, root, catalog)


def _prepare(data: Data, force: bool, verify: bool, say: Callable[[str], object]) -> None:
    begin = time.monotonic()
    root = str(as_path(data.store_dir))
    before = _catalog_of(data)
    plans, record = make_plans(data, root, before and before["seqio_inputs"], force)
    inputs = {plan.name: plan.digest for plan in plans}
    if before and before["inputs"] == inputs and verify:
        _remove_damaged(root, before, say)
    if before and before["inputs"] == inputs and _is_complete(data, root, before):
        if record != before["seqio_inputs"]:
            write_json(catalog_path(data), {**before, "seqio_inputs": record})
        say(f"data: {data.name} in {root} is up to date, nothing to do")
        return
    with contextlib.closing(_Rates(data)) as resolve:
        tokenizer, tokenizer_name, trained = _tokenizer(data, root, plans)
        path = f"{root}/{tokenizer_name}" if trained else tokenizer_name
        template = _template(data, tokenizer)
        targets = {p.name: f"{p.name}-{_fingerprint(p, tokenizer)[:12]}" for p in plans}
        stores = {p.name: _store(data, root, p, targets, tokenizer, path, say) for p in plans}
        rates = resolve(mixed_sizes(data.mixture, stores))
    own = {s.name: s for s in data.mixture.sources} if data.mixture else {}
    catalog = {
        "format": FORMAT,
        "name": data.name,
        "config": described(data),
        "tokenizer": tokenizer_name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "trained": trained,
        **template,
        "sources": [
            {
                "name": name,
                "store": targets[name],
                "rate": rates[name],
                "language": own[name].language if name in own else "",
                "license": own[name].license if name in own else "",
            }
            for name in targets
        ],
        "inputs": inputs,
        "texts": {plan.name: plan.texts for plan in plans},
        "seqio_inputs": record,
    }
    write_json(catalog_path(data), catalog)
    shares = ", ".join(f"{name} {rate:.1%}" for name, rate in rates.items())
    say(f"data: {data.name} prepared in {time.monotonic() - begin:.1f} s ({shares})")


def _is_complete(data: Data, root: str, catalog: Mapping[str, Any]) -> bool:
    """Returns whether all that the catalogue names is there, made with the same tokenizer."""
    name = catalog["tokenizer"]
    if not catalog["trained"]:
        tokenizer: Tokenizer | None = load_tokenizer(name)
    else:
        tokenizer = _trained_before(as_path(root) / name)
    if tokenizer is None or tokenizer.fingerprint != catalog["tokenizer_fingerprint"]:
        return False
    if catalog.get("template") != _template(data, tokenizer).get("template"):
        return False
    return all(_manifest_reads(f"{root}/{source['store']}") for source in catalog["sources"])


def _template(data: Data, tokenizer: Tokenizer) -> dict[str, str]:
    """Returns a catalogue's entry of the template of conversations, proved; {} without any."""
    if data.chat is None:
        return {}
    return {"template": prove_template(data.chat, tokenizer)[0].fingerprint}


def _manifest_reads(path: str) -> bool:
    try:
        TokenStore.open(path)
    except DataError:
        return False
    return True


def _remove_damaged(root: str, catalog: Mapping[str, Any], say: Callable[[str], object]) -> None:
    """Reads the stores of a catalogue, and removes those that are damaged, to be built again."""
    for source in catalog["sources"]:
        path = f"{root}/{source['store']}"
        if not as_path(path).exists():
            continue
        try:
            TokenStore.open(path).verify()
        except DataError as e:
            say(f"data: {source['name']}: the store is damaged and is built again ({e})")
            as_path(path).rmtree()


def _catalog_of(data: Data) -> dict[str, Any] | None:
    try:
        catalog = read_catalog(data)
    except DataError:  # damaged; what it names is found again by its hash, or built
        return None
    return catalog if catalog and catalog["config"] == described(data) else None


def _fingerprint(plan: StorePlan, tokenizer: Tokenizer) -> str:
    """Hashes all that decides the content of a store."""
    chat = plan.jobs[0].chat if plan.jobs else None
    made_by = {} if chat is None else {"chat": chat_identity(chat, tokenizer)}
    return content_hash(
        format=FORMAT,
        input=plan.digest,
        held_out=[job.held_out for job in plan.jobs[:1]],
        tokenizer=tokenizer.fingerprint,
        frame=[tokenizer.bos_id, tokenizer.eos_id],
        **made_by,
    )


def _tokenizer(data: Data, root: str, plans: list[StorePlan]) -> tuple[Tokenizer, str, bool]:
    """Returns the tokenizer; its path, or directory under ``root``; whether it was trained here."""
    config = data.tokenizer
    if isinstance(config, str):
        return load_tokenizer(config), config, False
    made_from = content_hash(
        format=FORMAT,
        training=described(data)["tokenizer"],
        inputs=[[plan.digest, plan.jobs[0].held_out] for plan in plans],
    )
    name = f"tokenizer-{made_from[:12]}"
    target = as_path(root) / name
    if (found := _trained_before(target)) is not None:
        return found, name, True
    with workspace(root) as temporary:
        texts = training_texts(
            (job for plan in plans for job in plan.jobs),
            "A tokenizer cannot be trained on it; set Data.tokenizer to the path of its own.",
        )
        tokenizer = train_tokenizer(config, texts, f"{temporary}/tokenizer")
        note = {
            "fingerprint": made_from,
            "tokenizer": tokenizer.fingerprint,
            "training": dataclasses.asdict(config),
        }
        if is_remote(root):
            tokenizer.save(target)
            write_json(target / _TRAINED, note)
        else:
            write_json(f"{temporary}/tokenizer/{_TRAINED}", note)
            shutil.rmtree(target, ignore_errors=True)
            os.rename(f"{temporary}/tokenizer", target)
    return load_tokenizer(target), name, True


def _trained_before(target: Any) -> Tokenizer | None:
    """Returns the tokenizer that was trained into a directory; None if it is not there, whole."""
    try:
        note = json.loads((target / _TRAINED).read_text(encoding="utf-8"))
        found = load_tokenizer(target)
    except (OSError, ValueError, DataError):
        return None
    return found if note.get("tokenizer", found.fingerprint) == found.fingerprint else None


def _store(
    data: Data,
    root: str,
    plan: StorePlan,
    targets: Mapping[str, str],
    tokenizer: Tokenizer,
    tokenizer_path: str,
    say: Callable[[str], object],
) -> TokenStore:
    """Returns the source's store, built unless it is there."""
    target = f"{root}/{targets[plan.name]}"
    if not _manifest_reads(target):
        begin = time.monotonic()
        _check_vocabulary(data, plan, tokenizer)
        if not is_remote(target):
            shutil.rmtree(target, ignore_errors=True)
        build_store(
            plan, target, root, _fingerprint(plan, tokenizer), tokenizer, tokenizer_path,
            data.workers,
        )  # fmt: skip
        split = TokenStore.open(target).train
        held = len(TokenStore.open(target).validation)
        size = f"{split.total_bytes / max(split.tokens, 1):.2f} bytes a token"
        if split.coded:
            size = f"{split.tokens_of(data.chat.trained if data.chat else ()):,} of them trained"
        say(
            f"data: {plan.name}: {len(split):,} documents, {split.tokens:,} tokens, {size}, "
            f"{held:,} held out; {time.monotonic() - begin:.1f} s"
        )
    store = TokenStore.open(target, data.chat)
    if data.chat is not None and store.coded:
        told = check_dropped(plan.name, store.manifest["chat"], data.chat.max_dropped)
        if told:
            say(f"data: {plan.name}: {told}")
    return store


def _check_vocabulary(data: Data, plan: StorePlan, tokenizer: Tokenizer) -> None:
    """Raises DataError if a seqio task has another vocabulary than the tokenizer's."""
    job = plan.jobs[0]
    if not job.task:
        return
    from t5x_llm.data import tasks

    theirs = tasks.vocabulary_fingerprint(data, job.task)
    if theirs not in (None, tokenizer.fingerprint):
        raise DataError(
            f"seqio task {job.task!r} makes token ids with the vocabulary {theirs[:12]}, but "
            f"Data.tokenizer is {tokenizer.fingerprint[:12]}. Set Data.tokenizer to the "
            "SentencePiece model of the task."
        )


class _Rates:
    """Resolves rates by seqio in another process; see the program in ``tasks``."""

    def __init__(self, data: Data):
        self._data = data
        self._program = self._begin()

    def _begin(self) -> subprocess.Popen[bytes] | None:
        sources = self._data.mixture.sources if self._data.mixture else ()
        if len(sources) < 2 or self._data.modules or any(s.kind == "tfds" for s in sources):
            return None  # one has a share of 1; else seqio is needed in this process as well
        return subprocess.Popen(
            [sys.executable, "-m", "t5x_llm.data.tasks"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)},
        )  # fmt: skip

    def __call__(self, sizes: Mapping[str, float]) -> dict[str, float]:
        if self._data.mixture and len(sizes) == 1 and all(sizes.values()):
            return dict.fromkeys(sizes, 1.0)
        if self._program:
            out, _ = self._program.communicate(pickle.dumps((self._data, dict(sizes))))
            if self._program.returncode == 0:
                return json.loads(out)
        from t5x_llm.data import tasks

        return tasks.rates(self._data, sizes)

    def close(self) -> None:
        """Ends the program if it still runs."""
        if self._program and self._program.poll() is None:
            self._program.kill()
            self._program.communicate()


@contextlib.contextmanager
def _lock(store_dir: str, say: Callable[[str], object]) -> Iterator[None]:
    """Lets one process in at a time; the system frees the lock when a process dies."""
    with open(as_path(store_dir) / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"data: waiting for another process that prepares {store_dir}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _turn(store_dir: str, say: Callable[[str], object]) -> Iterator[None]:
    """Lets one process in at a time where there are no locks, in a bucket; see ``Hold``."""
    waiting = False
    while True:
        try:
            with Hold(store_dir, "the preparation of data", say=say):
                yield
            return
        except Held as e:
            if not waiting:
                say(f"data: waiting for another process that prepares it: {e}")
            waiting = True
        time.sleep(5)


def _await_catalog(
    data: Data, say: Callable[[str], object], seconds: float = _WAIT_SECONDS
) -> None:
    """Waits until the catalogue is of this configuration and of these inputs."""
    say(f"data: waiting for process 0 to prepare {data.store_dir}")
    end = time.monotonic() + seconds
    root = str(as_path(data.store_dir))
    while True:
        catalog = _catalog_of(data)
        if catalog:
            plans, _ = make_plans(data, root, catalog["seqio_inputs"])
            if catalog["inputs"] == {plan.name: plan.digest for plan in plans}:
                return
        if time.monotonic() > end:
            raise DataError(
                f"Process 0 has not prepared {data.store_dir} within {seconds / 3600:.1f} hours. "
                "Look at its log, or run `t5x-llm prepare` before the job."
            )
        time.sleep(5)
