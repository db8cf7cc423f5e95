"""A model and a stream of a few lines, honest enough to learn and to be resumed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t5x_llm.parallel import MeshConfig, batch_sharding, make_mesh
from t5x_llm.train.feed import StreamFeed
from t5x_llm.train.state import Placement, TrainState
from t5x_llm.train.task import Measures

VOCAB, SOURCES = 32, ("en", "zh")
BY_SOURCE = ("loss_by_source", "tokens_by_source")
MEASURES = Measures("tokens", {BY_SOURCE[0]: BY_SOURCE[1]}, dict.fromkeys(BY_SOURCE, SOURCES))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyBatch:
    tokens: np.ndarray
    targets: np.ndarray
    source: np.ndarray


class ToyStream:
    """Rows are a pure function of their position."""

    def __init__(self, length=16, fail_at=None):
        self.length, self.fail_at = length, fail_at
        self.asked = []

    def at(self, data):
        return self

    def batch(self, position, size, rows=None):
        self.asked.append((position, size))
        if self.fail_at is not None and position >= self.fail_at:
            raise OSError("the disk is gone")
        rows = rows or slice(0, size)
        index = np.arange(position + rows.start, position + rows.stop)
        rng = [np.random.default_rng(int(i)) for i in index]
        text = np.stack([r.integers(0, VOCAB, self.length + 1) for r in rng]).astype(np.int32)
        text[:, 1::2] = (text[:, :-1:2] + 1) % VOCAB
        return ToyBatch(text[:, :-1], text[:, 1:], (index % 2).astype(np.int32))


tx = optax.adamw(optax.constant_schedule(1e-2))


def init(seed=0):
    params = {"table": jax.random.normal(jax.random.key(seed), (VOCAB, VOCAB)) * 0.1}
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def loss(params, batch):
    logits = params["table"][batch.tokens]
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets), -1)


@functools.partial(jax.jit, donate_argnums=0)
def step(state, batch):
    tokens = jnp.float32(batch.tokens.size)

    def mean(params):
        nll = loss(params, batch)
        return jnp.sum(nll) / tokens, nll

    (value, nll), grads = jax.value_and_grad(mean, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    rows = jnp.full(batch.source.shape, batch.tokens.shape[1], jnp.float32)
    metrics = {
        "loss": value,
        "z_loss": jnp.float32(0),
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": jnp.float32(1e-2),
        "tokens": tokens,
        "loss_by_source": jax.ops.segment_sum(nll, batch.source, len(SOURCES)),
        "tokens_by_source": jax.ops.segment_sum(rows, batch.source, len(SOURCES)),
    }
    return TrainState(
        state.step + 1, optax.apply_updates(state.params, updates), opt_state
    ), metrics


def one_mesh():
    config = MeshConfig()
    return make_mesh(config, jax.devices()[:1]), config.rules()


def feed(stream, size_at, depth=2):
    """Batches of a ``ToyStream`` on one device."""
    mesh, rules = one_mesh()
    batch = ToyBatch(*(batch_sharding(mesh, rules, n) for n in (2, 2, 1)))
    return StreamFeed(stream, size_at, Placement(mesh, rules, None, batch), depth)
