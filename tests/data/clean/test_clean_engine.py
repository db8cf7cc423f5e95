"""The output depends on input and configuration alone: not on workers, runner, or kills."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys

import pytest
import zstandard
from clocks import until

from t5x_llm.core.errors import ConfigError
from t5x_llm.data.clean.clean_config import Clean, Input
from t5x_llm.data.clean.decontaminate import Decontaminate, EvalSet
from t5x_llm.data.clean.dedup.dedup_config import Dedup, MinHash, Repeats, Suffix
from t5x_llm.data.clean.document import Document, Drop
from t5x_llm.data.clean.engine import _content_of, run
from t5x_llm.data.clean.parts import read_part


@dataclasses.dataclass(frozen=True)
class Short:
    """A step for these tests: drops the short, fails on what it does not like."""

    least: int = 30
    name: str = "short"

    def open(self):
        def step(document):
            if "boom" in document.text:
                raise ValueError("a document that no step expects")
            return Drop("too short") if len(document.text) < self.least else document

        return step


def write_inputs(folder, documents=400):
    """Sentences of made-up words, with copies, near copies, repeated lines and bad lines."""
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 8))) for _ in range(2000)]
    line = "this very line stands in many of the documents, word for word"
    texts = []
    for i in range(documents):
        if i % 9 == 4:
            texts.append(texts[rng.randrange(len(texts))].upper())
        elif i % 9 == 7:
            texts.append(texts[rng.randrange(len(texts))] + " more")
        else:
            texts.append("\n".join([" ".join(rng.choices(words, k=80)), *[line] * (i % 5 == 0)]))
        if i % 50 == 3:
            texts[-1] = rng.choice(["short", "boom " * 20])
    texts[260] = f"{line}\n{line}"
    half = documents // 2
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts[:half]))
    raw = "".join(json.dumps({"text": t}) + "\n" for t in texts[half:]) + "{broken\n"
    (folder / "b.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(raw.encode()))
    (folder / "eval.jsonl").write_text(json.dumps({"text": texts[11][:200]}) + "\n")
    return texts


def configured(folder, out, **settings):
    dedup = Dedup(
        minhash=MinHash(threshold=0.7),
        repeats=Repeats("line"),
        suffix=Suffix(120, window_bytes=40_000),
        partition_bytes=4096,
    )
    return Clean(
        inputs=(Input("one", f"{folder}/a.jsonl"), Input("two", f"{folder}/b.jsonl.zst")),
        output=str(out),
        steps=(Short(),),
        dedup=dedup,
        decontaminate=Decontaminate(EvalSet("held", f"{folder}/eval.jsonl")),
        shard_bytes=20_000,
        **settings,
    )


def content(out):
    """Every visible file of an output, by name."""
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and not str(p.relative_to(out)).startswith(".")
    }


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    texts = write_inputs(folder / "in")
    run(configured(folder / "in", folder / "ref" / "out", workers=1), say=str)
    return folder, texts, content(folder / "ref" / "out")


def test_what_is_kept_and_what_is_told(reference):
    folder, texts, files = reference
    out = folder / "ref" / "out"
    kept = [d for p in sorted((out / "data").iterdir()) for d in read_part(str(p))]
    removed = [json.loads(x) for x in files["removed.jsonl"].splitlines()]
    quarantined = [json.loads(x) for x in files["quarantine.jsonl"].splitlines()]
    manifest = json.loads(files["manifest.json"])
    reasons = [each["reason"] for each in removed]
    dropped = sum(t == "short" for t in texts)
    assert len(kept) + len(removed) + len(quarantined) - 1 + dropped == len(texts)
    assert {"a copy", "a near copy", "in held"} <= set(reasons)
    assert {e["reason"] for e in quarantined} == {"a step failed", "not JSON"}
    assert manifest["quarantined"] == len(quarantined)
    assert sum(part["documents"] for part in manifest["outputs"]) == len(kept)
    assert sum("this very line" in d.text for d in kept) == 1
    assert b"a near copy" in files["report.html"] and b"what stays for it" in files["report.html"]
    counts = json.loads(files["report.json"])
    assert counts["sources"]["one"]["read"]["documents"] == len(texts) // 2
    assert sum(s["kept"]["documents"] for s in counts["sources"].values()) == len(kept)


def test_what_is_removed_names_what_stays_for_it(reference):
    folder, texts, files = reference
    kept = {
        d.id: d.text
        for p in sorted((folder / "ref" / "out" / "data").iterdir())
        for d in read_part(str(p))
    }
    half = len(texts) // 2
    read = {f"one/a.jsonl#{i}": text for i, text in enumerate(texts[:half], 1)}
    read |= {f"two/b.jsonl.zst#{i}": text for i, text in enumerate(texts[half:], 1)}
    removed = [json.loads(x) for x in files["removed.jsonl"].splitlines()]
    named = [each for each in removed if each["step"] == "dedup"]
    assert {each["reason"] for each in named} == {"a copy", "a near copy", "nothing but repeats"}
    assert all(each["repeats"] for each in named)
    gone = {each["id"] for each in removed if each["step"] == "dedup"}
    for each in named:
        assert not gone & set(each["repeats"])
        (name,) = each["repeats"]
        if each["reason"] == "nothing but repeats":
            assert read[each["id"]] == texts[260] and "this very line" in kept[name]
        else:
            assert name != each["id"] and name in kept
            one, other = (set(read[i].lower().split()) for i in (name, each["id"]))
            assert len(one & other) > 0.5 * len(one | other)
    samples = json.loads(files["report.json"])["samples"]
    for reason in ("a copy", "a near copy"):
        for sample in samples[f"dedup\n{reason}"]:
            name = sample["detail"].removeprefix("repeats ")
            assert sample["before"] == read[name][:500] and "original" not in sample


def test_any_number_of_workers_writes_the_same_bytes(reference):
    folder, _, expected = reference
    for workers in (2, 3):
        out = folder / f"w{workers}" / "out"
        run(configured(folder / "in", out, workers=workers), say=str)
        assert content(out) == expected


@pytest.mark.slow
def test_beam_writes_the_same_bytes(reference):
    folder, _, expected = reference
    out = folder / "beam" / "out"
    options = ("--runner=DirectRunner",)
    run(configured(folder / "in", out, runner="beam", beam_options=options), say=str)
    assert content(out) == expected


def test_a_run_that_is_there_is_not_done_again(reference):
    folder, _, expected = reference
    out = folder / "ref" / "out"
    before = os.stat(out / "manifest.json").st_mtime_ns
    said = []
    assert run(configured(folder / "in", out), say=said.append).unchanged
    assert "up to date" in said[0]
    assert os.stat(out / "manifest.json").st_mtime_ns == before and content(out) == expected
    # Another configuration in the same place leaves nothing of this one behind.
    other = configured(folder / "in", out)
    plain = dataclasses.replace(other, dedup=None, compression="none")
    assert not run(plain, say=str).unchanged
    assert all(name.endswith(".jsonl") for name in os.listdir(out / "data"))
    assert not run(other, say=str).unchanged
    assert content(out) == expected


PROGRAM = """
import sys, pathlib
sys.path[:0] = {tests!r}
from test_clean_engine import configured
from t5x_llm.data.clean.engine import _content_of, run
if __name__ == "__main__":
    run(configured(pathlib.Path({inputs!r}), pathlib.Path({out!r}), workers={workers}), say=str)
