"""Every number that gin can bind works, or is refused under the name of a field that can be bound.

Numbers that cannot be meant (2^63, 23 digits, infinity, what float32 makes 0 of) are refused.
"""

from __future__ import annotations

import math
import types
import typing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from t5x_llm import api
from t5x_llm.config import parameters, registered
from t5x_llm.core.errors import FLOAT32_TINY, ConfigError
from t5x_llm.models.families import FAMILIES
from t5x_llm.parallel import make_mesh
from t5x_llm.run.checks import check_fits

ROOT = Path(__file__).parents[2]
VALUES = (
    *(0, -1, 1, 3, 2**31, 2**63 - 1, 2**63, 10**22 + 1, 1e999, -1e999, 1e308, -0.5, 0.5),
    *(1e-320, 1e30),
)
NEVER = [v for v in VALUES if abs(v) > 2**63 - 1 and v != 1e30 or 0 < abs(v) < FLOAT32_TINY]
BASE = {
    "Run.directory": "nowhere", "Data.store_dir": "nowhere", "Data.tokenizer": "bytes",
    "Data.mixture": "@Mixture()", "Mixture.sources": ("@s/Source()",), "s/Source.name": "s",
    "s/Source.files": "nowhere.jsonl", "Loop.steps": 8, "Loop.batch_size": 8,
    "Loop.sequence_length": 32, "Loop.ramp": "@BatchRamp()",
    "BatchRamp.stages": ((0, 4), (16, 8)), "Run.embed_gradient": "@Piecewise()",
    "Piecewise.points": ((0, 0.5),),
}  # fmt: skip
OF_LLAMA = {"Run.stability": "@Stability()"}
MORE = {
    "TokenizerTraining": {
        "Data.tokenizer": "@TokenizerTraining()", "TokenizerTraining.vocab_size": 512,
    },
    "RotaryScaling": {"Llama.rope_scaling": "@RotaryScaling()"},
    "Chat": {"Data.chat": "@Chat()", "s/Source.kind": "chat", "Chat.template": "vicuna"},
    "Prompts": {
        "s/Source.prompts": "@Prompts()", "s/Source.kind": "chat", "Chat.template": "vicuna",
        "Data.chat": "@Chat()", "Prompts.templates": (("{a}", "{b}"),),
    },
    "Pipeline": {"MeshConfig.pipeline": "@Pipeline()"},
    "Federated": {"Run.federated": "@Federated()"},
    **{
        name: {"Run.adapter": f"@{name}()", "Run.start_from": "nowhere"}
        for name in ("LoRA", "AdaLoRA", "Bottleneck", "Prefix", "Prompt", "PTuning")
    },
}  # fmt: skip


def is_number(hint):
    parts = typing.get_args(hint)
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return hint in (int, float) or (union and any(map(is_number, parts)))


def model_files():
    """{family: the first shipped file of it}."""
    found = {}
    for path in sorted((ROOT / "configs" / "models").rglob("*.gin")):
        text = path.read_text("utf-8")
        for family in FAMILIES.values():
            if f"@{family.__name__}()" in text:
                found.setdefault(family.__name__, str(path))
    return found


FILES = model_files()
FAMILY_NAMES = {family.__name__ for family in FAMILIES.values()}
FIELDS = [
    (name, field)
    for name, target in registered().items()
    if name not in FAMILY_NAMES or name in FILES
    for field, spec in parameters(target).items()
    if is_number(spec.hint)
]
BINDABLE = {
    f"{name}.{field}" for name, target in registered().items() for field in parameters(target)
}


def outcome(name, field, value):
    """'works', or the refused field; anything else that is raised is the test's failure."""
    files, lines = ["configs/models/llama/quickstart.gin", "configs/meshes/local.gin"], dict(BASE)
    if name in FAMILY_NAMES:
        files[0] = FILES[name]
        del lines["Run.embed_gradient"], lines["Piecewise.points"]
    else:
        lines |= OF_LLAMA
    lines |= MORE.get(name, {})
    written = [*api_lines(lines), f"{name}.{field} = {value!r}".replace("inf", "1e999")]
    try:
        run = api.load_run(*files, bindings=written).config
        run.decoder()
        check_fits(run, make_mesh(run.mesh))
    except ConfigError as e:
        return e.field.partition("[")[0].partition(" ")[0].rpartition("/")[2]
    return "works"


def api_lines(lines):
    from t5x_llm.run.resolved import binding_lines

    return binding_lines(lines)


def check(name, field, value):
    found = outcome(name, field, value)
    assert found == "works" or found in BINDABLE, (name, field, value, found)
    if value in NEVER and not (value == 10**22 + 1 and math.isfinite(float(value))):
        assert found != "works", (name, field, value)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(FIELDS), st.sampled_from(VALUES))
@example(("Loop", "steps"), 2**63)
@example(("Loop", "seed"), 10**22 + 1)
@example(("Schedule", "peak"), 1e999)
@example(("GPTNeo", "n_layers"), 2**31)
@example(("GPTNeoX", "rotary_fraction"), 1e308)
@example(("Llama", "n_heads"), 0)
@example(("Falcon", "n_kv_heads"), 3)
def test_absurd_numbers_work_or_are_refused_by_name(place, value):
    check(*place, value)


@pytest.mark.extended
@pytest.mark.parametrize("name", sorted({name for name, _ in FIELDS}))
def test_every_number_of(name):
    for place in FIELDS:
        for value in VALUES if place[0] == name else ():
            check(*place, value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("Run.directory", "", "path of a directory"),
        ("Run.directory", "s3://bucket/run", "a local path or gs://"),
        ("Run.start_from", "hf://org/name", "a local path or gs://"),
        ("Evaluation.baseline", "s3://bucket/run", "a local path or gs://"),
        ("Data.tokenizer", "s3://bucket/tokenizer", "a local path or gs://"),
        ("CheckpointConfig.allow_changes", ("Loop.sed",), "Did you mean 'Loop.seed'"),
        ("CheckpointConfig.allow_changes", ("Schedul",), "Did you mean 'Schedule'"),
        ("CheckpointConfig.allow_changes", ("sede",), "names of fields"),
        ("Loop.sequence_length", 4096, "Llama.max_length = "),
        ("Loop.seed", 2**32, "at most 4294967295"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_remedy(field, value, words):
    files = ["configs/models/llama/quickstart.gin", "configs/meshes/local.gin"]
    with pytest.raises(ConfigError) as e:
        api.load_run(*files, bindings=BASE | OF_LLAMA | {field: value})
    assert e.value.field == field and words in str(e.value)


def test_allowed_changes_are_named_as_gin_binds_them():
    files = ["configs/models/llama/quickstart.gin", "configs/meshes/local.gin"]
    names = (
        *("Loop.seed", "seed", "Schedule", "Schedule.peak", "s/Source.files", "Llama.d_model"),
        *("optim.schedule.Schedule.peak", "data"),
    )
    run = api.load_run(*files, bindings=BASE | {"CheckpointConfig.allow_changes": names})
    assert run.config.checkpoint.allow_changes == names
