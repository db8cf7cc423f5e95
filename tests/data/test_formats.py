"""Every reader reads every format, and every opener every compression; the rest is named."""

import bz2
import gzip
import io
import json
import lzma

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from t5x_llm.core import filesystems
from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.core.paths import check_writable
from t5x_llm.data import formats
from t5x_llm.data.clean.clean_config import Clean, Input
from t5x_llm.data.clean.decontaminate import Decontaminate, EvalSet
from t5x_llm.data.clean.document import Document, Drop
from t5x_llm.data.clean.engine import run
from t5x_llm.data.clean.parts import read_part
from t5x_llm.data.reading import find_files, is_cut, plan_jobs, read, scan
from t5x_llm.data.sources import Data, Mixture, Source

TEXT = (
    "The harbour master counted the boats twice before the fog came down over the quay, and wrote "
    "the figure in a book that nobody has read since; 老木匠每天早晨七点推开窗户。"
)
PAGE = f"<html><body><article><p>{TEXT}</p></article></body></html>".encode()


def _parquet(values, kind=None):
    out = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array(values, kind)}), out)
    return out.getvalue()


def _warc(body=PAGE, kind="text/html"):
    out = io.BytesIO()
    writer = WARCWriter(out, gzip=False)
    head = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
    writer.write_record(
        writer.create_warc_record("http://x.org/", "response", io.BytesIO(body), http_headers=head)
    )
    return out.getvalue()


RECORD = json.dumps({"text": TEXT}, ensure_ascii=False)
CONTENT = {
    "txt": TEXT.encode(),
    "md": b"\xef\xbb\xbf" + TEXT.encode(),
    "jsonl": f"{RECORD}\n".encode(),
    "ndjson": b"\xef\xbb\xbf" + f"{RECORD}\r\n".encode(),
    "JSONL": f"{RECORD}".encode(),
    "json": f"{RECORD}\n".encode(),
    "array.json": json.dumps([{"text": TEXT}], indent=1).encode(),
    "object.json": json.dumps({"text": TEXT}, indent=1).encode(),
    "parquet": _parquet([TEXT]),
    "html": PAGE,
    "HTM": PAGE,
    "warc": _warc(),
}
PACKS = {
    "": bytes,
    ".gz": gzip.compress,
    ".GZ": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
FILES = [
    f"{suffix}{pack}"
    for suffix in CONTENT
    for pack in (PACKS if suffix in ("txt", "jsonl", "array.json") else ("", ".gz", ".zst"))
    if not (suffix == "parquet" and pack)
]


def _as_source(path):
    name = formats.format_of(path).name
    source = Source("s", path, kind="text" if name == "text" else "jsonl")
    jobs = plan_jobs([scan(p, is_cut(source, p)) for p in find_files(source)])
    return [d.text for job in jobs for d in read(source, job)]


def _as_input(path, tmp_path):
    out = tmp_path / "out"
    run(Clean((Input("s", path),), str(out), workers=1), say=str)
    return [d.text for part in sorted(out.glob("data/*")) for d in read_part(str(part))]


def _as_eval_set(path):
    search = Decontaminate(EvalSet("e", path)).open()
    return isinstance(search(Document("a", f"Before it. {TEXT} After it.")), Drop)


@pytest.mark.parametrize("name", FILES)
def test_every_reader_reads_every_format(tmp_path, name):
    suffix = next(s for s in sorted(CONTENT, key=len, reverse=True) if name.startswith(s))
    path = tmp_path / f"a.{name}"
    path.write_bytes(PACKS[name[len(suffix) :]](CONTENT[suffix]))
    assert _as_source(str(path)) == [TEXT]
    assert _as_input(str(path), tmp_path) == [TEXT]
    assert _as_eval_set(str(path))


KINDS = [
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(),
    pa.binary_view(), pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_text_of_parquet_in_every_layout(tmp_path, kind):
    path = tmp_path / "a.parquet"
    values = [TEXT, "二", TEXT]
    if pa.types.is_dictionary(kind):
        made = pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    else:
        made = pa.array([v.encode() for v in values], pa.binary()).cast(kind)
    pq.write_table(pa.table({"text": made}), path)
    assert _as_source(str(path)) == values
    assert _as_input(str(path), tmp_path)[:2] == values[:2]
    assert _as_eval_set(str(path))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
            ),
            max_leaves=5,
        ),
        max_size=6,
    ),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_values_of_json_are_those_of_the_standard_library(values, indent, ascii_only):
    raw = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "replace")
    assert list(formats.json_values(io.BytesIO(raw), 1000)) == json.loads(raw)
    many = b"\n".join(json.dumps({"a": v}).encode() for v in values)
    assert list(formats.json_values(io.BytesIO(many), 1000)) == [{"a": v} for v in values]


