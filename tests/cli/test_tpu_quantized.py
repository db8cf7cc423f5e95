"""What the TPU compiler makes of 8-bit products: the chip's own, forwards and backwards."""

import collections
import importlib.util
import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import collections
import json
import pathlib
import sys
import tempfile
from t5x_llm.run.assembled import assemble
from t5x_llm.run.config import load_run
from t5x_llm.config import parse_flags
from t5x_llm.core.slices import parse_slice
from t5x_llm.parallel import make_mesh
from t5x_llm.plan.chips import described_devices
from t5x_llm.plan.hlo import parse

run, _ = load_run(parse_flags(sys.argv[2:]))
mesh = make_mesh(run.mesh, described_devices(parse_slice("slice", sys.argv[1])))
made = assemble(run, mesh)
with tempfile.TemporaryDirectory() as folder:
    made.step.lower(*made.arguments).compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
    module = parse(sorted(pathlib.Path(folder).glob("*.after_codegen.txt"))[-1].read_text())
found = collections.Counter()
for instruction in module.named.values():
    name, kind = instruction.op_name, instruction.opcode
    if kind in ("convolution", "dot"):
        way = "backward" if "transpose(jvp" in name else "forward"
        types = [module.named[n].shapes[0].dtype for n in instruction.operands]
        found[f"{way} {' '.join(sorted(types))}"] += 1
    if kind.startswith("all-gather") and "state.params" not in name:
        found[f"gathered {instruction.shapes[0].dtype}"] += 1
print(json.dumps(found))
"""


def counted(slice_, kind):
    """How many products of which types the step has, and what is gathered."""
    argv = [sys.executable, "-c", PROGRAM, slice_, "--gin_file=configs/recipes/quickstart.gin"]
    argv += ["--gin.Loop.batch_size=16", "--gin.Evaluation.batch_size=16"]
    argv += ["--gin.MeshConfig.fsdp=-1", f"--gin.Policy.quantized={kind!r}"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(argv, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return collections.Counter(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="make test-slow brings libtpu")
@pytest.mark.parametrize(
    ("slice_", "kind", "forward", "backward", "products", "gathered"),
    [
        ("v5p-16", "int8", "s8 s8", "s8 s8", 7, "s8"),
        ("v6e-8", "int8", "s8 s8", "s8 s8", 7, "s8"),
        ("v7x-16", "fp8", "f8e4m3fn f8e4m3fn", "f8e4m3fn f8e5m2", 14, "f8e4m3fn"),
    ],
)
def test_the_chips_own_products(slice_, kind, forward, backward, products, gathered):
    found = counted(slice_, kind)
    assert found[f"forward {forward}"] >= 7 and found[f"backward {backward}"] >= products
    assert found[f"gathered {gathered}"] >= 7
