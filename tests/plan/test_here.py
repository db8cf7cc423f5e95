"""Plans of this machine: the step that training compiles, and the reading of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.config import parse_flags
from t5x_llm.data.batch import Batch
from t5x_llm.parallel import make_mesh
from t5x_llm.plan.hlo import parse
from t5x_llm.plan.host import Rates, dot_flops, host_time, measured_rates, moved_bytes
from t5x_llm.run import session
from t5x_llm.run.assembled import assemble
from t5x_llm.run.config import load_run
from t5x_llm.run.data import OpenData

LOOPS, ROWS, WIDTH = 5, 32, 64


class Stream:
    """As much of a stream as the compilation of the step asks for."""

    sources, objective = ("a", "b", "c"), None

    def batch(self, position, size):
        ids = np.zeros((size, 256), np.int32)
        return Batch(ids, ids, ids, ids, ids.astype(np.float32), ids[:, 0], {})


def test_it_compiles_what_training_compiles(monkeypatch):
    """The same program to the letter, so that the compilation cache has one key for both."""
    run = load_run(parse_flags(["--gin_file=configs/recipes/quickstart.gin"]))[0]
    mesh = make_mesh(run.mesh, jax.devices()[:4])
    planned = assemble(run, mesh)
    wanted = planned.step.lower(*planned.arguments).as_text()
    asked = []
    monkeypatch.setattr(session, "Ahead", lambda step, *a: asked.append(step.lower(*a).as_text()))
    session.compile_ahead(assemble(run, mesh, OpenData(None, Stream())), None)
    assert asked == [wanted]


@functools.cache
def module():
    def layer(x, w):
        return jnp.tanh(x @ w), None

    def program(x, ws):
        return jax.lax.scan(layer, x, ws)[0]

    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
    ws = jax.ShapeDtypeStruct((LOOPS, WIDTH, WIDTH), jnp.float32)
    return parse(jax.jit(program).lower(x, ws).compile().as_text())


def test_products_and_bytes_are_counted():
    found = module()
    flops = sum(n * dot_flops(i, found) for i, n in found.scheduled())
    assert flops == LOOPS * 2 * ROWS * WIDTH * WIDTH
    moved = sum(n * moved_bytes(i, found) for i, n in found.scheduled())
    # Every layer reads its own weights (perhaps copies them first), not the whole stack.
    least = LOOPS * 4 * (WIDTH * WIDTH + 2 * ROWS * WIDTH)
    assert least <= moved < 4 * least


def test_the_slower_of_both_rates_counts():
    flops = LOOPS * 2.0 * ROWS * WIDTH * WIDTH
    assert host_time(module(), Rates(1e3, 1e30, 1e30)).total == pytest.approx(flops / 1e3)
    slow = host_time(module(), Rates(1e30, 1e3, 1e3)).total
    assert host_time(module(), Rates(1e30, 1e3, 2e3)).total == pytest.approx(slow / 2)


def test_rates_are_measured():
    ticks = iter(range(10**6))
    rates = measured_rates("float32", lambda: next(ticks), seconds=0)
    assert rates.flops == 2 * 1024**3 and rates.bandwidth == 64 * rates.cached
