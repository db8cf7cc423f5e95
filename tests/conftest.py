"""Eight host devices, one compilation cache, no accelerator."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Tiny programs: compiling them is what takes the time, so LLVM is told not to try hard.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
_given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join(
    [_given, *(f for f in _FLAGS if f.split("=")[0] not in _given)]
).strip()

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_compilation_cache_dir", os.path.abspath(".cache/jax-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def one_device():
    """A single device, where a test is not about sharding."""
    return jax.devices()[:1]
