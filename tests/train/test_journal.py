"""The journal: durable, whole lines, whatever kills the writer or fills the disk."""

import dataclasses
import json
import os
import threading

import pytest
from clocks import no_hang
from journals import eventful, files_of_at_most, line, write

from t5x_llm.core.errors import DataError
from t5x_llm.train import journal as module
from t5x_llm.train import jsonl
from t5x_llm.train.journal import Decision, Journal, accounts, decisions, read_journal
from t5x_llm.train.jsonl import Appender, read_jsonl

DECISION = Decision(138, 141, 50, (400, 2800), "loss", "loss 7.1 — 坏")


def test_lines_of_two_lives(tmp_path):
    path = tmp_path / "run" / "journal.jsonl"
    first = Journal(path)
    first.account = lambda: {"total": 2.5, "compile": 1.0}
    first.write("start", 0, resumed=False)
    first.write("damaged", 40, reason="诗")
    first.decide(141, DECISION)
    first.close()
    second = Journal(path)
    second.write("start", 50, loss=float("nan"))
    lines = read_journal(path)
    assert [(x["event"], x["step"], x["life"]) for x in lines] == [
        ("start", 0, 1),
        ("damaged", 40, 1),
        ("rewind", 141, 1),
        ("start", 50, 2),
    ]
    assert accounts(lines[0]) == {"total": 2.5, "compile": 1.0}
    assert accounts(lines[1]) == {}, "its step is not the run's"
    assert lines[1]["reason"] == "诗" and lines[3]["loss"] is None
    assert decisions(lines) == [DECISION]
    assert all(x["time"].endswith("Z") for x in lines)


def test_every_line_is_on_disk_before_write_returns(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j.jsonl")
    synced, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), sync(fd)))
    assert journal.write("start", 0)
    assert synced == [(tmp_path / "j.jsonl").stat().st_size]


@pytest.mark.parametrize("torn", [b'{"time": "2026-11', b"\x00\x00\x00", b'{"a": 1} x', b"\xff"])
def test_a_torn_last_line_is_removed_and_nothing_else(tmp_path, torn):
    path = tmp_path / "j.jsonl"
    before = b'not json\n{"event": "x"}\n'
    path.write_bytes(before + torn)
    Journal(path).write("start", 3)
    after = path.read_bytes()
    assert after.startswith(before) and after.count(b"\n") == 3
    assert json.loads(after[len(before) :])["step"] == 3


def test_a_whole_last_line_without_its_end_stays(tmp_path):
    path = tmp_path / "j.jsonl"
    write(path, eventful()[:2])
    path.write_bytes(path.read_bytes()[:-1])
    Journal(path).write("start", 3)
    assert [x["step"] for x in read_journal(path)] == [0, 50, 3]


def test_a_full_disk_ends_nothing_and_loses_nothing(tmp_path, capsys):
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    assert journal.write("start", 0)
    size = path.stat().st_size
    with files_of_at_most(size + 20):
        assert not journal.write("save", 1) and not journal.write("save", 2)
        assert path.stat().st_size == size, "no half line"
        with pytest.raises(OSError):
            journal.decide(3, DECISION)
    assert capsys.readouterr().err.count("cannot be written") == 1
    assert journal.write("alive", 4)
    assert [x["step"] for x in read_journal(path)] == [0, 1, 2, 3, 4]
    journal.decide(5, DECISION)


def test_a_disk_that_fails_to_sync_is_no_success(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j.jsonl")

    def fails(descriptor):
        raise OSError("input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="input/output"):
            journal.decide(1, DECISION)
    journal.write("alive", 2)
    assert [x["event"] for x in read_journal(journal.path)] == ["rewind", "alive"], "none twice"


def test_a_thread_that_hangs_in_a_write_blocks_no_other_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.1)
    journal = Journal(tmp_path / "j.jsonl")
    held, release = threading.Event(), threading.Event()

    def hang():
        with journal._lock:
            held.set()
            release.wait()

    thread = threading.Thread(target=hang, daemon=True)
    thread.start()
    held.wait()
    try:
        with no_hang():
            assert journal.write("stuck", 7)
    finally:
        release.set()
        thread.join()


def test_threads_write_whole_lines(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")

    def work(k):
        for i in range(50):
            journal.write("peak", i, reason="x" * 500, k=k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = read_journal(tmp_path / "j.jsonl")
    assert len(lines) == 200 == (tmp_path / "j.jsonl").read_bytes().count(b"\n")
    for k in range(4):
        assert [x["step"] for x in lines if x["k"] == k] == list(range(50))


def test_other_processes_write_nothing(tmp_path):
    journal = Journal(tmp_path / "j.jsonl", primary=False)
    assert journal.write("start", 0)
    journal.decide(0, DECISION)
    journal.close()
    assert not (tmp_path / "j.jsonl").exists()


def test_object_store_keeps_all_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "is_remote", lambda path: True)
    for life in (1, 2):
        journal = Journal(tmp_path / "j.jsonl")
        journal.write("start", life)
        journal.write("alive", life)
    assert [(x["step"], x["life"]) for x in read_journal(tmp_path / "j.jsonl")] == [
        (1, 1),
        (1, 1),
        (2, 2),
        (2, 2),
    ]


def test_anything_can_be_read(tmp_path):
    path = tmp_path / "j.jsonl"
    good = {"time": "2026-11-22T10:00:00Z", "event": "x", "step": 1}
    bad = [
        *(b"", b"null", b"[1]", b"7", b"\xff\xfe", b"\x00", b"[" * 200_000, b'{"a":' * 100_000),
        b'{"step": 1e999}',
        b'{"time": "2026-11-22T10:00:00Z", "event": "x", "step": ' + b"9" * 5000 + b"}",
    ]
    changes = [
        *({"step": True}, {"step": -1}, {"step": 1.5}, {"step": None}, {"step": 2**70}),
        *({"event": 3}, {"time": "yesterday"}, {"time": 5}, {"time": "2026-11-22T10:00:00"}),
    ]
    bad += [json.dumps(good | change).encode() for change in changes]
    odd = good | {"life": "three", "text": "a\u2028b\x85c"}
    texts = [*bad, json.dumps(good).encode(), json.dumps(odd, ensure_ascii=False).encode()]
    path.write_bytes(b"\n".join(texts))
    lines = read_journal(path)
    assert [x["life"] for x in lines] == [0, 0] and lines[1]["text"] == "a\u2028b\x85c"
    assert read_journal(tmp_path / "missing") == []
    assert accounts(good | {"account": {"total": "9", "a": -1, "b": True, "c": 2}}) == {"c": 2.0}
    assert accounts(good | {"account": [1]}) == {}


def test_half_a_surrogate_pair_is_written(tmp_path):
    file = Appender(tmp_path / "x.jsonl")
    file.add({"text": "a\ud800b"})
    assert file.flush() and read_jsonl(tmp_path / "x.jsonl") == [{"text": "a?b"}]


@pytest.mark.parametrize(
    "change",
    [
        *({"onset": None}, {"detected": -1}, {"to_step": "50"}, {"to_step": True}),
        *({"skip": [5, 4]}, {"skip": [1]}, {"skip": None}, {"skip": {"a": 1, "b": 2}}),
    ],
)
def test_a_rewind_that_cannot_be_read_is_not_passed_over(change):
    sound = line(0, "rewind", 141, 1, **dataclasses.asdict(DECISION))
    assert len(decisions([sound])) == 1
    with pytest.raises(DataError, match="cannot be read"):
        decisions([sound, sound | change])
