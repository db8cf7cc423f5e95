"""Mesh axes, logical-axis rule tables, shardings, and joining the processes of a run."""

from t5x_llm.parallel.audit import Replicated, replicated_beyond
from t5x_llm.parallel.distributed import initialize
from t5x_llm.parallel.mesh import (
    MeshConfig,
    batch_sharding,
    dump_shardings,
    global_batch,
    local_rows,
    make_mesh,
    param_shardings,
    replicated,
)
from t5x_llm.parallel.pipeline import Pipeline
from t5x_llm.parallel.rules import (
    AXES,
    STRATEGIES,
    Context,
    Rules,
    check_divisible,
    compute_spec,
    constrain,
    current,
    mesh_axes,
    per_device,
    pieces,
    platform,
    resolve,
    strategy_rules,
    use,
    ways,
)

__all__ = [
    "AXES",
    "STRATEGIES",
    "Context",
    "MeshConfig",
    "Pipeline",
    "Replicated",
    "Rules",
    "batch_sharding",
    "check_divisible",
    "compute_spec",
    "constrain",
    "current",
    "dump_shardings",
    "global_batch",
    "initialize",
    "local_rows",
    "make_mesh",
    "mesh_axes",
    "param_shardings",
    "per_device",
    "pieces",
    "platform",
    "replicated",
    "replicated_beyond",
    "resolve",
    "strategy_rules",
    "use",
    "ways",
]
