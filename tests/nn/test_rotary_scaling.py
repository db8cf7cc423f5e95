"""Rotary frequencies by the length of the sequence, against transformers' own (make_rotary.py)."""

from __future__ import annotations

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.core.errors import ConfigError
from t5x_llm.hf.model_config import family_of
from t5x_llm.nn.positions import RotaryConfig, rotary_tables, sequence_lengths
from t5x_llm.nn.rotary_scaling import DynamicRotaryScaling, LongRotaryScaling

GOLDEN = json.loads((pathlib.Path(__file__).parent / "rotary_golden.json").read_text())


@pytest.mark.parametrize("case", GOLDEN)
@pytest.mark.parametrize("again", [False, True], ids=["read", "written"])
def test_frequencies_are_those_of_transformers(case, again):
    family = family_of(GOLDEN[case]["config"])
    if again:
        family = family_of(json.loads(json.dumps(family.to_hf_config())))
    (rotary,) = family.decoder().rotaries
    for length, factor, expected in GOLDEN[case]["rows"]:
        at, lengths = jnp.ones((1, 1), jnp.int32), jnp.full((1, 1), length, jnp.int32)
        cos, sin = (
            np.asarray(t[0, 0], np.float64) for t in rotary_tables(rotary, at, None, lengths)
        )
        np.testing.assert_allclose(np.arctan2(sin, cos), expected, rtol=2e-6, atol=1e-9)
        np.testing.assert_allclose(np.hypot(cos, sin), factor, rtol=1e-6)


def test_the_first_name_of_longrope():
    config = GOLDEN["longrope"]["config"]
    old = config | {"rope_scaling": config["rope_scaling"] | {"type": "su"}}
    assert family_of(old) == family_of(config)


def test_lengths_of_sequences():
    segments = jnp.asarray([[1, 1, 1, 2, 2, 0, 0], [7, 7, 7, 7, 7, 7, 3]], jnp.int32)
    positions = jnp.asarray([[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5, 0]], jnp.int32)
    found = sequence_lengths(positions, segments)
    np.testing.assert_array_equal(found, [[3, 3, 3, 2, 2, 1, 1], [6] * 6 + [1]])
    held = (jnp.asarray([[0, 1, 2, 3, 0]] * 2), jnp.asarray([[1, 1, 1, 1, 0], [2, 2, 2, 2, 0]]))
    found = sequence_lengths(jnp.full((2, 1), 4), jnp.ones((2, 1), jnp.int32), *held)
    np.testing.assert_array_equal(found, [[5], [5]])
    found = sequence_lengths(jnp.zeros((2, 1), jnp.int32), jnp.ones((2, 1), jnp.int32), *held)
    np.testing.assert_array_equal(found, [[4], [1]])  # a row of its own segment alone


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LongRotaryScaling((1.0,), (1.0, 2.0), 64, 1.0), "long"),
        (lambda: LongRotaryScaling((0.0,), (1.0,), 64, 1.0), r"short\[0\]"),
        (lambda: LongRotaryScaling((1.0,), (1.0,), 1, 1.0), "original_length"),
        (lambda: DynamicRotaryScaling(0.5, 64), "factor"),
        (
            lambda: RotaryConfig(1e4, 8, False, LongRotaryScaling((1.0,), (1.0,), 9, 1.0), False),
            "1 numbers.*4, one for each rotated pair",
        ),
        (lambda: RotaryConfig(1e4, 8, False, DynamicRotaryScaling(2.0, 9), True), "two_d"),
    ],
)
def test_scalings_that_cannot_be(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
