"""Several real processes: when one is gone the others leave at once, wherever they are."""

import os
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from clocks import HANG, until

from t5x_llm.train.peers import Peers

# READY, then what is asked for: "step" works in collectives, "sleep" is nowhere near one.
WORKER = """
import sys, time
from t5x_llm.core.errors import DataError, Preempted
from t5x_llm.parallel import MeshConfig, initialize, make_mesh
from t5x_llm.train.signals import exit_together
initialize()
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
mesh = make_mesh(MeshConfig())
rows, whole = (NamedSharding(mesh, PartitionSpec(axis)) for axis in ("fsdp", None))
x = jax.make_array_from_callback((mesh.size,), rows, lambda at: jnp.ones(1))
add = jax.jit(lambda x: jnp.sum(x) * jnp.ones(1), out_shardings=whole)
deeds = sys.argv[1].split(",")
deed = deeds[jax.process_index() % len(deeds)]
with exit_together(lambda error: print("TOLD", type(error).__name__, flush=True)):
    float(add(x)[0])
    print("READY", flush=True)
    sys.stdin.readline()
    if deed == "fail":
        raise DataError("its own")
    if deed == "preempted":
        raise Preempted("all together")
    rounds = 0
    while deed in ("step", "sleep"):
        if deed == "step":
            float(add(x)[0])
        rounds += 1
        if rounds == 3:
            print("WORKING", flush=True)
        time.sleep(0.01)
if deed == "done":
    sys.stdin.readline()
print("LEFT", flush=True)
"""
MAIN = f"""
from t5x_llm.cli.main import guard
def main(argv):
    exec({WORKER!r}, globals())
guard(main, [])
"""


# JAX's heartbeat notices a lost process after 100 s: nothing here may depend on it.
LIMIT = 60


class Group:
    """Processes running WORKER; each told to go on by ``go``."""

    def __init__(self, count, deeds):
        with socket.socket() as s:
            s.bind(("localhost", 0))
            port = s.getsockname()[1]
        env = {
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(count),
        }
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", MAIN, deeds],
                env={**env, "JAX_PROCESS_ID": str(i)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(count)
        ]

    def __enter__(self):
        for index in range(len(self.processes)):
            self.await_line(index, "READY")
        for index in range(len(self.processes)):
            self.go(index)
        return self

    def go(self, index):
        self.processes[index].stdin.write("\n")
        self.processes[index].stdin.flush()

    def await_line(self, index, text):
        process = self.processes[index]
        while line := process.stdout.readline():
            if line == text + "\n":
                return
        raise AssertionError(process.stderr.read())

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()

    def kill(self, index, number=signal.SIGKILL):
        self.await_line(index, "WORKING")
        self.processes[index].send_signal(number)

    def end(self):
        """(statuses, outputs, errors); JAX's own heartbeat would need longer than this waits."""
        printed = [p.communicate(timeout=LIMIT) for p in self.processes]
        return [p.returncode for p in self.processes], *zip(*printed, strict=True)


@pytest.mark.parametrize("deed", ["step", "sleep"])
def test_one_of_two_is_killed(deed):
    with Group(2, deed) as group:
        group.kill(1)
        statuses, out, err = group.end()
    assert statuses == [76, -9]
    assert "PeerLost: " in err[0] and "newest checkpoint" in err[0]
    assert "TOLD PeerLost" in out[0] and "LEFT" not in out[0]


def test_the_coordinator_is_killed():
    """JAX aborts the others at the same moment; launch starts both kinds of end again."""
    with Group(2, "sleep") as group:
        group.kill(0)
        statuses, _, _ = group.end()
    assert statuses[0] == -9 and statuses[1] in (76, -signal.SIGABRT)


def test_jax_does_not_swallow_sigterm():
    """Its preemption service would, as soon as processes are joined; here nobody listens yet."""
    with Group(2, "sleep") as group:
        group.kill(1, signal.SIGTERM)
        statuses, _, _ = group.end()
    assert statuses == [76, -signal.SIGTERM]


def test_an_error_of_one_alone_ends_all_with_its_own_status_first():
    with Group(2, "step,fail") as group:
        statuses, out, err = group.end()
    assert statuses == [76, 2]
    assert "DataError: its own" in err[1] and "TOLD DataError" in out[1]


def test_what_all_raise_together_leaves_by_the_front_door():
    with Group(2, "preempted") as group:
        statuses, out, err = group.end()
    assert statuses == [75, 75] and "TOLD" not in "".join(out)
    assert all("Preempted: all together" in e and "PeerLost" not in e for e in err)


@pytest.mark.slow
def test_an_end_in_turn_is_no_loss():
    with Group(4, "done") as group:
        for index in range(4):
            group.go(index)
            group.await_line(index, "LEFT")
        statuses, out, err = group.end()
    assert statuses == [0] * 4, err
    assert "PeerLost" not in "".join(err)


@pytest.mark.slow
@pytest.mark.parametrize("deed", ["step", "sleep"])
@pytest.mark.parametrize("victim", [0, 2])
def test_one_of_four_is_killed(victim, deed):
    with Group(4, deed) as group:
        group.kill(victim)
        statuses, _, err = group.end()
    others = [s for i, s in enumerate(statuses) if i != victim]
    allowed = {76} if victim else {76, -signal.SIGABRT}
    assert statuses[victim] == -9 and set(others) <= allowed
    if victim:
        assert all("Process 2 of the run is gone" in err[i] for i in (0, 1, 3) if deed == "sleep")


def test_one_process_watches_nothing():
    with Peers(lambda error: pytest.fail(str(error))) as peers:
        assert not peers._others


@pytest.fixture
def pair(monkeypatch):
    """Both sides in this process; what was sent round comes from ``_shared_address``."""
    from t5x_llm.train import peers

    listener = peers._listen()
    port, token = listener.getsockname()[1], b"12345678"
    lost = []
    monkeypatch.setattr(peers.jax, "process_count", lambda: 2)
    monkeypatch.setattr(peers, "_shared_address", lambda _: ("localhost", port, token))
    monkeypatch.setattr(peers, "_listen", lambda: listener)

    def make(index):
        monkeypatch.setattr(peers.jax, "process_index", lambda: index)
        return Peers(lambda error: lost.append((index, str(error))), lost.append)

    yield make, lost, listener
    listener.close()


def test_strangers_are_shown_out(pair):
    make, lost, listener = pair
    before = set(threading.enumerate())
    with make(0) as first:
        with socket.create_connection(("localhost", listener.getsockname()[1])) as stranger:
            stranger.settimeout(5)
            stranger.sendall(np.zeros(12, np.uint8).tobytes())
            assert stranger.recv(1) == b""
        with make(1):
            until(lambda: list(first._others.values()) == [1])
        until(lambda: not first._others)
    for thread in set(threading.enumerate()) - before:
        thread.join(HANG)
    assert lost == []


def test_a_broken_connection_is_a_loss_on_both_sides(pair):
    make, lost, _ = pair
    first, second = make(0), make(1)
    until(lambda: first._others)
    next(iter(second._others)).shutdown(socket.SHUT_RDWR)
    until(lambda: len(lost) == 2)
    assert {index for index, _ in lost} == {0, 1}
    assert any("Process 1 of the run is gone" in text for _, text in lost)
    first.close()
    second.close()


def test_a_first_process_that_cannot_be_reached_is_a_warning(pair):
    make, lost, listener = pair
    listener.close()
    make(1).close()
    (said,) = lost
    assert said.startswith("warning: process 0 cannot be reached at localhost:")