def test_what_is_no_json_is_refused():
    for raw in (b'[{"a": 1}', b'{"a": 1', b"[1 2 x]", b"\xff[1]", b'["' + b"x" * 300_000 + b'"]'):
        with pytest.raises(ValueError):
            list(formats.json_values(io.BytesIO(raw), 100_000))


README = "This is the manual of a small program.\n\nIt has two paragraphs of some words each.\n"


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("README", README.encode(), "text"),
    ("copyright", README.encode(), "text"),
    ("README.Debian", README.encode(), "text"),
    ("NOTICE.2", ("江边的老木匠每天清晨推开窗户。" * 400).encode(), "text"),
    ("page", b"<!DOCTYPE html><html><body>x</body></html>", "html"),
    ("records", f"{RECORD}\n".encode(), "jsonl"),
    ("array", f"[{RECORD}]".encode(), "json"),
    ("table", _parquet([TEXT]), "parquet"),
    ("crawl", _warc(), "warc"),
    ("style.css", README.encode(), ""),
    ("program", b"#!/bin/sh\necho hello world, here I am\n", ""),
    ("manual.1", b'.\\" a comment\n.TH LS 1\n', ""),
    ("picture", b"\x89PNG\r\n\x1a\n\x00\x00", ""),
    ("latin", "café, très bien, déjà vu".encode("latin-1"), ""),
    ("numbers", b"1 2 3 4 5 6 7 8 9\n" * 20, ""),
    ("archive", b"PK\x03\x04 a zip", ""),
])  # fmt: skip
def test_files_without_a_known_suffix_go_by_their_content(tmp_path, name, content, expected):
    assert formats.sniff(name, content[: formats.HEAD])[0] == expected
    for pack in ("", ".gz"):
        path = tmp_path / f"{name}{pack}"
        path.write_bytes(PACKS[pack](content))
        with open(path, "rb") as file:
            head = formats.read_head(file, str(path))[1]
        assert formats.sniff(str(path), head)[0] == expected


def test_what_is_left_out_is_counted_with_the_remedy(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "README").write_text(README)
    (tmp_path / "in" / "deep" / "changelog.gz").write_bytes(gzip.compress(README[::-1].encode()))
    (tmp_path / "in" / "a.css").write_text("p { color: red }" * 200)
    said = []
    manifest = run(
        Clean((Input("s", str(tmp_path / "in")),), str(tmp_path / "out")), say=said.append
    )
    assert manifest.manifest["sources"]["s"]["kept"]["documents"] == 2
    assert manifest.manifest["left_out"] == [{"kind": ".css", "files": 1, "bytes": 3200}]
    assert "1 files of 3.12 KiB were left out (1 .css)" in said[-1]
    assert "Input.format = 'text'" in said[-1]


# Places that a path of data is given to.
PLACES = {
    "Source.files": lambda path: Source("s", path),
    "Input.files": lambda path: Input("s", path),
    "EvalSet.files": lambda path: EvalSet("e", path),
}


@pytest.mark.parametrize("field", PLACES)
@pytest.mark.parametrize("path", ["nosuch://b/a.jsonl", "s3x://b/*.jsonl"])
def test_a_scheme_that_cannot_be_read_is_refused_by_name(field, path):
    with pytest.raises(ConfigError, match=rf"{field}.*{path.split(':')[0]}:// cannot be read"):
        PLACES[field](path)


def test_a_scheme_whose_package_is_missing_is_refused_with_its_name(monkeypatch):
    def missing(scheme):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(filesystems, "_filesystem_class", missing)
    for field, make in PLACES.items():
        with pytest.raises(ConfigError, match=rf"{field} = 's3://b/a'.*Install s3fs"):
            make("s3://b/a")


@pytest.mark.parametrize("path", ["s3://b/out", "https://x.org/out", "hf://datasets/a/b"])
def test_nothing_is_written_to_schemes_that_are_only_read(path):
    with pytest.raises(ConfigError, match=r"Clean\.output.*Nothing can be written"):
        Clean((Input("s", "a.jsonl"),), path)
    with pytest.raises(ConfigError, match=r"Data\.store_dir.*Nothing can be written"):
        Data(path, "bytes", Mixture((Source("a", "a.jsonl"),)))
    with pytest.raises(ConfigError, match=r"Run\.directory.*Nothing can be written"):
        check_writable("Run.directory", path)


