"""SIGTERM, and what errors of the runtime mean when there are several processes."""

import os
import signal
import subprocess
import sys
import threading
from unittest import mock

import jax
import pytest
from clocks import HANG, until

from t5x_llm.core.errors import CheckpointError, PeerLost, Preempted, SpikeError
from t5x_llm.train import signals
from t5x_llm.train.signals import Preemption, exit_together, peer_error

# The main thread is in one long call, as in a collective: Python runs no signal handler in it.
DEEP = """
import ctypes, signal, sys, time
from t5x_llm.train.signals import Preemption
with Preemption(float(sys.argv[1])) as preemption:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    print("READY", flush=True)
    if "answer" not in sys.argv:
        ctypes.CDLL(None).pause()
    while not preemption.requested:
        time.sleep(0.01)
    print("SAVED", flush=True)
if "linger" in sys.argv:
    ctypes.CDLL(None).pause()
"""


def deep(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", DEEP, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "READY\n"
    process.send_signal(signal.SIGTERM)
    return process


def test_sigterm_is_a_request(capfd):
    before, said = signal.getsignal(signal.SIGTERM), []

    def heard():
        said.append(capfd.readouterr().err)
        return "\n" in "".join(said)

    with Preemption(1e6) as preemption:  # longer than the tests live
        assert not preemption.requested
        os.kill(os.getpid(), signal.SIGTERM)
        until(heard)
        assert preemption.requested and "status 75" in "".join(said)
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_other_signals_are_not_taken():
    before, others = signal.getsignal(signal.SIGINT), set(threading.enumerate())
    with Preemption() as preemption:
        assert signal.getsignal(signal.SIGINT) is before
        (thread,) = (t for t in set(threading.enumerate()) - others if t.name == "preemption")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    thread.join(HANG)  # it ends once it has read all that came
    assert not thread.is_alive() and not preemption.requested


def test_it_does_nothing_outside_the_main_thread():
    def use():
        with Preemption() as preemption:
            seen.append(preemption.requested)

    seen, before = [], signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [False] and signal.getsignal(signal.SIGTERM) is before


def test_one_signal_lets_the_run_end_by_itself():
    out, _ = (process := deep("1e6", "answer")).communicate(timeout=HANG)
    assert process.returncode == 0 and "SAVED" in out


def test_the_second_signal_leaves_at_once_even_from_deep_in_a_call():
    process = deep("1e6")
    assert "once more" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=HANG)
    assert process.returncode == 75 and "SIGTERM again: leaving at once" in said


@pytest.mark.parametrize("how", [(), ("answer", "linger")])
def test_the_grace_ends_even_when_saving_does_not(how):
    """``linger``: a grace period that has started goes on after the run stopped listening."""
    _, said = (process := deep("1", *how)).communicate(timeout=HANG)
    assert process.returncode == 75 and "1 s after SIGTERM: leaving" in said


LOST = [
    "UNKNOWN: Gloo AllReduce failed: [gloo/transport/tcp/pair.cc:547] Connection closed by peer",
    "UNAVAILABLE: failed to connect to all addresses; last error: Connection refused",
    "DEADLINE_EXCEEDED: Barrier timed out. Id: orbax::x. This usually happens because a task ...",
    "INTERNAL: The coordination service has reported an error",
    "ABORTED: connection reset by peer",
]
OTHERS = [
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes",
    "INVALID_ARGUMENT: Executable expected parameter 0 of size 4 but got buffer of size 8",
    "INTERNAL: during context [pre-optimization]: seen before, not cancelled: by anybody",
]


@pytest.fixture
def joined():
    with mock.patch.object(jax.distributed, "is_initialized", lambda: True):
        yield


@pytest.mark.parametrize("text", LOST)
def test_errors_that_mean_a_lost_peer(joined, text):
    error = jax.errors.JaxRuntimeError(text)
    found = peer_error(error)
    assert isinstance(found, PeerLost) and found.exit_code == 76 and text[:40] in str(found)
    try:
        try:
            raise error
        except Exception as e:
            raise CheckpointError("the checkpoint could not be written") from e
    except CheckpointError as wrapped:
        assert isinstance(peer_error(wrapped), PeerLost)


@pytest.mark.parametrize("text", OTHERS)
def test_errors_that_do_not(joined, text):
    assert peer_error(jax.errors.JaxRuntimeError(text)) is None
    assert peer_error(ValueError(LOST[0])) is None  # the data's own gloo


def test_one_process_has_no_peers():
    assert peer_error(jax.errors.JaxRuntimeError(LOST[0])) is None
    with pytest.raises(jax.errors.JaxRuntimeError), exit_together():
        raise jax.errors.JaxRuntimeError(LOST[0])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (jax.errors.JaxRuntimeError(LOST[0]), 76, "PeerLost: Another process"),
        (CheckpointError("disk"), 2, "CheckpointError: disk"),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (RuntimeError("a bug"), 1, "RuntimeError: a bug"),
    ],
)
def test_what_ends_one_process_ends_it_at_once(joined, capfd, error, code, said):
    reported = []
    with mock.patch.object(signals, "leave", side_effect=SystemExit) as leave:
        with pytest.raises(SystemExit), exit_together(reported.append):
            raise error
    leave.assert_called_once_with(code)
    err = capfd.readouterr().err
    assert said in err and ("Traceback" in err) == (code == 1)
    assert len(reported) == 1 and (code == 76) == isinstance(reported[0], PeerLost)


@pytest.mark.parametrize("error", [Preempted("saved"), SpikeError("again"), SystemExit(3)])
def test_what_all_raise_together_passes(joined, error):
    with mock.patch.object(signals, "leave") as leave:
        with pytest.raises(type(error)), exit_together():
            raise error
    leave.assert_not_called()


def test_last_words_that_hang_are_not_waited_for(joined, monkeypatch):
    monkeypatch.setattr(signals, "FINAL_WRITE_SECONDS", 0.1)
    release, ended = threading.Event(), []

    def hang(error):
        release.wait(HANG)
        ended.append(error)

    with mock.patch.object(signals, "leave", side_effect=SystemExit):
        with pytest.raises(SystemExit), exit_together(hang):
            raise CheckpointError("disk")
    assert not ended
    release.set()


LEAVING = """
import atexit, sys, threading
from t5x_llm.train.signals import leave
atexit.register(threading.Event().wait)
print("last words", end="")
leave(76)
"""


def test_leaving_waits_for_no_exit_handler_but_prints():
    done = subprocess.run(
        [sys.executable, "-c", LEAVING], capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 76 and done.stdout == "last words"
