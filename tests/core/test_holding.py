"""One holder of a directory: refused while it lives, taken over when it is gone."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading

import pytest
from clocks import until

from t5x_llm.core import holding
from t5x_llm.core.holding import ConditionalStore, Held, Hold, Holder, PlainStore, store_of
from t5x_llm.core.paths import as_path


@pytest.fixture
def quick(monkeypatch):
    """Heartbeats and waits of a tenth of a second."""
    for name, seconds in (("BEAT", 0.1), ("STALE", 0.6), ("_POLL", 0.05), ("_SETTLE", 0.05)):
        monkeypatch.setattr(holding, f"{name}_SECONDS", seconds)


def memory(name):
    """A store with the conditional writes of a bucket."""
    import tensorstore as ts

    context = ts.Context()
    return lambda: ConditionalStore(
        ts.KvStore.open({"driver": "memory", "path": "run/"}, context=context).result(), name
    )


@pytest.fixture(params=["disk", "bucket", "plain"])
def stores(request, tmp_path):
    """A function that opens the same record once more: on a disk, in a bucket, anywhere else."""
    return {
        "disk": lambda: store_of(tmp_path),
        "bucket": memory("record"),
        "plain": lambda: PlainStore(as_path(tmp_path) / "record"),
    }[request.param]


def elsewhere(store, **fields):
    """Writes the record of a holder on another machine."""
    there = dataclasses.replace(Holder.me("training"), host="other", machine="other boot", pid=7)
    _, generation = store.read()
    return store.write(dataclasses.replace(there, **fields).dump(), generation)


def test_a_second_one_is_refused_by_name_until_the_first_lets_go(stores, quick):
    with Hold("here", "training", store=stores()):
        first = stores().read()[0]
        for _ in range(2):
            with pytest.raises(Held, match=rf"here is in use: training by process {os.getpid()} "):
                Hold("here", "training", store=stores()).__enter__()
            until(lambda: stores().read()[0] != first)  # a heartbeat changes no verdict
    with Hold("here", "training", store=stores()):
        pass
    assert stores().read()[0] is None


def test_of_many_that_start_at_once_one_holds(stores, quick):
    held, refused = [], []
    gate = threading.Barrier(4)

    def start():
        hold = Hold("here", "training", store=stores())
        gate.wait()
        try:
            hold.__enter__()
            held.append(hold)
        except Held as e:
            refused.append(e)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 3)
    held[0].__exit__()


HOLDS = """
import sys
from t5x_llm.core.holding import Hold
with Hold(sys.argv[1], "training"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_holder_is_replaced_at_once_on_its_machine(tmp_path):
    """Also while it is a zombie, whose parent has not asked for its status."""
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "held\n"
    with pytest.raises(Held, match=f"process {first.pid} on .*kill {first.pid}"):
        Hold(tmp_path, "training").__enter__()
    first.send_signal(signal.SIGKILL)
    until(lambda: Holder.parse(store_of(tmp_path).read()[0]).gone)
    said = []
    with Hold(tmp_path, "training", say=said.append):
        assert f"its holder is gone: training by process {first.pid}" in said[0]
    first.wait()


def test_a_pid_that_another_process_has_now_is_no_holder(tmp_path):
    store = store_of(tmp_path)
    me = Holder.me("training")
    store.write(dataclasses.replace(me, started="1", token="x").dump(), store.read()[1])
    with Hold(tmp_path, "training"):
        pass


def test_a_holder_elsewhere_lives_as_long_as_its_heart_beats(stores, quick):
    store = stores()
    elsewhere(store)
    with pytest.raises(Held, match="process 7 on other .*last sign of life the same command"):
        Hold("here", "training", store=store).__enter__()
    # Its clock is late, but the record changes.
    elsewhere(store, beat=1000.0)
    beating = threading.Timer(0.1, lambda: elsewhere(stores(), beat=1001.0))
    beating.start()
    with pytest.raises(Held, match="process 7 on other"):
        Hold("here", "training", store=store).__enter__()
    beating.join()
    with Hold("here", "training", store=store):  # nothing changed meanwhile, or was said
        assert Holder.parse(store.read()[0]).pid == os.getpid()


def test_a_patient_one_waits_for_a_silent_holder_elsewhere(stores, quick):
    elsewhere(stores())
    with Hold("here", "training", patient=True, store=stores()):
        pass


def test_a_holder_that_was_replaced_is_told(stores, quick):
    lost = []
    hold = Hold("here", "training", lost=lost.append, store=stores())
    with hold:
        elsewhere(stores())
        until(lambda: lost)
    assert lost[0].host == "other"
    assert Holder.parse(stores().read()[0]).host == "other", "the other's record stays"


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'{"pid": 1}', b'{"pid": "x"}'])
def test_a_record_that_cannot_be_read_holds_nothing(tmp_path, text):
    (tmp_path / holding.RECORD).write_bytes(text)
    with Hold(tmp_path, "training"):
        pass


def test_a_record_removed_by_hand_is_written_again(stores, quick):
    with Hold("here", "training", store=stores()):
        store = stores()
        while store.write(None, store.read()[1]) is None:
            pass
        until(lambda: stores().read()[0] is not None)
