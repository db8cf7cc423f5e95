"""Text to stores: what is in them, what makes them again, and what a kill leaves."""

import dataclasses
import filecmp
import json
import os
import pathlib
import pickle
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clocks import until
from stores import write_jsonl

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data import inputs, reading
from t5x_llm.data import prepare as prepare_module
from t5x_llm.data.catalog import open_stores, open_stream
from t5x_llm.data.prepare import prepare
from t5x_llm.data.sources import Data, Mixture, Source
from t5x_llm.data.store import TokenStore
from t5x_llm.text import TokenizerTraining, load_tokenizer, train_tokenizer

TRAINING = TokenizerTraining(vocab_size=300, character_coverage=0.99)
ROOT = Path(__file__).parents[2]


def texts(seed, count, words="alpha beta gamma delta 山 水 火 12"):
    rng = random.Random(seed)
    return [" ".join(rng.choices(words.split(), k=rng.randint(1, 60))) for _ in range(count)]


@pytest.fixture(scope="module", autouse=True)
def seqio_in_this_process():
    """Imported once, rather than by a program for every ``prepare``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module._Rates, "_begin", lambda self: None)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A prepared Data of two sources and what was said."""
    root = tmp_path_factory.mktemp("base")
    write_jsonl(root / "a.jsonl", texts(1, 300))
    write_jsonl(root / "b.jsonl", texts(2, 80), field="body")
    sources = (
        Source("a", str(root / "a.jsonl"), language="en", license="CC0-1.0"),
        Source("b", str(root / "b.jsonl"), field="body", validation_fraction=0.3),
    )
    data = Data(str(root / "stores"), TRAINING, Mixture(sources, rates=(3, 1)),
                validation_fraction=0.1)  # fmt: skip
    said = []
    prepare(data, say=said.append)
    return data, said


def trees_equal(left, right):
    names = sorted(p.relative_to(left) for p in Path(left).rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(right) for p in Path(right).rglob("*") if p.is_file())
    match, mismatch, errors = filecmp.cmpfiles(left, right, names, shallow=False)
    assert not mismatch and not errors
    return len(names)


def test_stores_hold_the_documents(base):
    data, said = base
    opened = open_stores(data)
    assert opened.weights == {"a": 0.75, "b": 0.25}
    assert opened.languages == {"a": "en", "b": ""} and opened.licenses["a"] == "CC0-1.0"
    expected = {"a": texts(1, 300), "b": texts(2, 80)}
    tokenizer = opened.tokenizer
    for name, store in opened.stores.items():
        seen = {}
        for split in (store.train, store.validation):
            for i in range(len(split)):
                tokens = split.document(i).tolist()
                assert tokens[0] == tokenizer.bos_id and tokens[-1] == tokenizer.eos_id
                text = tokenizer.decode(tokens[1:-1])
                assert split.document_bytes(i) == len(text.encode())
                origin = split.provenance(i)
                assert origin.file.endswith(f"{name}.jsonl")
                seen[origin.line] = text
        assert [seen[i + 1] for i in range(len(seen))] == expected[name]
        lines = [store.train.provenance(i).line for i in range(30)]
        assert lines != sorted(lines)
    held = len(opened.stores["b"].validation)
    assert 0.15 < held / 80 < 0.45
    assert any("documents" in line and "held out" in line for line in said)


@pytest.mark.extended
def test_rates_resolved_by_the_program_are_those_of_this_process(base):
    data, _ = base
    data = dataclasses.replace(
        data, mixture=dataclasses.replace(data.mixture, rates="temperature", temperature=2.0)
    )
    here = prepare_module._Rates(data)({"a": 900, "b": 100})
    program = subprocess.run(
        [sys.executable, "-m", "t5x_llm.data.tasks"],
        input=pickle.dumps((data, {"a": 900, "b": 100})), capture_output=True, check=True,
        cwd=ROOT,
    )  # fmt: skip
    assert json.loads(program.stdout) == here == pytest.approx({"a": 0.75, "b": 0.25})


