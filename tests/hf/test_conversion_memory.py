"""Import and export hold one tensor or one layer at a time, measured by the system's peak."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import ml_dtypes
import models
import numpy as np
import pytest

from t5x_llm.hf.safetensors_io import DTYPES, SafetensorsReader
from t5x_llm.hf.safetensors_write import TensorSpec, write_safetensors

BIG = models.CONFIG | dict(
    vocab_size=4096,
    hidden_size=512,
    num_hidden_layers=32,
    num_attention_heads=4,
    num_key_value_heads=4,
    intermediate_size=2048,
)
SHARD = 150_000_000
PROGRAM = """
import json, pathlib, sys
sys.path.insert(0, sys.argv[3])
import models
from t5x_llm.hf import reference
from t5x_llm.hf.convert import convert
from t5x_llm.hf.import_ import family_of
from t5x_llm.hf.export import export_hf
from t5x_llm.checkpoint import Checkpointer

reference.torch_available = lambda: False
here, what = pathlib.Path(sys.argv[1]), sys.argv[2]

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    pairs = (line.split() for line in lines if line.startswith(("VmHWM", "VmRSS")))
    return {name[:-1]: 1024 * int(size) for name, size, _ in pairs}

def run(source, out):
    if what == "import":
        return convert(source / "hf", out, max_shard_bytes=150_000_000)
    checkpointer = Checkpointer(source / "checkpoints", read_only=True)
    family = family_of(json.loads((source / "hf/config.json").read_text()))
    params = checkpointer.open_params()
    return export_hf(params, family, None, out, max_shard_bytes=150_000_000, dtype="bfloat16")

run(here / "small", here / "x")  # libraries, and what they allocate once
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = peak()["VmRSS"]
run(here / "big", here / what)
print(json.dumps(peak()["VmHWM"] - before))
"""


def make(path, config):
    """Shards of a model of random bfloat16, one tensor in memory at a time."""
    (path / "hf").mkdir(parents=True)
    (path / "hf/config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)

    def draw(name):
        shape = shapes[name]
        noise = rng.standard_normal(shape, np.float32) * (0.5 / shape[-1] ** 0.5)
        return (noise + ("norm" in name)).astype(ml_dtypes.bfloat16)

    shapes = models.shapes(config)
    layouts = {name: TensorSpec(DTYPES["BF16"], shape) for name, shape in shapes.items()}
    write_safetensors(path / "hf", layouts, draw, SHARD)


def grown(path, what):
    """Bytes that the peak of the process rose by."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), what, str(pathlib.Path(__file__).parent)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_peak_memory(tmp_path):
    """Below the largest shard and 20%, of which a layer's parameters in float32 are a part."""
    from t5x_llm.checkpoint import Checkpointer
    from t5x_llm.hf.import_ import import_model

    make(tmp_path / "small", models.CONFIG)
    make(tmp_path / "big", BIG)
    shards = list((tmp_path / "big/hf").glob("*.safetensors"))
    total, largest = sum(p.stat().st_size for p in shards), max(p.stat().st_size for p in shards)
    assert total > 270_000_000 and len(shards) == 2
    for size in ("small", "big"):
        checkpointer = Checkpointer(tmp_path / size / "checkpoints")
        params = import_model(tmp_path / size / "hf", check=False).params
        checkpointer.save(1, {"params": params}, {})
        checkpointer.close()
        del params
    for what in ("import", "export"):
        rose = grown(tmp_path, what)
        print(
            f"{what}: {total / 1e6:.0f} MB in shards of {largest / 1e6:.0f}: +{rose / 1e6:.0f} MB"
        )
        assert rose < 1.2 * largest
        written = SafetensorsReader(tmp_path / what)
        original = SafetensorsReader(tmp_path / "big/hf")
        for name in original.names():
            assert written.read(name).tobytes() == original.read(name).tobytes()
        report = json.loads((tmp_path / what / "parity.json").read_text())
        assert report["passed"] and report["prompts"]["long"]["tokens"] == 512
