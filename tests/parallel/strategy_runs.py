"""Tiny models and one step of training on a mesh: what tests of strategies compare and count."""

import collections
import dataclasses
import functools

import jax
import numpy as np
from steps import prepare

from t5x_llm.core.dtypes import Policy
from t5x_llm.data.batch import Batch
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.families.mamba import Mamba
from t5x_llm.models.families.mixtral import Mixtral
from t5x_llm.models.model import Model
from t5x_llm.optim import Optimizer, Schedule
from t5x_llm.parallel import MeshConfig, make_mesh
from t5x_llm.plan.collectives import collectives
from t5x_llm.plan.hlo import parse

VOCAB, ROWS, LENGTH = 64, 8, 64
SIZES = dict(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64)
FAMILIES = {
    "dense": Llama(**SIZES),
    "moe": Mixtral(**SIZES, n_experts=4, top_k=2, balance_weight=0.01),
    "mamba": Mamba(vocab_size=VOCAB, d_model=32, n_layers=2, dt_rank=4, tied=False),
}
# Adam divides the rounding of a tiny gradient by itself; not so with this eps.
FLOAT32 = Policy(compute="float32")
OPTIMIZER = Optimizer("adamw", Schedule("constant", 1e-2, warmup_steps=0), eps=1e-2)


def make_batch(rows=ROWS, length=LENGTH):
    """Packed rows of two segments, each row cut elsewhere, with padding at the end."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, VOCAB, (rows, length + 1), dtype=np.int32)
    place = np.arange(length, dtype=np.int32)
    cut, end = rng.integers(5, length // 2, (rows, 1)), rng.integers(length - 6, length, (rows, 1))
    segments = np.where(place >= end, 0, 1 + (place >= cut)).astype(np.int32)
    positions = np.where(place >= cut, place - cut, place) * (segments > 0)
    mask = ((segments > 0) & (place != cut - 1)).astype(np.float32)
    source = np.arange(rows, dtype=np.int32) % 2
    return Batch(text[:, :-1], text[:, 1:], positions.astype(np.int32), segments, mask, source)


@dataclasses.dataclass
class Trained:
    """What a step on a mesh gives, and how it is compiled."""

    params: dict
    moments: dict  # the first one is a tenth of the gradients
    metrics: dict
    text: str
    mesh: dict

    @functools.cached_property
    def collectives(self):
        return collectives(parse(self.text), self.mesh)

    @property
    def kinds(self):
        """(kind, axes) to how often a step has it; scalars and the like do not count."""
        count = collections.Counter()
        for one in self.collectives:
            if one.bytes > 256:
                count[one.kind, one.axes] += one.times
        return dict(count)


def prepared(
    config,
    family,
    devices=None,
    microbatches=1,
    remat="none",
    optimizer=OPTIMIZER,
    policy=FLOAT32,
):
    """The step, with its parts."""
    mesh, rules = make_mesh(config, devices), config.rules()
    config = family.decoder() if hasattr(family, "decoder") else family
    model = Model(config, policy, remat)
    return prepare(model, optimizer, mesh, rules, microbatches=microbatches, z_loss=1e-3)


def train(config, family, devices=None, batch=None, whole=None, **options):
    """One step, compiled once for running and reading; ``whole`` brings a tree to the host."""
    parts = prepared(config, family, devices, **options)
    batch = make_batch() if batch is None else batch
    compiled = parts.step.lower(parts.abstract(), batch).compile()
    after, metrics = compiled(parts.init(), jax.device_put(batch, compiled.input_shardings[0][1]))
    tree = after.params, after.opt_state[1][0].mu, metrics
    tree = jax.tree.map(np.asarray, tree if whole is None else whole(tree))
    return Trained(*tree, compiled.as_text(), dict(parts.mesh.shape))


@functools.cache
def on_one_device(name):
    """The reference."""
    return train(MeshConfig(), FAMILIES[name], jax.devices()[:1])


def assert_same(got, expected):
    """Losses, gradients, parameters."""
    for key, value in expected.metrics.items():
        np.testing.assert_allclose(got.metrics[key], value, rtol=2e-5, atol=1e-6, err_msg=key)
    for tree in ("moments", "params"):
        flat = jax.tree_util.tree_leaves_with_path(getattr(expected, tree))
        for (path, a), b in zip(flat, jax.tree.leaves(getattr(got, tree)), strict=True):
            name = f"{tree}{jax.tree_util.keystr(path)}"
            np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-6, err_msg=name)
