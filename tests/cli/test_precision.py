"""What is said of 8-bit products: which kernels, and where they are no faster."""

import types

import jax
import pytest
from jax.experimental.pallas import tpu as pltpu

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.slices import GENERATIONS, generation_of
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.model import Model
from t5x_llm.run.precision import describe_precision, no_faster

CHIPS = {"v4": "v4", "v5e": "v5e", "v5p": "v5p", "v6e": "v6e", "v7x": "7x"}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_rates_are_those_of_pallas(generation):
    chip = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion(CHIPS[generation]), 1)
    rates = {"int8": chip.int8_ops_per_second, "fp8": chip.fp8_ops_per_second}
    fast = [kind for kind, rate in rates.items() if rate > 1.9 * chip.bf16_ops_per_second]
    assert fast == [kind for kind in (GENERATIONS[generation].quantized,) if kind]


def test_kinds_of_devices():
    kinds = "TPU v4", "TPU v5 lite", "TPU v5", "TPU v5p", "TPU v6 lite", "TPU7x", "NVIDIA H100"
    found = [generation_of(kind) for kind in kinds]
    assert found == ["v4", "v5e", "v5p", "v5p", "v6e", "v7x", None]


@pytest.mark.parametrize(
    ("kind", "platform", "device", "said"),
    [
        ("fp8", "tpu", "TPU v5 lite", "'fp8' is no faster than bfloat16 on v5e; 'int8' is."),
        ("int8", "tpu", "TPU7x", "'int8' is no faster than bfloat16 on v7x; 'fp8' is."),
        ("int8", "tpu", "TPU v4", "no 8-bit type is"),
        ("fp8", "gpu", "NVIDIA A100", "compute capability 8.9, not 8.0"),
        ("int8", "cpu", "cpu", "slower than bfloat16"),
        ("int8", "tpu", "TPU v5p", None),
        ("fp8", "tpu", "TPU7x", None),
        ("int8", "gpu", "NVIDIA A100", None),
        ("", "cpu", "cpu", None),
    ],
)
def test_where_it_is_no_faster(kind, platform, device, said):
    fields = dict(platform=platform, device_kind=device, compute_capability="8.0")
    reason = no_faster(Policy(quantized=kind), [types.SimpleNamespace(**fields)])
    assert reason is None if said is None else said in reason


def test_what_a_dry_run_says():
    model = Model(Llama(vocab_size=64, d_model=32, n_layers=2, n_heads=4, d_ff=64).decoder())
    text = describe_precision(Policy(quantized="fp8"), model, jax.devices())
    params = model.abstract_params()["group_0"]["block_0"]
    kernels = [*params["attention"].values(), *params["mlp"].values()]
    share = sum(k["kernel"].size for k in kernels) / model.parameter_count()["total"]
    assert f"{share:.1%} of the parameters" in text and "e5m2" in text and "warning" in text
    assert "attention.query" in text and "mlp.down" in text and "head" not in text
    assert describe_precision(Policy(), model).splitlines() == [
        "parameters       float32",
        "compute          bfloat16",
    ]