def test_batches_of_a_prepared_mixture(base):
    data, _ = base
    stream = open_stream(data, open_stores(data), 32, seed=1)
    batch = stream.batch(0, 100)
    assert (batch.source == 0).sum() == 75
    assert batch.tokens.max() < 300


def test_unchanged_inputs_are_skipped(base, monkeypatch):
    data, _ = base
    before = {p: p.stat().st_mtime_ns for p in Path(data.store_dir).rglob("*")}
    os.utime(data.mixture.sources[0].paths[0])  # touched, not changed
    said = []
    prepare(data, say=said.append)
    prepare(data, say=said.append)
    assert len(said) == 2 and all("up to date" in line for line in said)
    after = {p: p.stat().st_mtime_ns for p in Path(data.store_dir).rglob("*")}
    changed = {p.name for p in after if after[p] != before.get(p)}
    assert changed <= {".lock", ".inputs.json", "stores"}


def test_changes_build_beside_and_the_old_store_stays(base, tmp_path):
    data, _ = base
    old = {p.name for p in Path(data.store_dir).iterdir() if p.is_dir()}
    tokenizer = str(next(p for p in Path(data.store_dir).glob("tokenizer-*")))
    source = data.mixture.sources[0]
    copy = write_jsonl(tmp_path / "a.jsonl", texts(1, 300))
    changed = dataclasses.replace(
        data, name="other", tokenizer=tokenizer,
        mixture=Mixture((dataclasses.replace(source, files=str(copy)),)),
    )  # fmt: skip
    prepare(changed, say=str)
    with open(copy, "a") as file:
        file.write('{"text": "one more"}\n')
    prepare(changed, say=str)
    new = {p.name for p in Path(data.store_dir).iterdir() if p.is_dir()}
    assert old < new and len(new - old) == 2
    total = open_stores(changed).stores["a"].train
    assert len(total) + len(open_stores(changed).stores["a"].validation) == 301
    open_stores(data)  # still whole


def test_another_configuration_is_refused_with_the_field(base):
    data, _ = base
    with pytest.raises(DataError, match=r"Data\.validation_fraction was 0\.1, now it is 0\.2"):
        open_stores(dataclasses.replace(data, validation_fraction=0.2))
    with pytest.raises(DataError, match="No prepared data called 'mixtur'.*'mixture'.*prepare"):
        open_stores(dataclasses.replace(data, name="mixtur"))


def test_a_tokenizer_that_was_replaced_is_refused(base, tmp_path):
    data, _ = base
    trained = next(Path(data.store_dir).glob("tokenizer-*"))
    load_tokenizer(trained).save(tmp_path / "tok")
    source = dataclasses.replace(data.mixture.sources[0])
    own = Data(str(tmp_path / "s"), str(tmp_path / "tok"), Mixture((source,)))
    prepare(own, say=str)
    open_stores(own)
    train_tokenizer(dataclasses.replace(TRAINING, vocab_size=305), texts(1, 300), tmp_path / "tok",
                    progress=False)  # fmt: skip
    with pytest.raises(DataError, match="built with the tokenizer"):
        open_stores(own)
    prepare(own, say=str)
    assert open_stores(own).tokenizer.vocab_size == 305


def test_any_number_of_workers_makes_the_same_bytes(base, tmp_path, monkeypatch):
    data, _ = base
    monkeypatch.setattr(reading, "JOB_BYTES", 4000)
    tokenizer = str(next(Path(data.store_dir).glob("tokenizer-*")))
    trees = []
    for workers in (1, 3):
        one = dataclasses.replace(
            data, store_dir=str(tmp_path / str(workers)), tokenizer=tokenizer, workers=workers
        )
        prepare(one, say=str)
        trees.append(one.store_dir)
    folders = [sorted(p.name for p in Path(t).iterdir() if p.is_dir()) for t in trees]
    assert folders[0] == folders[1]
    for folder in folders[0]:
        assert trees_equal(f"{trees[0]}/{folder}", f"{trees[1]}/{folder}") > 10


