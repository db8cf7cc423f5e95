"""Joining the processes of one run, before any device is touched."""

from __future__ import annotations

import glob
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import jax

from t5x_llm.core.errors import ConfigError

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# A silent process counts as dead after so long; JAX's coordinator then ends all the others.
HEARTBEAT_SECONDS = 100
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")


def initialize(environ: Mapping[str, str] | None = None) -> bool:
    """Joins the other processes of this run, if there are any; call it first thing in a program.

    Explicit: ``JAX_COORDINATOR_ADDRESS`` (host:port), ``JAX_NUM_PROCESSES``, ``JAX_PROCESS_ID``.
    Else JAX's own detection on Cloud TPU, Slurm and Open MPI. Nothing happens on one process.

    Args:
      environ: the environment variables; the process's own if None.

    Returns:
      Whether ``jax.distributed`` is up.

    Raises:
      ConfigError: if the variables are incomplete or are not numbers.
    """
    env = os.environ if environ is None else environ
    if jax.distributed.is_initialized():
        return True
    given = [name for name in _VARIABLES[1:] if env.get(name)]
    if given:
        for name in _VARIABLES:
            if not env.get(name):
                raise ConfigError(
                    name, env.get(name), f"a value, as {given[0]} is set", "Set all three or none."
                )
        count, index = (_integer(env, name) for name in _VARIABLES[1:])
        if not 0 <= index < count:
            raise ConfigError("JAX_PROCESS_ID", index, f"at least 0 and below {count} processes")
        if count == 1:
            return False
        _join(coordinator_address=env[_VARIABLES[0]], num_processes=count, process_id=index)
        return True
    if not _detectable(env):
        return False
    _join()
    return True


def _join(**group: Any) -> None:
    # JAX would take SIGTERM for itself and do nothing about it; ``train.signals`` listens.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(**group, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def _integer(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise ConfigError(name, env[name], "an integer") from None


def _detectable(env: Mapping[str, str]) -> bool:
    """Returns True where the environment is that of one process of a managed group.

    JAX's own detection fails where it is not.
    """
    if env.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return False
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in hosts or env.get("MEGASCALE_COORDINATOR_ADDRESS"):
        return True
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    if (
        not hosts
        and chips
        and importlib.util.find_spec("libtpu")
        and not env.get("TPU_SKIP_MDS_QUERY")
    ):
        return True
    slurm = all(name in env for name in _SLURM) and int(env.get("SLURM_NTASKS", "1")) > 1
    return slurm or int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
