"""Absent and null fields of config.json mean here what they mean to transformers' own classes.

A field is taken out of a small config, or made null, and read twice: as it is, and as transformers'
class writes it with every default filled in. Both must be one model.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any

import numpy as np
import pytest
from zoo import CASES

from t5x_llm.core.errors import ConfigError
from t5x_llm.hf.model_config import family_of
from t5x_llm.models.families import FAMILIES
from t5x_llm.models.hf_config import UnknownField

auto = pytest.importorskip("transformers.models.auto.configuration_auto")

KNOWN = [t for t in FAMILIES if t in auto.CONFIG_MAPPING_NAMES]
# Refusals that name what is wrong with the file, whatever transformers takes.
NAMED = ("unknown", "the field is missing", "contradicts itself")


def filled(config: dict[str, Any]) -> dict[str, Any] | None:
    """The config as transformers' class writes it in full; None where it refuses it."""
    kind = auto.CONFIG_MAPPING[config["model_type"]]
    given = json.loads(json.dumps({k: v for k, v in config.items() if k != "model_type"}))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return json.loads(json.dumps(kind(**given).to_dict()))
    except Exception:
        return None


def read(config: dict[str, Any]) -> Any:
    """What a config means: its decoder, and the length that is recorded."""
    family = family_of(config)
    return family.decoder(), getattr(family, "max_length", None)


def attempt(config: dict[str, Any]) -> Any:
    """What a config means, or why it is refused."""
    try:
        return read(config)
    except UnknownField:
        return "unknown"
    except ConfigError as e:
        told = ("the field is missing", "contradicts itself")
        return next((words for words in told if words in str(e)), str(e))


def check(config: dict[str, Any], changed: str) -> str:
    """'' if both readings are one model or both sides refuse; else what differs."""
    full = filled(config)
    if full is None:
        return ""
    found, expected = attempt(config), attempt(full)
    if isinstance(found, str) or isinstance(expected, str):
        both = isinstance(found, str) and isinstance(expected, str)
        told = found in NAMED or expected in NAMED
        return "" if both or told else f"{changed}: {str(found)[:200]} / {str(expected)[:200]}"
    if found == expected:
        return ""
    parts = [
        f"{f.name}: {getattr(found[0], f.name)} != {getattr(expected[0], f.name)}"
        for f in dataclasses.fields(found[0])
        if getattr(found[0], f.name) != getattr(expected[0], f.name, None)
    ]
    return f"{changed}: {'; '.join(parts)[:400]} {found[1:]} {expected[1:]}"


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "qwen2_moe", "qwen3_moe"])
def test_windows_of_some_layers(name):
    """Which layers have the window where the layers are not listed."""
    left_out = ("layer_types", "sliding_window", "max_window_layers")
    config = {k: v for k, v in CASES[name].items() if k not in left_out}
    config |= {"use_sliding_window": True, "num_hidden_layers": 5}
    window, first = {"sliding_window": 100}, {"max_window_layers": 3}
    for more in ({}, window, first, window | first):
        assert not check(config | more, str(more))
    sliding = {"qwen2": [3, 4], "qwen3": [3, 4], "qwen2_moe": [0, 2], "qwen3_moe": [0, 1, 2, 3, 4]}
    family = family_of(config | window | first)
    found = [i for i, kind in enumerate(family.layer_types) if kind == "sliding_attention"]
    assert found == sliding[name] and family.window == 100


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c["model_type"] in KNOWN])
def test_fields_left_out_or_null(name):
    config = CASES[name]
    faults = [check(config, "as it is")]
    for field in config:
        # transformers 5 forgets attn_config.rope_theta, which DBRX's own code and transformers 4
        # read; only where both say the same is it one model.
        if field == "model_type" or (name, field) == ("dbrx", "rope_parameters"):
            continue
        rest = {k: v for k, v in config.items() if k != field}
        faults.append(check(rest, f"without {field}"))
        faults.append(check(config | {field: None}, f"{field} = null"))
        inner = config[field]
        if isinstance(inner, dict):
            for key in inner:
                less = {k: v for k, v in inner.items() if k != key}
                faults.append(check(config | {field: less}, f"without {field}.{key}"))
                faults.append(check(config | {field: inner | {key: None}}, f"{field}.{key} = null"))
    rng = np.random.default_rng(0)
    for _ in range(4):
        kept = [k for k in config if k in ("model_type", "rope_parameters") or rng.random() < 0.5]
        faults.append(check({k: config[k] for k in kept}, f"only {kept}"))
    assert not [fault for fault in faults if fault]