def test_files_of_any_scheme_are_read(tmp_path):
    memory = fsspec.filesystem("memory")
    for name in ("d/a.jsonl", "d/e/b.jsonl.gz", "d/e/f/c.jsonl"):
        content = CONTENT["jsonl"]
        memory.pipe(f"/{name}", gzip.compress(content) if name.endswith("gz") else content)
    assert _as_source("memory://d/e/*.jsonl.gz") == [TEXT]
    assert _as_source("memory://d/**/*.jsonl") == [TEXT] * 2
    assert _as_input("memory://d", tmp_path) == [TEXT] * 3
    assert _as_eval_set("memory://d/e/f/c.jsonl")
    with pytest.raises(DataError, match="no file"):
        find_files(Source("s", "memory://d/gone.jsonl"))
    (tmp_path / "a.jsonl").write_bytes(CONTENT["jsonl"])
    assert _as_source(f"file://{tmp_path}/a.jsonl") == [TEXT]


def test_two_stars_stand_for_any_number_of_folders(tmp_path):
    for name in ("a.jsonl", "x/a.jsonl", "x/y/a.jsonl", "x/y/b.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT["jsonl"])
    pattern = f"{tmp_path}/**/a.jsonl"
    assert _as_source(pattern) == [TEXT] * 3
    assert len(_as_input(pattern, tmp_path / "1")) == 3
    assert _as_eval_set(pattern)
    with pytest.raises(DataError, match="no file matches"):
        find_files(Source("s", f"{tmp_path}/**/gone.jsonl"))
    # On gs:// the same pattern is matched by walking.
    fits = filesystems._translated("gs://b/**/a*.jsonl")
    names = ("gs://b/a.jsonl", "gs://b/x/y/ab.jsonl", "gs://b/x/b.jsonl", "gs://c/a.jsonl")
    assert [fits.fullmatch(each) is not None for each in names] == [True, True, False, False]


def test_a_name_with_brackets_is_a_file(tmp_path):
    path = tmp_path / "[zh] book?.jsonl"
    path.write_bytes(CONTENT["jsonl"])
    assert _as_source(str(path)) == [TEXT]


def test_files_that_are_not_what_their_names_say_are_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(CONTENT["jsonl"])
    (tmp_path / "a.parquet").write_bytes(CONTENT["jsonl"])
    (tmp_path / "b.jsonl.bz2").write_bytes(bz2.compress(CONTENT["jsonl"] * 99)[:-9])
    (tmp_path / "b.jsonl.xz").write_bytes(lzma.compress(CONTENT["jsonl"] * 99)[:-9])
    for name, said in (("a.jsonl.gz", "not gz"), ("a.parquet", "not parquet"),
                       ("b.jsonl.bz2", "damaged"), ("b.jsonl.xz", "damaged")):  # fmt: skip
        with pytest.raises(DataError, match=rf"{name}.*{said}"):
            _as_source(str(tmp_path / name))
    with pytest.raises(DataError, match=r"holds records. Set Source.kind = 'jsonl'"):
        find = Source("s", str(tmp_path / "a.parquet"), kind="text")
        is_cut(find, str(tmp_path / "a.parquet"))
        list(read(find, plan_jobs([scan(str(tmp_path / "a.parquet"), False)])[0]))


@pytest.mark.parametrize("path", ["gs://bucket/a.jsonl", "gs://bucket/**/a.jsonl", "gs://bucket/d"])
def test_whatever_a_remote_filesystem_raises_names_the_path(monkeypatch, tmp_path, path):
    class Strange(Exception):
        pass

    def broken(*_, **__):
        raise Strange("no route to the\nmetadata server")

    remote = type(
        "Remote", (), dict.fromkeys(("exists", "is_dir", "glob", "walk", "stat", "open"), broken)
    )
    monkeypatch.setattr(filesystems, "as_path", lambda path: remote())
    said = r"gs://bucket.*(Strange: no route to the metadata server|no file)"
    with pytest.raises(DataError, match=said):
        find_files(Source("s", path))
    with pytest.raises(DataError, match=said):
        run(Clean((Input("s", path),), str(tmp_path / "out")), say=str)
    with pytest.raises(DataError, match=said):
        Decontaminate(EvalSet("e", path)).open()
