"""Strategies over several processes train as one device does."""

import numpy as np
import pytest
from strategy_runs import Trained, assert_same, on_one_device

PROGRAM = """
import sys
sys.path.insert(0, "tests/parallel")
from t5x_llm.parallel import initialize
assert initialize()
import jax, numpy as np
from jax.experimental.multihost_utils import process_allgather
from strategy_runs import FAMILIES, train
from test_strategies_products import CASES
name, family, place = sys.argv[1:]
got = train(CASES[name], FAMILIES[family], whole=lambda tree: process_allgather(tree, tiled=True))
if jax.process_index() == 0:
    np.savez(place, *jax.tree.leaves((got.params, got.moments)), **got.metrics)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "name", "family"),
    [
        (2, "fsdp_ring_sequence", "dense"),
        (4, "replica_data_expert", "moe"),
        (4, "zero1_tensor", "mamba"),
    ],
)
def test_several_processes_equal_one_device(count, name, family, processes, tmp_path):
    place = str(tmp_path / "got.npz")
    processes(PROGRAM, name, family, place, count=count, devices=8 // count, timeout=900)
    with np.load(place) as found:
        leaves = [found[f"arr_{i}"] for i in range(len(found.files)) if f"arr_{i}" in found]
        metrics = {key: found[key] for key in found.files if not key.startswith("arr_")}
    half = len(leaves) // 2
    got = Trained(leaves[:half], leaves[half:], metrics, "", {})
    assert_same(got, on_one_device(family))
