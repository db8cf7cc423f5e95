"""Reading text and jsonl: what is kept, and what is refused with file and line."""

import gzip

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import write_jsonl

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data import reading
from t5x_llm.data.reading import find_files, is_cut, plan_jobs, read, scan
from t5x_llm.data.sources import Data, Mixture, Source
from t5x_llm.text import TokenizerTraining


def documents(source):
    jobs = plan_jobs([scan(path, is_cut(source, path)) for path in find_files(source)])
    return [d for job in jobs for d in read(source, job)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), max_size=40),
    st.integers(1, 300),
)
def test_stretches_read_what_the_whole_file_holds(tmp_path_factory, texts, size):
    path = write_jsonl(tmp_path_factory.mktemp("x") / "a.jsonl", texts)
    source = Source("a", str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "JOB_BYTES", size)
        patch.setattr(reading, "_BLOCK", 37)
        found = documents(source)
        cut = scan(str(path), True)
    expected = [(t, i + 1) for i, t in enumerate(texts) if t]
    assert [(d.text, d.line) for d in found] == expected
    raw = path.read_bytes()
    for byte, line in cut.cuts:
        assert byte == 0 or raw[byte - 1 : byte] == b"\n"
        assert raw.count(b"\n", 0, byte) == line - 1


def test_large_files_are_cut_and_small_ones_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "JOB_BYTES", 1000)
    for i in range(6):
        write_jsonl(tmp_path / f"{i}.jsonl", ["x" * 80] * (2 if i else 60))
    source = Source("a", str(tmp_path / "*.jsonl"))
    jobs = plan_jobs([scan(path, True) for path in find_files(source)])
    assert 4 < len(jobs) < 10 and len(jobs[-1]) > 1
    assert len(documents(source)) == 70


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_files_hold_the_same_documents(tmp_path, suffix):
    texts = [f"text {i}" for i in range(40)]
    raw = write_jsonl(tmp_path / "a.jsonl", texts).read_bytes()
    pack = gzip.compress if suffix == "gz" else zstandard.ZstdCompressor().compress
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(pack(raw))
    found = documents(Source("a", str(path)))
    assert [(d.text, d.line) for d in found] == [(t, i + 1) for i, t in enumerate(texts)]
    path.write_bytes(pack(raw)[:-20])
    with pytest.raises(DataError, match="damaged"):
        documents(Source("a", str(path)))


def test_text_files_by_file_and_by_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\n")
    by_line = documents(Source("a", str(tmp_path / "a.txt"), kind="text", unit="line"))
    assert [(d.text, d.line) for d in by_line] == [("one", 1), ("two", 3)]
    (whole,) = documents(Source("a", str(tmp_path / "a.txt"), kind="text"))
    assert whole.text == "one\r\n\r\ntwo\n"


@pytest.mark.parametrize(("line", "said"), [
    (b'{"text": "ok"', r"not a JSON object, column 14 \(Expecting"),
    (b'["text"]', r"expected a JSON object .* found a list"),
    (b'{"txt": "a"}', r"no field 'text'; there are txt\. Did you mean 'txt'"),
    (b'{"text": 7}', r"field 'text' holds the number 7, expected a string"),
    (b'{"text": null}', r"field 'text' holds null"),
    (b'{"text": "\\ud800"}', r"half of a surrogate pair at character 0"),
    (b'{"text": "caf\xe9"}', r"not UTF-8 at byte 30 of the file \(0xe9"),
    (b"[" * 100_000, r"not a JSON object"),
], ids=["cut", "list", "field", "number", "null", "surrogate", "latin1", "deep"])  # fmt: skip
def test_broken_lines_are_named(tmp_path, line, said):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=r"a\.jsonl:3: .*" + said):
        documents(Source("a", str(path)))


def test_whole_files_that_are_not_utf8_are_named_by_line_and_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes("一\n二\n".encode() + b"\xff")
    with pytest.raises(DataError, match=r"a\.txt:3: not UTF-8 at byte 8 of the file"):
        documents(Source("a", str(tmp_path / "a.txt"), kind="text"))


def test_files_that_are_not_there(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ["a"])
    with pytest.raises(DataError, match=r"'s'.*there is no file.*Did you mean '.*train\.jsonl'"):
        find_files(Source("s", str(tmp_path / "trian.jsonl")))
    with pytest.raises(DataError, match="no file matches"):
        find_files(Source("s", str(tmp_path / "*.txt")))
    with pytest.raises(DataError, match="is a directory"):
        find_files(Source("s", str(tmp_path)))
    both = find_files(Source("s", (str(tmp_path / "*.jsonl"), str(tmp_path / "train.jsonl"))))
    assert both == [str(tmp_path / "train.jsonl")]


def _two(**changes):
    sources = (Source("a", "a.jsonl"), Source("b", "b.jsonl"))
    return lambda: Mixture(sources, **changes)


@pytest.mark.parametrize(("make", "said"), [
    (lambda: Source("a b", "x"), r"Source\.name"),
    (lambda: Source("a", "x", kind="jsnl"), r"Source\.kind.*Did you mean 'jsonl'"),
    (lambda: Source("a", ()), r"Source\.files"),
    (lambda: Source("a", kind="tfds"), r"Source\.tfds"),
    (lambda: Source("a", "x", validation_fraction=1.0), r"Source\.validation_fraction.*below 1"),
    (lambda: Mixture((Source("a", "x"), Source("a", "y"))), r"Mixture\.sources = 'a'.*differ"),
    (lambda: Mixture(()), r"Mixture\.sources"),
    (_two(rates="proportinal"), r"Mixture\.rates.*Did you mean 'proportional'"),
    (_two(rates=(1.0,)), r"Mixture\.rates.*2 numbers, one for each of a, b"),
    (_two(rates=(1.0, -1.0)), r"Mixture\.rates = -1\.0.*at least 0"),
    (_two(rates=(0.0, 0.0)), r"Mixture\.rates.*above 0"),
    (_two(rates=(1.0, float("nan"))), r"Mixture\.rates"),
    (_two(rates="temperature", temperature=0.0), r"Mixture\.temperature.*at least 0\.05"),
    (lambda: Data("s", "tok"), r"Data\.mixture"),
    (lambda: Data("s", TokenizerTraining(), _two()(), packing="hole"), r"Did you mean 'whole'"),
    (lambda: Data("", "tok", _two()()), r"Data\.store_dir"),
    (lambda: Data("s", "", _two()()), r"Data\.tokenizer"),
])  # fmt: skip
def test_settings_that_cannot_be(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