def test_the_held_out_do_not_depend_on_order_or_file(base, tmp_path):
    data, _ = base
    tokenizer = str(next(Path(data.store_dir).glob("tokenizer-*")))
    all_texts = texts(5, 200)
    write_jsonl(tmp_path / "one.jsonl", all_texts)
    shuffled = random.Random(0).sample(all_texts, 200)
    for i in range(4):
        write_jsonl(tmp_path / f"part{i}.jsonl", shuffled[i::4])
    held = []
    for files in ("one.jsonl", "part*.jsonl"):
        source = Source("x", str(tmp_path / files), validation_fraction=0.2)
        one = Data(str(tmp_path / "s"), tokenizer, Mixture((source,)), name=files[:3])
        prepare(one, say=str)
        split = open_stores(one).stores["x"].validation
        held.append(sorted(split.document(i).tobytes() for i in range(len(split))))
    assert held[0] == held[1] and 20 < len(held[0]) < 60


def test_the_tokenizer_never_sees_what_is_held_out(tmp_path, monkeypatch):
    seen = []
    train = prepare_module.train_tokenizer

    def spy(config, documents, out):
        documents = list(documents)
        seen.extend(documents)
        return train(config, iter(documents), out, progress=False)

    monkeypatch.setattr(prepare_module, "train_tokenizer", spy)
    write_jsonl(tmp_path / "a.jsonl", [f"{t} {i}" for i, t in enumerate(texts(1, 200))])
    data = Data(str(tmp_path / "s"), TRAINING, Mixture((Source("a", str(tmp_path / "a.jsonl")),)),
                validation_fraction=0.2)  # fmt: skip
    opened = prepare(data, say=str)
    held = opened.stores["a"].validation
    held_texts = {opened.tokenizer.decode(held.document(i)[1:-1]) for i in range(len(held))}
    assert len(held_texts) > 20 and len(seen) == 200 - len(held)
    assert not held_texts & set(seen)


@pytest.mark.parametrize(("content", "said"), [
    (b"", "'a' is empty"),
    (b"\n\n \n", "'a' has no document to train on: .*hold no text"),
    (b'{"text": "x"}\n{"text": "\xff"}\n', r"a\.jsonl:2: not UTF-8 at byte 24"),
    (b'{"text": "x"}\n{"text": \n', r"a\.jsonl:2: not a JSON object"),
])  # fmt: skip
def test_bad_inputs_leave_nothing_behind(base, tmp_path, content, said):
    tokenizer = str(next(Path(base[0].store_dir).glob("tokenizer-*")))
    (tmp_path / "a.jsonl").write_bytes(content)
    source = Source("a", str(tmp_path / "a.jsonl"))
    data = Data(str(tmp_path / "s"), tokenizer, Mixture((source,)), validation_fraction=0.0)
    with pytest.raises(DataError, match=said):
        prepare(data, say=str)
    assert {p.name for p in (tmp_path / "s").iterdir()} <= {".lock", ".inputs.json"}


def test_places_that_cannot_be_written(base, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"Data\.store_dir"):
        prepare(dataclasses.replace(base[0], store_dir=str(tmp_path / "file/x")))
    with pytest.raises(ConfigError, match="tokenizer"):
        prepare(dataclasses.replace(base[0], store_dir=str(tmp_path), tokenizer="nowhere"))


