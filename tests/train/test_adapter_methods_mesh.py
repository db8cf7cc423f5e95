"""Steps of adapters on a mesh of eight devices: those of one device, whatever the method."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from steps import prepare

from t5x_llm.core.dtypes import Policy
from t5x_llm.data.batch import Batch
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.model import Model
from t5x_llm.nn.adapters import roots
from t5x_llm.nn.adapters.adaptive import AdaLoRA
from t5x_llm.nn.adapters.prompting import Prefix, Prompt, PTuning
from t5x_llm.nn.adapters.residual import Bottleneck
from t5x_llm.nn.adapters.scaling import IA3
from t5x_llm.optim import Optimizer, Schedule
from t5x_llm.optim.rank_allocation import kept_ranks
from t5x_llm.parallel import MeshConfig, make_mesh
from t5x_llm.train.adapted import AdapterTask
from t5x_llm.train.task import LmTask

LLAMA = Llama(vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64)
OPTIMIZER = Optimizer("adamw", Schedule("constant", 1e-2, warmup_steps=0), eps=1e-2)
METHODS = {
    "AdaLoRA": AdaLoRA(rank=4, target_rank=2, final=1),
    "IA3": IA3(),
    "Bottleneck": Bottleneck(size=4, up_std=0.1),
    "Prefix": Prefix(3, std=0.5),
    "Prompt": Prompt(3, std=0.5),
    "PTuning": PTuning("deep", 3, hidden=8, std=0.5),
}


def batch(rows=8, length=32):
    """Rows of two segments and some padding."""
    text = np.random.default_rng(0).integers(0, 64, (rows, length + 1), dtype=np.int32)
    place = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    segments = np.where(place >= 28, 0, 1 + (place >= 12)).astype(np.int32)
    positions = (np.where(place >= 12, place - 12, place) * (segments > 0)).astype(np.int32)
    mask = ((segments > 0) & (place != 11)).astype(np.float32)
    source = np.arange(rows, dtype=np.int32) % 2
    return Batch(text[:, :-1], text[:, 1:], positions, segments, mask, source)


def trained(adapter, config, devices, steps=4, microbatches=1):
    """Metrics of each step, and the state after the last."""
    model = Model(LLAMA.decoder(), Policy(compute="float32"), adapter=adapter)
    task = AdapterTask(LmTask(model, 32, ("a", "b")), model, "float32")
    tx = OPTIMIZER.build(steps, task.trained_part(task.logical_axes()))
    mesh, rules = make_mesh(config, devices), config.rules()
    made = prepare(
        model, OPTIMIZER, mesh, rules, task=task, tx=adapter.optimizer(tx, steps),
        microbatches=microbatches,
    )  # fmt: skip
    state, metrics = made.init(), []
    rows = jax.device_put(batch(), made.placement.batch)
    for _ in range(steps):
        state, found = made.step(state, rows)
        metrics.append({name: np.asarray(x) for name, x in found.items()})
    return metrics, jax.device_get(state)


@pytest.mark.parametrize(
    "method",
    [m if m == "AdaLoRA" else pytest.param(m, marks=pytest.mark.extended) for m in METHODS],
)
def test_a_mesh_and_microbatches_change_rounding_alone(method):
    devices = jax.devices()
    alone, one = trained(METHODS[method], MeshConfig(), devices[:1])
    assert alone[-1]["loss"] < alone[0]["loss"]
    spread = MeshConfig(fsdp=2, tensor=2, data=2)
    for config, more in ((spread, devices[:8]), (MeshConfig(), devices[:1])):
        metrics, state = trained(METHODS[method], config, more, microbatches=2)
        for got, wanted in zip(metrics, alone, strict=True):
            for name in ("loss", "grad_norm", *(n for n in wanted if n == "adapter_penalty")):
                np.testing.assert_allclose(got[name], wanted[name], rtol=2e-4, err_msg=name)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
            state.params[roots.ADAPTER],
            one.params[roots.ADAPTER],
        )
        kept, wanted = kept_ranks(state.opt_state), kept_ranks(one.opt_state)
        jax.tree.map(np.testing.assert_array_equal, kept, wanted)
        assert sum(int(x.sum()) for x in kept.values()) == (28 if method == "AdaLoRA" else 0)
