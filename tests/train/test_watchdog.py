"""A run that stands still ends by itself, saying where; one that moves does not."""

import subprocess
import sys
import threading

import pytest
from clocks import HANG

from t5x_llm.core.errors import ConfigError, Stuck
from t5x_llm.train.watchdog import LifeConfig, Watchdog

STUCK = """
import sys, threading
import t5x_llm.train.watchdog as module
from t5x_llm.train.watchdog import Watchdog

class Time:
    now, looks = 0.0, threading.Semaphore(0)
    @classmethod
    def monotonic(cls):
        if threading.current_thread().name == "watchdog":
            cls.looks.release()
        return cls.now
module.time = Time

def waiting_for_godot():
    threading.Event().wait()

def report(reason):
    print("TOLD", reason, flush=True)
    if "hang" in sys.argv:
        waiting_for_godot()
    raise RuntimeError("last words fail")

if "hang" in sys.argv:
    module.FINAL_WRITE_SECONDS = 0.5
threading.Thread(target=waiting_for_godot, daemon=True).start()
with Watchdog(1 / 60, sys.argv[1], report) as watchdog:
    for _ in range(3):
        Time.now += 0.9
        # The second of two looks began after the time had passed.
        Time.looks.acquire(), Time.looks.acquire()
        watchdog.heartbeat()
    print("ALIVE", flush=True)
    watchdog.heartbeat("save")
    Time.now += 1.1
    waiting_for_godot()
"""


@pytest.mark.parametrize("how", ["", "hang"])
def test_a_stuck_process_leaves_with_its_own_status_and_all_stacks(tmp_path, how):
    done = subprocess.run(
        [sys.executable, "-c", STUCK, str(tmp_path), how],
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == Stuck.exit_code == 77, done.stderr
    assert "ALIVE" in done.stdout  # 2.7 seconds of progress outlived the limit of one
    assert "TOLD No progress for" in done.stdout and "'save'" in done.stdout
    written = (tmp_path / "stacks-0.txt").read_text()
    for text in (done.stderr, written):
        assert text.count("waiting_for_godot") >= 2  # of both threads
        assert "Stuck: No progress for" in text


def test_a_directory_that_cannot_be_written_is_no_reason_to_stay(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", STUCK, str(tmp_path / "file")], capture_output=True, timeout=HANG
    )
    assert done.returncode == 77 and b"TOLD" in done.stdout


def test_off_and_closed(tmp_path, monkeypatch):
    left = []
    monkeypatch.setattr("t5x_llm.train.watchdog.os._exit", left.append)
    before = set(threading.enumerate())
    Watchdog(0, tmp_path)
    assert set(threading.enumerate()) == before
    with Watchdog(30, tmp_path):
        (thread,) = set(threading.enumerate()) - before
    thread.join(HANG)
    assert not thread.is_alive() and not left and not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [{"watchdog_minutes": -1}, {"grace_seconds": 0}])
def test_bad_configs(bad):
    with pytest.raises(ConfigError, match=f"LifeConfig.{next(iter(bad))}"):
        LifeConfig(**bad)
