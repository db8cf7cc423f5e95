"""Every format gives the texts that were put in; what is bad is set aside, and says why."""

import bz2
import gzip
import io
import json
import os
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data.clean.clean_config import Clean, Input, Limits
from t5x_llm.data.clean.engine import run
from t5x_llm.data.clean.parts import read_part

PAGE = """<html><head><title>A title</title><script>var x = 1;</script></head><body>
<nav><a href="/">Home</a><a href="/b">Menu entry</a></nav><article><p>The first paragraph of the
page is long enough to be taken for what a reader came for, and it says a thing or two.</p>
<p>The second one adds that the river was high that spring, and that nobody had crossed it.</p>
</article><footer>Copyright nobody</footer></body></html>"""
TEXTS = ["First text.", "第二个文本。", "Third:\nwith two lines."]


def cleaned(tmp_path, *inputs, **settings):
    """Documents kept, and what was quarantined, by id."""
    out = tmp_path / "out"
    run(Clean(inputs=inputs, output=str(out), workers=1, **settings), say=str)
    found = {d.id: d for path in sorted(out.glob("data/*")) for d in read_part(str(path))}
    quarantine = (out / "quarantine.jsonl").read_text(encoding="utf-8")
    bad = {e["id"]: e["reason"] for e in map(json.loads, quarantine.splitlines())}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["quarantined"] == len(quarantine.splitlines())
    return found, bad