"""


def killed(folder, expected, kills, workers, begin):
    """Runs a program that is killed again and again at other moments; then to its end."""
    out = folder / f"killed{kills}" / "out"
    program = folder / f"killed{kills}.py"
    here = os.path.dirname(__file__)
    paths = [here, os.path.dirname(os.path.dirname(here))]
    names = {"tests": paths, "inputs": str(folder / "in"), "out": str(out)}
    program.write_text(PROGRAM.format(workers=workers, **names))
    progress, rng = [], random.Random(kills)
    for _ in range(kills):
        child = subprocess.Popen([sys.executable, str(program)], start_new_session=True)
        seen = _markers(out)
        # Some tasks further than it was.
        further = seen + begin + rng.randrange(3)
        until(lambda: _markers(out) >= further or child.poll() is not None)  # noqa: B023
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        progress.append(_markers(out))
    assert not (out / "manifest.json").exists(), "it was over before it was killed"
    assert progress == sorted(progress) and progress[-1] > progress[0]
    subprocess.run([sys.executable, str(program)], check=True)
    assert content(out) == expected


def _markers(out):
    return len(list(out.glob(".work/*/*.json")))


@pytest.mark.extended
def test_killed_and_resumed_it_writes_the_same_bytes(reference):
    folder, _, expected = reference
    killed(folder, expected, kills=2, workers=1, begin=5)


@pytest.mark.slow
def test_killed_ten_times_and_resumed_it_writes_the_same_bytes(reference):
    folder, _, expected = reference
    killed(folder, expected, kills=10, workers=2, begin=4)


def test_a_step_sees_documents_with_their_ids(tmp_path):
    (tmp_path / "a.txt").write_text("x\n" * 3)
    seen = []

    class Look:
        name = "look"

        def open(self):
            return lambda d: seen.append(d) or d

    source = Input("s", str(tmp_path / "a.txt"), unit="line", language="en")
    run(Clean((source,), str(tmp_path / "out"), steps=(Look(),), workers=1), say=str)
    assert seen == [Document(f"s/a.txt#{i}", "x", {"language": "en"}) for i in (1, 2, 3)]


def test_other_contents_of_a_model_or_list_are_another_configuration(tmp_path):
    model, words = tmp_path / "model", tmp_path / "words.txt"
    model.mkdir()
    seen = set()
    for text in ("a", "b"):
        (model / "classifier.json").write_text(text)
        words.write_text("w")
        seen.add(tuple(_content_of([{"model": str(model)}, {"files": [str(words)]}])))
    words.write_text("v")
    seen.add(tuple(_content_of([{"model": str(model)}, {"files": [str(words)]}])))
    assert len(seen) == 3 and all(len(hashes) == 2 for hashes in seen)


def test_two_runs_do_not_write_one_output(tmp_path):
    import fcntl

    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="no other run"):
            run(Clean((Input("s", str(tmp_path / "a.txt")),), str(tmp_path / "out")), say=str)
