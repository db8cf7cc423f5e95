"""What the zoo's tests share: weights that both sides make from names, prompts, golden files."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import types
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from zoo_cases import CASES

from t5x_llm.core.dtypes import Policy
from t5x_llm.hf.import_ import family_of
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import from_hf, to_hf

GOLDEN = pathlib.Path(__file__).parent / "golden"
LENGTH, STRIDE, CUT = 512, 8, 200
# A rate at which no loss jumps: at 1e-2 rows in another order on one device differ as much as eight
# devices do (BLOOM 6e-3), at this rate by 4e-7.
RATE = 3e-3
RECURRENT = ("mamba", "mamba2", "falcon_mamba", "jamba", "rwkv", "ttt")


def tolerance(name: str) -> float:
    """Largest difference of a logit."""
    return 2e-4 if CASES[name]["model_type"] in RECURRENT else 1e-4


def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 weights of tensor ``name``: wide enough that every part moves the logits.

    Scales of norms lie about one; decays and steps of recurrences where their inits put them.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    noise = rng.normal(size=shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "time_decay":
        return rng.uniform(-5, 1, shape).astype(np.float32)
    if leaf == "A_log":
        return np.log(rng.uniform(1, 4, shape)).astype(np.float32)
    if leaf in ("time_mix_key", "time_mix_value", "time_mix_receptance"):
        return rng.uniform(0, 1, shape).astype(np.float32)
    if name.endswith(("dt_proj.bias", "['step_bias']")) or leaf == "dt_bias":
        return rng.uniform(-4, -1, shape).astype(np.float32)
    if len(shape) < 2:
        centre = 0.0 if "bias" in leaf else 1.0
        return (centre + 0.1 * noise).astype(np.float32)
    return (0.8 * noise / math.sqrt(min(shape[-1], 32))).astype(np.float32)


def tokens(seed: int = 1, length: int = LENGTH, vocab: int = 64) -> np.ndarray:
    """[length] int32."""
    return np.random.default_rng(seed).integers(0, vocab, length).astype(np.int32)


def segments() -> tuple[np.ndarray, np.ndarray]:
    """Two documents in a row of LENGTH, cut at CUT: segment ids and positions, each [1, LENGTH]."""
    ids = np.where(np.arange(LENGTH) < CUT, 1, 2).astype(np.int32)
    positions = np.where(ids == 1, np.arange(LENGTH), np.arange(LENGTH) - CUT).astype(np.int32)
    return ids[None], positions[None]


def hf_shapes(family: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of a family's tensors, by HF name."""
    abstract = Model(family.decoder()).abstract_params()
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), abstract)
    return {name: make().shape for name, make in to_hf(family.weight_map(), zeros)}


@functools.cache
def model(name: str) -> tuple[Any, Model, dict[str, Any]]:
    """Our family, its model in float32, and its parameters."""
    family = family_of(CASES[name])
    made = Model(family.decoder(), Policy(compute="float32"))
    abstract = made.abstract_params()
    shapes = hf_shapes(family)
    return family, made, from_hf(family.weight_map(), abstract, lambda n: array(n, shapes[n]))


