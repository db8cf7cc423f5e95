"""The local runner: a group that lives and dies together, and comes back."""

import os
import signal
import subprocess
import sys

import pytest
from clocks import HANG, no_hang, until

from t5x_llm.core.errors import ConfigError
from t5x_llm.launch.local import Local, environment, run

# Counts its own starts, then does what is written for that start: "STATUS", "-SIGNAL" or "sleep".
WORKER = """
import os, signal, sys, time
index = os.environ["JAX_PROCESS_ID"]
with open("starts" + index, "a+") as file:
    file.write(os.environ["JAX_COORDINATOR_ADDRESS"] + "\\n")
    file.seek(0)
    start = len(file.readlines())
plan = sys.argv[1 + int(index)].split(",")
deed = plan[min(start, len(plan)) - 1]
print("start", start, "does", deed)
print("an error line", file=sys.stderr)
with open("pid" + index, "w") as file:
    file.write(str(os.getpid()))
if deed == "late":
    # Until the launcher has taken note of the other's end.
    while not os.path.exists("pid1") or os.path.exists("/proc/" + open("pid1").read()):
        time.sleep(0.01)
    sys.exit(3)
if deed == "sleep":
    signal.pause()
if deed.startswith("-"):
    os.kill(os.getpid(), -int(deed))
sys.exit(int(deed))
"""


def job(*plans, **more):
    """A process for each plan: what it does at its first start, its second, and so on."""
    settings = {"processes": len(plans), "backoff_seconds": 0.01, "grace_seconds": 0.5} | more
    return Local((sys.executable, "-c", WORKER, *plans), **settings)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def starts(here, index=0):
    return (here / f"starts{index}").read_text().splitlines()


@pytest.mark.parametrize("deed", ["-9", "-6", "75", "76", "77"])
def test_a_group_comes_back(here, deed, capfd):
    assert run(job(f"{deed},0", "sleep,0")) == 0
    assert len(starts(here, 0)) == len(starts(here, 1)) == 2
    assert len(set(starts(here, 0))) == 2  # each attempt has a port of its own
    assert starts(here, 0) == starts(here, 1)
    out, err = capfd.readouterr()
    assert "[0] start 2 does 0" in out and "[1] start 2 does 0" in out
    assert "[1] an error line" in err and "starting all again" in err


@pytest.mark.parametrize("deed", ["1", "2", "130"])
def test_what_a_restart_would_not_help_is_final(here, deed, capfd):
    with no_hang():
        assert run(job("sleep", deed)) == int(deed)
    assert len(starts(here, 1)) == 1
    assert f"process 1 ended with status {deed}" in capfd.readouterr().err


def test_the_first_to_end_is_the_cause(here):
    """What follows a kill is its consequence, whatever its status."""
    assert run(job("late,0", "-9,0", grace_seconds=HANG)) == 0
    assert len(starts(here)) == 2


def test_restarts_have_a_limit(here, capfd):
    assert run(job("76", restarts=2)) == 76
    assert len(starts(here)) == 3
    assert "giving up after 2 restarts in a row" in capfd.readouterr().err
    assert run(job("-9", restarts=0)) == 137


def test_a_run_that_lived_long_counts_anew(here):
    assert run(job("76,76,76,76,0", restarts=1, settled_seconds=0)) == 0
    assert len(starts(here)) == 5


def test_pauses_double_up_to_a_limit(here, capfd):
    run(job("76", restarts=4, backoff_seconds=0.01, most_backoff_seconds=0.03))
    said = capfd.readouterr().err
    for pause in ("0.01", "0.02", "0.03"):
        assert f"in {pause} s" in said
    assert "0.04 s" not in said


def test_variables_of_the_parents_group_do_not_leak():
    """ray-project/ray#62893: a coordinator's address of an earlier job is found by the next."""
    stale = {
        **dict.fromkeys(("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES"), "old"),
        **dict.fromkeys(("JAX_COORDINATOR_BIND_ADDRESS", "JAX_LOCAL_DEVICE_IDS"), "old"),
        **dict.fromkeys(("SLURM_PROCID", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"), "old"),
        **dict.fromkeys(("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID"), "old"),
    }
    kept = {"PATH": "p", "JAX_COMPILATION_CACHE_DIR": "c", "TPU_LIBRARY_PATH": "t"}
    flags = {"XLA_FLAGS": "--xla_a=1 --xla_force_host_platform_device_count=8"}
    one = Local(("true",), processes=4)
    assert environment(one, 2, 99, stale | kept | flags) == kept | flags | {
        "JAX_COORDINATOR_ADDRESS": "localhost:99",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "2",
        "PYTHONUNBUFFERED": "1",
    }
    two = environment(Local(("true",), devices=2), 0, 99, stale | kept | flags)
    assert two["XLA_FLAGS"] == "--xla_a=1 --xla_force_host_platform_device_count=2"
    assert two["JAX_PLATFORMS"] == "cpu"


def launcher(here, *command, **more):
    flags = ("--processes=2", "--backoff=0.01", "--grace=0.5", "--")
    return subprocess.Popen(
        [sys.executable, "-m", "t5x_llm.cli.main", "launch", *flags, *command],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **more,
    )


SAVER = """
import os, signal, sys
def leave(number, frame):
    print("heard", signal.Signals(number).name)
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGINT, leave)
print("ready", os.getpid())
while True:
    signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_and_end_it(here, number):
    process = launcher(here, sys.executable, "-c", SAVER)
    lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(number)
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == 75
    assert out.count(f"heard {number.name}") == 2 and "starting" not in out
    for line in lines:
        with pytest.raises(ProcessLookupError):
            os.kill(int(line.split()[-1]), 0)


STUBBORN = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", child.pid, flush=True)
if os.environ["JAX_PROCESS_ID"] == "1":
    while not os.path.exists("other"):
        time.sleep(0.01)
    sys.exit(2)
open("other", "w").close()
signal.pause()
"""


def test_nothing_is_left_over(here):
    """Neither what ignores SIGTERM nor its children."""
    process = launcher(here, sys.executable, "-c", STUBBORN)
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == 2
    children = [int(line.split()[-1]) for line in out.splitlines() if "ready" in line]
    assert len(children) == 2
    until(lambda: not any(map(alive, children)))


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_launcher_needs_no_jax(here):
    program = (
        "import sys; from t5x_llm.cli import launch\n"
        "try: launch.main(['--processes=1', '--', sys.executable, '-c', ''])\n"
        "finally: print('LOADED', {'jax', 'numpy', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and "LOADED set()" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"command": ()}, "launch"),
        ({"command": ("no-such-program",)}, "no-such-program"),
        ({"processes": 0}, "--processes"),
        ({"devices": 0}, "--devices"),
        ({"restarts": -1}, "--restarts"),
        ({"grace_seconds": -1}, "--grace"),
    ],
)
def test_bad_jobs(bad, field):
    with pytest.raises(ConfigError, match=field):
        Local(**{"command": ("true",)} | bad)