def test_a_full_disk_is_said_and_leaves_nothing(base, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    tokenizer = str(next(Path(base[0].store_dir).glob("tokenizer-*")))
    monkeypatch.setattr(np, "savez", full)
    data = dataclasses.replace(base[0], store_dir=str(tmp_path / "s"), tokenizer=tokenizer)
    with pytest.raises(DataError, match="No space left on device.*Free space"):
        prepare(data, say=str)
    assert {p.name for p in (tmp_path / "s").iterdir()} <= {".lock", ".inputs.json"}


# Without seqio's ten seconds of import; rates are tested elsewhere.
PROGRAM = """
import pickle, sys
from t5x_llm.data import prepare as module
from t5x_llm.data.prepare import prepare
module._Rates._begin = lambda self: None
module._Rates.__call__ = lambda self, sizes: dict.fromkeys(sizes, 0.5)
if __name__ == "__main__":
    data = pickle.load(open(sys.argv[1], "rb"))
    print("begin", flush=True)
    prepare(data, say=lambda line: print(line, flush=True))
"""


def _start(data, folder):
    (folder / "data.pickle").write_bytes(pickle.dumps(data))
    (folder / "program.py").write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(folder / "program.py"), str(folder / "data.pickle")],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def _files(directory):
    return sum(len(names) for _, _, names in os.walk(directory))


def test_a_kill_leaves_no_half_store_and_the_next_run_finishes(base, tmp_path):
    data = dataclasses.replace(base[0], store_dir=str(tmp_path / "s"))
    for files in (1, 12, 30):
        process = _start(data, tmp_path)
        assert process.stdout.readline() == "begin\n"
        # So many files further than at the start, in whatever it writes then.
        further = files + _files(data.store_dir)
        until(lambda: _files(data.store_dir) >= further or process.poll() is not None)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for path in Path(data.store_dir).glob("*-*"):
            if path.name.startswith((".", "tokenizer")):
                continue
            TokenStore.open(str(path)).train.document(0)
    Path(data.store_dir, ".tmp-left").mkdir()
    prepare(data, say=str)
    assert not list(Path(data.store_dir).glob(".tmp-*"))
    for path in Path(data.store_dir).glob("*-*"):
        assert trees_equal(path, Path(base[0].store_dir) / path.name)


def test_two_processes_prepare_once(base, tmp_path):
    data = dataclasses.replace(base[0], store_dir=str(tmp_path / "s"))
    both = [_start(data, tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("documents" in text for text in said) == 1
    assert sum("up to date" in text for text in said) == 1
    assert sum("waiting for another process" in text for text in said) <= 1


def test_training_imports_neither_tensorflow_nor_seqio(base, tmp_path):
    (tmp_path / "data.pickle").write_bytes(pickle.dumps(base[0]))
    program = """
import pickle, sys
import t5x_llm.data
assert "jax" not in sys.modules and "numpy" not in sys.modules
from t5x_llm.data import batch, catalog, prefetch, prepare, sources, stream
data = pickle.load(open(sys.argv[1], "rb"))
prepare.prepare(data)
opened = catalog.open_stores(data)
made = catalog.open_stream(data, opened, 32)
with prefetch.prefetch(made, 0, lambda p: 8) as batches:
    next(batches)
made.documents(3)
bad = {"tensorflow", "seqio", "tensorflow_datasets", "torch", "gin"} & set(sys.modules)
assert not bad, bad
"""
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "data.pickle")],
        check=True, cwd=ROOT, capture_output=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_document_of_50_mb(base, tmp_path):
    tokenizer = str(next(Path(base[0].store_dir).glob("tokenizer-*")))
    write_jsonl(tmp_path / "a.jsonl", ["short", "alpha 山水 " * 3_500_000, "after"])
    assert (tmp_path / "a.jsonl").stat().st_size > 45e6
    data = Data(str(tmp_path / "s"), tokenizer, Mixture((Source("a", str(tmp_path / "a.jsonl")),)),
                validation_fraction=0.0)  # fmt: skip
    opened = prepare(data, say=str)
    split = opened.stores["a"].train
    lengths = np.diff(split.offsets)
    longest = int(np.argmax(lengths))
    assert split.document_bytes(longest) > 45e6
    stream = open_stream(data, opened, 512)
    assert stream.batch(0, 8).shape == (8, 512)


