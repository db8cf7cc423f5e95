"""Eight host devices, one compilation cache, no accelerator."""

import functools
import os
import signal
import socket
import subprocess
import sys

from compiling import QUICKLY

# A shell's background jobs are told to ignore it, and their children after them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_FLAGS = ("--xla_force_host_platform_device_count=8", *QUICKLY)
_given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join(
    [_given, *(f for f in _FLAGS if f.split("=")[0] not in _given)]
).strip()

import jax  # noqa: E402
import pytest  # noqa: E402

pytest_plugins = ("margins", "durations")

jax.config.update("jax_compilation_cache_dir", os.path.abspath(".cache/jax-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
# For commands in processes of their own, which would take the user's cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)


@pytest.fixture
def one_device():
    """A single device, where a test is not about sharding."""
    return jax.devices()[:1]


@pytest.fixture
def processes():
    """Runs a program as joined processes of some devices each; gives what each printed."""

    def run(program, *arguments, count, devices, timeout=120):
        with socket.socket() as s:
            s.bind(("localhost", 0))
            port = s.getsockname()[1]
        env = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(count),
        }
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", program, *arguments],
                env={**env, "JAX_PROCESS_ID": str(i)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(count)
        ]
        try:
            results = [p.communicate(timeout=timeout) for p in processes]
        except subprocess.TimeoutExpired:
            for p in processes:
                p.kill()
            pytest.fail("\n".join(p.communicate()[1][-3000:] for p in processes), pytrace=False)
        finally:
            for p in processes:
                p.kill()
        for p, (out, err) in zip(processes, results, strict=True):
            assert p.returncode == 0, out + err
        return [out for out, _ in results]

    return run


@pytest.fixture
def two_processes(processes):
    """The same with two processes of two devices."""
    return functools.partial(processes, count=2, devices=2)
