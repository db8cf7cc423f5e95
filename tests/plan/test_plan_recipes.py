"""Every large recipe fits the slice of its mesh file, by the TPU compiler; needs libtpu.

A case takes minutes of CPU time: run one by ``-k``.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

V6E = ("configs/meshes/v6e_256.gin", "Evaluation.batch_size=256", "Loop.microbatches=2")
CASES = {
    "llama2_13b": ("v5p-128", 1),
    "llama2_70b": ("v5p-256", 1),
    "llama2_70b_v6e": ("v6e-256", 1, *V6E, "Run.remat='full'"),
    "palm_8b": ("v4-512", 1),
    "palm_62b": ("v4-1024", 1),
    "palm_540b": ("v4-3072", 2),
    "bloom_176b": ("v5p-1024", 1),
    "glm_130b": ("v5p-1024", 1),
    "t5_11b": ("v5p-256", 1),
    "yuan2_2_1b": ("v5p-128", 1),
    "yuan2_51b": ("v5p-512", 1),
    "yuan2_102b": ("v5p-1024", 1),
    "yuan2_102b_pipeline": ("v5p-1024", 1),
    "falcon_180b": ("v5p-1024", 1),
}


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="make test-slow brings libtpu")
@pytest.mark.parametrize("name", CASES)
def test_it_fits(name):
    slice_, slices, *more = CASES[name]
    files = [f"configs/recipes/{name.removesuffix('_v6e')}.gin"]
    files += [word for word in more if word.endswith(".gin")]
    argv = [sys.executable, "-m", "t5x_llm.cli.main", "plan", "--json"]
    argv += [f"--slice={slice_}", f"--slices={slices}", *(f"--gin_file={file}" for file in files)]
    argv += [f"--gin.{word}" for word in more if not word.endswith(".gin")]
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": ""})
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["fits"], f"over by {found['over_bytes'] / 2**30:.1f} GiB"
    assert 0 < found["mfu"] < 1
