"""What the tests of encoders and encoder-decoders share; cases and inputs of their own."""

from __future__ import annotations

import functools
import json
import pathlib
import types
from typing import Any

import jax
import numpy as np
from zoo import array, english, hf_shapes, losses, tokens

from t5x_llm.core.dtypes import Policy
from t5x_llm.hf.import_ import family_of
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import from_hf

GOLDEN = pathlib.Path(__file__).parent / "golden_encoders"
LENGTH, TARGETS = 512, 64  # tokens of the encoder, of the decoder
CUT, TARGET_CUT = 200, 24  # where the second document begins

_T5 = {
    "model_type": "t5",
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "layer_norm_epsilon": 1e-3,
    "feed_forward_proj": "relu",
    "decoder_start_token_id": 3,
    "dropout_rate": 0.0,
}
_V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_BERT = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CASES: dict[str, dict[str, Any]] = {
    "t5": _T5,
    "t5_1_1": _T5 | _V1_1,
    "mt5": _T5 | _V1_1 | {"model_type": "mt5", "num_decoder_layers": 2},
    "bert": _BERT,
    "roberta": _BERT
    | {
        "model_type": "roberta",
        "max_position_embeddings": 520,
        "type_vocab_size": 1,
        "hidden_act": "relu",
        "pad_token_id": 5,
    },
}


def two_sided(name: str) -> bool:
    """Whether the case has a decoder."""
    return CASES[name]["model_type"] in ("t5", "mt5")


def stride(name: str) -> int:
    """One of so many rows of logits is kept."""
    return 2 if two_sided(name) else 8


def _packed(length: int, cut: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.where(np.arange(length) < cut, 1, 2).astype(np.int32)
    positions = np.where(ids == 1, np.arange(length), np.arange(length) - cut).astype(np.int32)
    return ids[None], positions[None]


def inputs(name: str, packed: bool = False, seed: int = 1) -> dict[str, np.ndarray]:
    """Arrays [1, ...] as ``Model.apply`` takes them, ``tokens`` among them: one document or two."""
    length = TARGETS if two_sided(name) else LENGTH
    given = {"tokens": tokens(seed + 8, length)[None]}
    if packed:
        cut = TARGET_CUT if two_sided(name) else CUT
        given["segment_ids"], given["positions"] = _packed(length, cut)
    if two_sided(name):
        given["encoder_tokens"] = tokens(seed, LENGTH)[None]
        if packed:
            ids, positions = _packed(LENGTH, CUT)
            given |= {"encoder_segment_ids": ids, "encoder_positions": positions}
    return given


def targets(name: str) -> tuple[np.ndarray, np.ndarray]:
    """[1, T] ids, and where they count: everywhere, or (masked LM) at every seventh place."""
    length = TARGETS if two_sided(name) else LENGTH
    counted = np.arange(length) % (1 if two_sided(name) else 7) == 0
    return tokens(77, length)[None], counted[None].astype(np.float32)


def batch(name: str) -> Any:
    """What ``Model.loss`` reads, of one document."""
    given, (goal, counted) = inputs(name), targets(name)
    ids = given.pop("tokens")
    return types.SimpleNamespace(
        tokens=ids,
        segment_ids=np.ones_like(ids),
        positions=np.arange(ids.shape[1], dtype=np.int32)[None],
        targets=goal,
        loss_mask=counted,
        extra=given,
    )


def mean_loss(name: str) -> Any:
    """(params) -> mean loss over the counted targets of ``batch``, for gradients."""
    made, rows = model(name)[1], batch(name)

    def loss(params: Any) -> Any:
        return made.loss(params, rows)[0] / rows.loss_mask.sum()

    return loss


@functools.cache
def model(name: str) -> tuple[Any, Model, dict[str, Any]]:
    """Our family, its model in float32, and its parameters."""
    family = family_of(CASES[name])
    made = Model(family.decoder(), Policy(compute="float32"))
    shapes = hf_shapes(family)
    read = lambda n: array(n, shapes[n])  # noqa: E731
    return family, made, from_hf(family.weight_map(), made.abstract_params(), read)


@functools.lru_cache(maxsize=8)
def forward(made: Model) -> Any:
    """(params, arrays of ``inputs``) -> logits [T, V]."""

    @jax.jit
    def run(params: Any, given: dict[str, Any]) -> Any:
        with jax.default_matmul_precision("highest"):
            hidden, _ = made.apply(params, **given)
            return made.logits(params, hidden)[0]

    return run


def train(name: str, devices: int, steps: int = 30) -> np.ndarray:
    """Losses on shipped English as bytes: 32 from the 32 before them, or every fifth of 64."""
    text = np.frombuffer(english(), np.uint8).astype(np.int32)
    rows = text[: steps * 8 * 64].reshape(steps, 8, 64)
    return losses(model(name)[0], map(_two_sides if two_sided(name) else _masked, rows), devices)


def _two_sides(rows: np.ndarray) -> Any:
    """Two documents a row, of 20 and 12 bytes on either side."""
    left, right = rows[:, :32], rows[:, 32:]
    (ids, positions) = (np.broadcast_to(x, left.shape) for x in _packed(32, 20))
    extra = {"encoder_tokens": left, "encoder_segment_ids": ids, "encoder_positions": positions}
    return types.SimpleNamespace(
        tokens=np.where(positions == 0, 0, np.roll(right, 1, axis=1)),
        segment_ids=ids,
        positions=positions,
        targets=right,
        loss_mask=np.ones(left.shape, np.float32),
        extra=extra,
    )


def _masked(rows: np.ndarray) -> Any:
    """Two documents a row; every fifth byte is zero."""
    (ids, positions) = (np.broadcast_to(x, rows.shape) for x in _packed(64, 40))
    hidden = positions % 5 == 2
    return types.SimpleNamespace(
        tokens=np.where(hidden, 0, rows),
        segment_ids=ids,
        positions=positions,
        targets=rows,
        loss_mask=hidden.astype(np.float32),
    )


def golden(name: str) -> dict[str, Any]:
    """A golden file: some logits [rows, V] whole and packed, loss, gradients and shapes."""
    found = dict(np.load(GOLDEN / f"{name}.npz"))
    found["tensors"] = json.loads(str(found["tensors"]))
    return found