def spoiled(store):
    """Flips a byte in the middle of the largest file of a store."""
    path = max((p for p in store.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def a_flipped_byte(root, stores):
    spoiled(stores["a"])


def a_lost_array(root, stores):
    shutil.rmtree(stores["b"] / "train" / "bytes")


def a_manifest_cut_short(root, stores):
    path = stores["a"] / "manifest.json"
    path.write_text(path.read_text()[:100])


def a_catalogue_cut_short(root, stores):
    (root / "mixture.json").write_text('{"format"')


def a_spoiled_tokenizer(root, stores):
    path = next(root.glob("tokenizer-*"))
    for file in (path / "tokenizer.model", path / "tokenizer.json"):
        file.write_bytes(file.read_bytes()[:-200])


@pytest.mark.parametrize(
    "damage",
    [
        *(a_flipped_byte, a_lost_array, a_manifest_cut_short, a_catalogue_cut_short),
        a_spoiled_tokenizer,
    ],
)
def test_a_damaged_store_is_built_again(base, tmp_path, damage):
    root = tmp_path / "stores"
    shutil.copytree(base[0].store_dir, root)
    data = dataclasses.replace(base[0], store_dir=str(root))
    before = open_stores(data)
    whole = {name: store.content for name, store in before.stores.items()}
    tokenizer = before.tokenizer.fingerprint
    damage(root, {name: pathlib.Path(store.path) for name, store in before.stores.items()})
    said = []
    opened = prepare(data, verify=True, say=said.append)
    assert not any("nothing to do" in line for line in said)
    assert {name: store.content for name, store in opened.stores.items()} == whole
    assert opened.tokenizer.fingerprint == tokenizer
    for store in opened.stores.values():
        store.verify()
    said.clear()
    prepare(data, verify=True, say=said.append)
    assert len(said) == 1 and "nothing to do" in said[0]


def test_a_store_that_cannot_be_written_is_used_as_it_is(base, tmp_path, monkeypatch):
    root = tmp_path / "stores"
    shutil.copytree(base[0].store_dir, root)
    data = dataclasses.replace(base[0], store_dir=str(root))
    (root / ".inputs.json").unlink()  # as if the files' times had changed

    def refuse(*_, **__):
        raise ConfigError("Data.store_dir", str(root), "a directory that can be written")

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(prepare_module, "check_writable", refuse)
    monkeypatch.setattr(prepare_module, "write_json", read_only)
    monkeypatch.setattr(inputs, "write_json", read_only)
    before = sorted(p.name for p in root.rglob("*"))
    said = []
    opened = prepare(data, say=said.append)
    assert len(opened.stores) == 2 and "nothing to do" in said[0]
    assert sorted(p.name for p in root.rglob("*")) == before
    with pytest.raises(ConfigError, match="can be written"):
        prepare(dataclasses.replace(data, validation_fraction=0.5))


def test_the_content_of_a_store_is_that_of_its_text(base, tmp_path):
    first = {name: store.content for name, store in open_stores(base[0]).stores.items()}
    assert first["a"] != first["b"]
    moved = []
    for source in base[0].mixture.sources:
        path = shutil.copy(source.files[0], tmp_path / f"moved-{source.name}.jsonl")
        moved.append(dataclasses.replace(source, files=str(path)))
    tokenizer = str(next(Path(base[0].store_dir).glob("tokenizer-*")))
    data = dataclasses.replace(
        base[0], store_dir=str(tmp_path / "s"), tokenizer=tokenizer,
        mixture=dataclasses.replace(base[0].mixture, sources=tuple(moved)),
    )  # fmt: skip
    elsewhere = prepare(data)
    assert {name: store.content for name, store in elsewhere.stores.items()} == first
    assert elsewhere.texts == open_stores(base[0]).texts and all(elsewhere.texts.values())
    with (tmp_path / "moved-a.jsonl").open("a") as file:
        file.write('{"text": "one line more"}\n')
    again = prepare(data)
    assert again.stores["a"].content != first["a"] and again.stores["b"].content == first["b"]
