"""Writes tests/nn/rotary_golden.json from transformers. Run it in the parity environment only:

    .venv-parity/bin/python tests/parity/make_rotary.py

Each case is the rotary part of a config.json, the length of a sequence, and what transformers turns
one position by at that length: the frequencies [dim / 2] and the factor on cosines and sines.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

OUT = pathlib.Path(__file__).parents[1] / "nn" / "rotary_golden.json"
SHORT = [1.0, 1.1, 1.25, 1.4, 1.6, 2.0, 2.5, 3.0]
LONG = [1.05, 1.5, 2.5, 5.0, 9.0, 17.0, 30.0, 60.0]
LENGTHS = (1, 64, 65, 100, 256, 1000)
PHI = dict(model_type="phi3", max_position_embeddings=512, original_max_position_embeddings=64)
LLAMA = dict(model_type="llama", max_position_embeddings=64)
LISTS = dict(short_factor=SHORT, long_factor=LONG)
CASES: dict[str, dict[str, Any]] = {
    "longrope": PHI | dict(rope_scaling=dict(type="longrope", **LISTS)),
    "longrope_theta": PHI | dict(rope_theta=500.0, rope_scaling=dict(type="longrope", **LISTS)),
    "longrope_partial": PHI
    | dict(
        partial_rotary_factor=0.75,
        rope_scaling=dict(type="longrope", short_factor=SHORT[:6], long_factor=LONG[:6]),
    ),
    "longrope_factor": LLAMA
    | dict(
        rope_scaling=dict(rope_type="longrope", factor=8.0, **LISTS), max_position_embeddings=64
    ),
    "longrope_attention": PHI
    | dict(rope_scaling=dict(type="longrope", attention_factor=1.5, **LISTS)),
    "longrope_no_longer": PHI
    | dict(rope_scaling=dict(type="longrope", **LISTS), max_position_embeddings=64),
    "dynamic": LLAMA | dict(rope_scaling=dict(type="dynamic", factor=2.0)),
    "dynamic_one": LLAMA | dict(rope_scaling=dict(type="dynamic", factor=1.0)),
    "dynamic_theta": LLAMA | dict(rope_theta=1e6, rope_scaling=dict(type="dynamic", factor=4.0)),
    "linear": LLAMA | dict(rope_scaling=dict(type="linear", factor=4.0)),
    "yarn": LLAMA
    | dict(rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32)),
    "yarn_absent": LLAMA | dict(rope_scaling=dict(type="yarn", factor=4.0)),
    "llama3": LLAMA
    | dict(
        rope_scaling=dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        )
    ),
    "both_tables": LLAMA
    | dict(
        rope_scaling=dict(type="linear", factor=4.0),
        rope_parameters=dict(rope_type="dynamic", factor=2.0),
    ),
}
SIZES = dict(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=40,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    pad_token_id=0,
)


def main() -> None:
    """Writes the file."""
    found = {}
    for name, fields in CASES.items():
        given = json.loads(json.dumps(SIZES | fields))
        kind = transformers.AutoConfig.for_model(given.pop("model_type"), **given)
        compute = ROPE_INIT_FUNCTIONS[kind.rope_parameters["rope_type"]]
        rows = []
        for length in LENGTHS:
            frequencies, factor = compute(kind, "cpu", seq_len=length)
            rows.append([length, float(factor), [float(x) for x in frequencies]])
        found[name] = {"config": SIZES | fields, "rows": rows}
    OUT.write_text(json.dumps(found, indent=None, separators=(",", ":")).replace("}},", "}},\n"))


if __name__ == "__main__":
    main()
