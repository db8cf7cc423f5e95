"""The quickstart recipe on a v5e-256 slice, compiled by the TPU compiler on this host."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

RECIPE = (
    "--gin_file=configs/recipes/quickstart.gin",
    "--gin_file=configs/meshes/v5e_256.gin",
    "--gin.Loop.batch_size=256",
    "--gin.Evaluation.batch_size=256",
)
PROGRAM = """
import sys
from t5x_llm.run.assembled import assemble
from t5x_llm.run.checks import check_fits
from t5x_llm.run.config import load_run
from t5x_llm.config import parse_flags
from t5x_llm.core.slices import parse_slice
from t5x_llm.parallel import make_mesh
from t5x_llm.plan.chips import described_devices

run, _ = load_run(parse_flags(sys.argv[2:]))
mesh = make_mesh(run.mesh, described_devices(parse_slice("slice", "v5e-256")))
check_fits(run, mesh)
made = assemble(run, mesh)
compiled = made.step.lower(*made.arguments).compile()
memory = compiled.memory_analysis()
with open(sys.argv[1], "w") as file:
    file.write(compiled.as_text())
print("STATE", memory.argument_size_in_bytes, "TEMP", memory.temp_size_in_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="make test-slow brings libtpu")
def test_recipe_compiles_for_v5e_256_in_bfloat16(tmp_path):
    hlo = tmp_path / "hlo.txt"
    env = {**os.environ, "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(hlo), *RECIPE], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "STATE" in done.stdout
    text = hlo.read_text()
    # Matrix products are dots or, on TPU, convolutions; the operands' types stand in their shapes.
    types = dict(re.findall(r"^\s*(?:ROOT )?(%[\w.-]+) = (\w+)\[", text, re.M))
    products = re.findall(r" (?:dot|convolution)\((%[\w.-]+), (%[\w.-]+)\)", text)
    assert len(products) > 10
    wide = [pair for pair in products if {types[name] for name in pair} != {"bf16"}]
    assert not wide, [(pair, [types[n] for n in pair]) for pair in wide]
