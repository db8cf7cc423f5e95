"""Host memory while a checkpoint is read: little more than what the process keeps of it."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x_llm.checkpoint.reader import in_flight
from t5x_llm.checkpoint.saver import chunk_bytes

# 1.07 GB: stacked matrices three times over, as parameters and Adam's moments are, and embeddings.
PROGRAM = """
import json, os, re, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from t5x_llm.checkpoint import Checkpointer
from t5x_llm.parallel import initialize
initialize()
mode, directory, count, axis = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
mesh = Mesh(np.array(jax.devices()[:count]), ("x",))
cut = NamedSharding(mesh, P(*[None] * axis, "x"))

def shapes(scale):
    one = {f"w{i}": (8, 1024 // scale, 2048 // scale) for i in range(4)}
    one["embed"] = (24576 // scale, 1024 // scale)
    return {name: {k: jax.ShapeDtypeStruct(s, "float32", sharding=cut) for k, s in one.items()}
            for name in ("params", "mu", "nu")}

def size(tree):
    pieces = [x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(tree)]
    return 4 * sum(map(np.prod, pieces)) * len(mesh.local_devices)

def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

if mode == "save":
    rng = np.random.default_rng(0)
    for name, scale in (("small", 8), ("large", 1)):
        state = jax.tree.map(
            lambda s: jax.device_put(rng.standard_normal(s.shape, np.float32), s.sharding),
            shapes(scale))
        keeper = Checkpointer(os.path.join(directory, name))
        keeper.save(1, state, {})
        keeper.close()
else:
    small = Checkpointer(os.path.join(directory, "small"), read_only=True)
    small.restore(shapes(8))  # libraries and thread pools are loaded
    reader, wanted = Checkpointer(os.path.join(directory, "large"), read_only=True), shapes(1)
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    got, _ = reader.restore(wanted)
    jax.block_until_ready(got)
    print(json.dumps({"share": int(size(wanted)), "peak": status("VmHWM") - before}))
"""


def run(script, *arguments, devices=8, env=None):
    """What one process prints last."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **(env or {})},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1] if done.stdout else ""


@pytest.mark.slow
@pytest.mark.parametrize("saved", [(8, 1), (1, 0)], ids=["saved-on-8", "saved-on-1"])
def test_peak_while_restoring(tmp_path, saved):
    """Onto the same mesh, half of the devices, another dimension, one device."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    run(script, "save", tmp_path, *saved)
    for count, axis in ((8, 1), (4, 1), (8, 0), (1, 0)):
        got = json.loads(run(script, "restore", tmp_path, count, axis))
        ratio = got["peak"] / got["share"]
        print(f"saved {saved}, onto {(count, axis)}: {ratio:.3f} of {got['share']:,} bytes")
        assert ratio < 1.3, got


def test_what_may_be_in_flight():
    """Enough for the largest piece and the chunks it touches, else Orbax refuses to read it."""

    class Stored:
        def __init__(self, shape, chunk):
            self.shape, self.dtype = shape, jnp.float32
            self.storage = self
            self.chunk_shape = chunk

    mesh = Mesh(jax.devices()[:4], ("x",))
    cut = NamedSharding(mesh, PartitionSpec("x"))
    wanted = {"w": jax.ShapeDtypeStruct((4096, 16384), jnp.float32, sharding=cut)}
    piece = 4096 * 16384 * 4 // 4
    assert in_flight({"w": Stored((4096, 16384), (512, 16384))}, wanted) >= piece
    # One chunk for all: each piece decodes the whole.
    assert in_flight({"w": Stored((4096, 16384), (4096, 16384))}, wanted) > 4 * piece
    small = {"w": jax.ShapeDtypeStruct((4, 4), jnp.float32, sharding=cut)}
    assert in_flight({"w": Stored((4, 4), (1, 4))}, small) == 1 << 25


def test_chunks_are_bounded_but_not_dust():
    shape = jax.ShapeDtypeStruct
    assert chunk_bytes(shape((8, 1024, 16384), jnp.float32)) == 1 << 23
    assert chunk_bytes(shape((50257, 768), jnp.float32)) == 1 << 23  # 29 * 1733 rows
    # A prime number of rows would be cut into single rows: better whole.
    assert chunk_bytes(shape((50261, 768), jnp.float32)) is None
    assert chunk_bytes(shape((50261, 7), jnp.float32)) == 1 << 23  # small anyway
    assert chunk_bytes(shape((), jnp.int32)) == 1 << 23