@functools.lru_cache(maxsize=4)
def run(made: Model) -> Any:
    """(params, tokens [1, T], segment_ids, positions) -> logits [T, V], compiled once a length."""

    @jax.jit
    def forward(params: Any, ids: Any, segment_ids: Any, positions: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            hidden, _ = made.apply(params, ids, segment_ids=segment_ids, positions=positions)
            return made.logits(params, hidden)[0]

    def one_document(params: Any, ids: Any, segment_ids: Any = None, positions: Any = None) -> Any:
        if segment_ids is None:
            segment_ids = np.ones_like(ids)
            positions = np.arange(ids.shape[1], dtype=np.int32)[None]
        return forward(params, ids, segment_ids, positions)

    return one_document


def batch_of(rows: np.ndarray, **changes: Any) -> Any:
    """What Model.loss reads, for rows [B, T + 1] of one document each."""
    shape = (rows.shape[0], rows.shape[1] - 1)
    fields = dict(
        tokens=rows[:, :-1],
        targets=rows[:, 1:],
        positions=np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
        segment_ids=np.ones(shape, np.int32),
        loss_mask=np.ones(shape, np.float32),
    )
    return types.SimpleNamespace(**(fields | changes))


def mean_loss(name: str) -> Any:
    """(params, row [T + 1]) -> mean next-token loss, for gradients; routers' losses left out."""
    family = model(name)[0]
    if hasattr(family, "balance_weight"):
        family = dataclasses.replace(family, balance_weight=0.0)
    made = Model(family.decoder(), Policy(compute="float32"))

    def loss(params: Any, row: Any) -> Any:
        batch = batch_of(row[None])
        return made.loss(params, batch)[0] / batch.tokens.size

    return loss


def nearby(family: Any, params: Any, count: int = 8) -> Iterator[Any]:
    """Gives parameters, and for units of max(x, 0) the same moved by float32's rounding.

    The gradient of such a unit jumps where its input passes 0. An input within rounding of 0 is on
    one side of it on one machine and on the other on another: golden figures are those of some
    point so near.
    """
    yield params
    if "'relu'" not in repr(family.decoder()):
        return
    leaves, structure = jax.tree.flatten(params)
    for k in range(count):
        keys = jax.random.split(jax.random.key(k), len(leaves))
        moved = [
            leaf * (1 + 4 * np.finfo(np.float32).eps * jax.random.normal(key, leaf.shape))
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        yield structure.unflatten(moved)


def assert_near_one(points: Iterable[list[tuple[str, float, float]]]) -> None:
    """Raises AssertionError unless one point's (name, observed, allowed) are all within bounds."""
    from close import assert_within  # which makers of golden files do not have on their path

    wrong = []
    for point in points:
        if all(observed <= allowed for _, observed, allowed in point):
            for name, observed, allowed in point:
                assert_within(observed, allowed, name)
            return
        wrong.append([(n, o, a) for n, o, a in point if not o <= a])
    raise AssertionError(f"no point nearby has the golden gradients: {wrong}")


def golden_differences(
    name: str, gradients: Iterable[tuple[str, np.ndarray]], tensors: dict[str, Any]
) -> list[tuple[str, float, float]]:
    """(tensor, observed, allowed) of gradients' norms and projections against golden ones."""
    found = []
    for hf, gradient in gradients:
        if (figures := tensors[hf][1]) is None:
            continue
        norm, projection = summary(hf, gradient)
        # Some are zero but for rounding: a key bias moves all scores of a query alike.
        size = figures[0]
        found.append((f"{name} {hf}", abs(norm - size), 1e-3 * size + 1e-6))
        allowed = 1e-3 * size * gradient.size**0.5 + 1e-5
        found.append((f"{name} {hf}", abs(projection - figures[1]), allowed))
    return found


def summary(name: str, gradient: np.ndarray) -> tuple[float, float]:
    """Norm of a gradient, and its product with a fixed direction."""
    direction = np.random.default_rng(zlib.crc32(name.encode())).normal(size=gradient.shape)
    wide = np.asarray(gradient, np.float64)
    return float(np.linalg.norm(wide)), float(np.sum(wide * direction))


def golden(name: str) -> dict[str, Any]:
    """A golden file: logits [T / STRIDE, V] whole and packed, loss, gradients and shapes."""
    found = dict(np.load(GOLDEN / f"{name}.npz"))
    found["tensors"] = json.loads(str(found["tensors"]))
    return found


def our_gradients(name: str, gradients: Any) -> dict[str, np.ndarray]:
    """Gradients by HF name."""
    family = model(name)[0]
    return {hf: make() for hf, make in to_hf(family.weight_map(), gradients)}


def train(name: str, devices: int, steps: int = 30) -> np.ndarray:
    """Losses of so many steps on shipped English text as bytes."""
    text = np.frombuffer(english(), np.uint8).astype(np.int32)
    rows = text[: steps * 8 * 65].reshape(steps, 8, 65)
    return losses(model(name)[0], map(batch_of, rows), devices)


def losses(family: Any, batches: Iterable[Any], devices: int) -> np.ndarray:
    """Losses of AdamW steps on batches (``Model.loss``) of bytes, data x fsdp x tensor."""
    import optax
    from steps import prepare

    from t5x_llm.data.batch import Batch
    from t5x_llm.optim import Optimizer, Schedule
    from t5x_llm.parallel import MeshConfig, make_mesh

    made = Model(dataclasses.replace(family, vocab_size=256).decoder(), Policy(compute="float32"))
    sizes = dict(data=2, fsdp=2, tensor=2) if devices == 8 else dict(data=1, fsdp=1, tensor=1)
    mesh_config = MeshConfig(**sizes)
    mesh, rules = make_mesh(mesh_config, jax.devices()[:devices]), mesh_config.rules()
    constant = Optimizer(schedule=Schedule("constant", RATE, warmup_steps=0))
    parts = prepare(made, constant, mesh, rules, tx=optax.adamw(RATE), sources=("a",))
    state, found = parts.init(), []
    for batch in batches:
        state, metrics = parts.step(state, Batch(**vars(batch), source=np.zeros(8, np.int32)))
        found.append(float(metrics["loss"]))
    return np.asarray(found)


@functools.cache
def english() -> bytes:
    """The first hundred shipped documents."""
    path = pathlib.Path(__file__).parents[2] / "data/quickstart/en_sotu.jsonl"
    with path.open() as file:
        text = "".join(json.loads(file.readline())["text"] for _ in range(100))
    return text.encode()
