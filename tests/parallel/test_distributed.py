"""Joining processes: what the environment asks for, and two real processes."""

from unittest import mock

import jax
import pytest

from t5x_llm.core.errors import ConfigError
from t5x_llm.parallel import initialize
from t5x_llm.parallel.distributed import HEARTBEAT_SECONDS


@pytest.fixture
def joined():
    with mock.patch.object(jax.distributed, "initialize") as call:
        yield call


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": "a:1"},
        {"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a,b"},
        {"SLURM_NTASKS": "4"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_one_process_joins_nothing(env, joined):
    assert initialize(env) is False
    joined.assert_not_called()


@pytest.mark.parametrize(
    "env",
    [
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"MEGASCALE_COORDINATOR_ADDRESS": "a"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        dict.fromkeys(("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"), "0")
        | {"SLURM_NTASKS": "2"},
    ],
)
def test_managed_groups_are_left_to_jax(env, joined):
    assert initialize(env) is True
    joined.assert_called_once_with(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def test_explicit_variables(joined):
    env = {
        "JAX_COORDINATOR_ADDRESS": "host:1234",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "3",
    }
    assert initialize(env) is True
    joined.assert_called_once_with(
        coordinator_address="host:1234",
        num_processes=4,
        process_id=3,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID"):
        with pytest.raises(ConfigError, match=name):
            initialize({k: v for k, v in env.items() if k != name})
    with pytest.raises(ConfigError, match="an integer"):
        initialize({**env, "JAX_PROCESS_ID": "x"})
    with pytest.raises(ConfigError, match="below 4"):
        initialize({**env, "JAX_PROCESS_ID": "4"})


PROGRAM = """
from t5x_llm.parallel import MeshConfig, global_batch, initialize, local_rows, make_mesh
assert initialize()
import jax, numpy as np
from jax.experimental import multihost_utils
config = MeshConfig(fsdp=-1)
mesh, rules = make_mesh(config), config.rules()
assert mesh.size == 4 and jax.process_count() == 2
rows = local_rows(8, mesh, rules)
assert sum(r.stop - r.start for r in rows) == 4, rows
whole = np.arange(24).reshape(8, 3)
batch = global_batch(lambda r: whole[r], 8, mesh, rules)
np.testing.assert_array_equal(multihost_utils.process_allgather(batch, tiled=True), whole)
print("ROWS", rows, int(jax.jit(lambda x: x.sum())(batch)))
"""


def test_two_processes_load_their_own_rows(two_processes):
    results = two_processes(PROGRAM)
    lines = [next(x for x in out.splitlines() if x.startswith("ROWS")) for out in results]
    assert "slice(0, 4" in lines[0] and "slice(4, 8" in lines[1]
    assert all(line.endswith(" 276") for line in lines)