def lines(texts, **more):
    return "".join(json.dumps({"text": t, **more}) + "\n" for t in texts).encode()


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "jsonl.bz2", "parquet"])
def test_a_format_gives_what_was_put_in(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        table = {"text": TEXTS, "url": ["u0", "u1", "u2"], "n": [1, 2, 3]}
        pq.write_table(pa.table(table), path, row_group_size=2)
    else:
        pack = {"gz": gzip.compress, "bz2": bz2.compress, "jsonl": bytes,
                "zst": zstandard.ZstdCompressor().compress}[suffix.split(".")[-1]]  # fmt: skip
        raw = b"".join(lines([t], url=f"u{i}") for i, t in enumerate(TEXTS))
        half = len(raw.split(b"\n")[0]) + 1
        path.write_bytes(pack(raw[:half]) + pack(raw[half:]))  # two members, two frames
    found, bad = cleaned(tmp_path, Input("s", str(path), keep=("url",), language="zh"))
    assert not bad
    assert [d.text for d in found.values()] == TEXTS
    assert list(found) == [f"s/a.{suffix}#{i}" for i in (1, 2, 3)]
    assert found[f"s/a.{suffix}#2"].meta == {"url": "u1", "language": "zh"}


def test_units_of_text_files(tmp_path):
    text = "one\ntwo\n\n  \nthree\r\nfour\n"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    for unit, expected in {
        "file": [text],
        "line": ["one", "two", "three", "four"],
        "paragraph": ["one\ntwo", "three\r\nfour"],
    }.items():
        where = tmp_path / unit
        found, bad = cleaned(where, Input("s", str(tmp_path / "a.txt"), unit=unit))
        assert [d.text for d in found.values()] == expected and not bad


def test_another_encoding(tmp_path):
    (tmp_path / "a.txt").write_bytes("简体中文\n第二行".encode("gb18030"))
    found, _ = cleaned(
        tmp_path, Input("s", str(tmp_path / "a.txt"), unit="line", encoding="gb18030")
    )
    assert [d.text for d in found.values()] == ["简体中文", "第二行"]
    with pytest.raises(ConfigError, match="ASCII"):
        Input("s", "a.txt", encoding="utf-16")


def test_html_and_warc_give_the_text_of_a_page(tmp_path):
    (tmp_path / "a.html").write_text(PAGE)
    with open(tmp_path / "b.warc.gz", "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for uri, kind, body in (
            ("http://x.org/1", "text/html; charset=utf-8", PAGE.encode()),
            ("http://x.org/2", "image/png", b"\x89PNG\x00"),
            ("http://x.org/3", "text/plain", "纯文本".encode()),
        ):
            head = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
            record = writer.create_warc_record(
                uri, "response", payload=io.BytesIO(body), http_headers=head
            )
            writer.write_record(record)
    (tmp_path / "c.jsonl").write_bytes(lines([PAGE]))
    found, bad = cleaned(
        tmp_path,
        Input("page", str(tmp_path / "a.html")),
        Input("crawl", str(tmp_path / "b.warc.gz")),
        Input("rows", str(tmp_path / "c.jsonl"), html=True),
    )
    assert bad == {"crawl/b.warc.gz#2": "not a page"}
    for name in ("page/a.html#1", "crawl/b.warc.gz#1", "rows/c.jsonl#1"):
        text = found[name].text
        assert "river was high" in text and "first paragraph" in text
        assert "Menu" not in text and "var x" not in text
    assert found["crawl/b.warc.gz#1"].meta["url"] == "http://x.org/1"
    assert found["crawl/b.warc.gz#3"].text == "纯文本"


def test_every_bad_input_is_set_aside_with_its_reason(tmp_path):
    d = tmp_path / "in"
    (d / "deep").mkdir(parents=True)
    (d / "good.jsonl").write_bytes(lines(TEXTS))
    (d / "binary.txt").write_bytes(b"MZ\x00\x01" * 100)
    (d / "image.jsonl").write_bytes(b"\x1f\x8b not what it says")
    (d / "bomb.jsonl.gz").write_bytes(gzip.compress(b"\x00" * (70 << 20)))
    bomb = zstandard.ZstdCompressor().compress(b'{"text": "' + b"a" * (70 << 20))
    (d / "bomb.jsonl.zst").write_bytes(bomb)
    (d / "cut.jsonl.gz").write_bytes(gzip.compress(lines(["kept"] * 9) + os.urandom(9999))[:-99])
    (d / "cut.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines(TEXTS * 99))[:-9])
    (d / "empty.jsonl").write_bytes(b"")
    (d / "fake.parquet").write_bytes(b"PAR1 nothing PAR1")
    (d / "fake.jsonl.zst").write_bytes(b"plain")
    (d / "latin.txt").write_bytes("café".encode("latin-1"))
    (d / "what.xyz").write_bytes(b"?")
    (d / "zip.txt").write_bytes(b"PK\x03\x04 a zip")
    (d / "deep" / "loop").symlink_to(d)
    (d / "self").symlink_to(d / "self")
    (d / "gone.txt").symlink_to(d / "nowhere")
    types = [b"[1]", b"3", b"{", b'{"txt": "x"}', b'{"text": 5}', b'{"text": null}',
             b'{"text": ""}', b'{"text": "\\ud800"}', b"[" * 99999, b"\xff\xfe{}", b"",
             b'{"text": "' + b"x" * 5000 + b'"}', b'{"text": "good"}']  # fmt: skip
    (d / "types.jsonl").write_bytes(b"\n".join(types))
    found, bad = cleaned(tmp_path, Input("s", str(d)), limits=Limits(document_bytes=4096))
    assert {name.split("#")[0] for name in found} == {
        "s/good.jsonl", "s/types.jsonl", "s/cut.jsonl.gz"
    }  # fmt: skip
    assert found["s/types.jsonl#13"].text == "good"
    expected = {
        "s/binary.txt": "binary file",
        "s/image.jsonl": "binary file",
        "s/bomb.jsonl.gz#1": "archive expands too far",
        "s/bomb.jsonl.zst#1": "archive expands too far",
        "s/cut.jsonl.zst#1": "damaged archive",
        "s/empty.jsonl": "empty file",
        "s/fake.parquet": "damaged parquet",
        "s/fake.jsonl.zst": "not what its name says",
        "s/latin.txt#1": "not UTF-8",
        "s/what.xyz": "unknown format",
        "s/zip.txt": "binary file",
        "s/deep/loop": "link in a circle",
        "s/self": "cannot be read",
        "s/gone.txt": "cannot be read",
        "s/types.jsonl#1": "not a JSON object",
        "s/types.jsonl#2": "not a JSON object",
        "s/types.jsonl#3": "not JSON",
        "s/types.jsonl#4": "no field text",
        "s/types.jsonl#5": "wrong type",
        "s/types.jsonl#6": "wrong type",
        "s/types.jsonl#7": "empty text",
        "s/types.jsonl#8": "half a surrogate pair",
        "s/types.jsonl#10": "not UTF-8",
        "s/types.jsonl#12": "too long",
    }
    assert expected.items() <= bad.items()
    assert bad["s/types.jsonl#9"] in ("not JSON", "too long")
    cut = {reason for name, reason in bad.items() if name.startswith("s/cut.jsonl.gz")}
    assert cut <= {"damaged archive", "not JSON", "not UTF-8", "too long"} and cut
    assert set(bad) - set(expected) == {
        name for name in bad if name.startswith("s/cut.jsonl.gz") or name == "s/types.jsonl#9"
    }


@pytest.mark.parametrize("size", [200 << 20, pytest.param(2 << 30, marks=pytest.mark.slow)])
def test_a_line_of_any_length_is_never_held(tmp_path, size):
    path = tmp_path / "a.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"text": "' + b"x" * 5000)
        file.seek(size)  # a hole in the file: NULs that take no disk
        file.write(b'"}\n' + lines(["after"]))
    tracemalloc.start()
    found, bad = cleaned(tmp_path, Input("s", str(path)), limits=Limits(document_bytes=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [d.text for d in found.values()] == ["after"]
    assert bad == {"s/a.jsonl#1": "too long"}
    assert peak < 32 << 20


def test_mistakes_are_found_before_anything_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(TEXTS))
    (tmp_path / "b.bin").write_bytes(b"\x00")
    one = Input("s", str(tmp_path / "a.jsonl"))
    with pytest.raises(ConfigError, match="names that differ"):
        Clean(inputs=(one, one), output=str(tmp_path / "out"))
    for files, words in (("a.json", "Did you mean"), ("*.txt", "no file")):
        with pytest.raises(DataError, match=words):
            run(Clean((Input("s", str(tmp_path / files)),), str(tmp_path / "out")), say=str)
    with pytest.raises(DataError, match="unknown format"):
        run(Clean((Input("s", str(tmp_path / "b.bin")),), str(tmp_path / "out")), say=str)
    (tmp_path / "in" / "out").mkdir(parents=True)
    (tmp_path / "in" / "out" / "b.jsonl").write_bytes(lines(TEXTS))
    with pytest.raises(ConfigError, match="does not read"):
        run(Clean((Input("s", str(tmp_path / "in")),), str(tmp_path / "in" / "out")), say=str)
