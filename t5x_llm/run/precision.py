"""Describes what is computed in which dtype, and where 8-bit products gain no speed."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.slices import GENERATIONS, generation_of
from t5x_llm.models.model import Model

_FP8_GPU = 8.9  # compute capability of Ada; Hopper is 9.0
_KINDS = {
    "int8": "int8: activations, kernels, and gradients of activations",
    "fp8": "float8: activations and kernels e4m3, gradients of activations e5m2",
}


def describe_precision(
    policy: Policy, model: Model, devices: Sequence[jax.Device] | None = None
) -> str:
    """Describes a policy in lines of text.

    Args:
      policy: dtypes of the run.
      model: the model of the run.
      devices: devices of the mesh; None if they are not known.
    """
    lines = [f"parameters       {policy.params}", f"compute          {policy.compute}"]
    if not policy.quantized:
        return "\n".join(lines)
    kernels, total = model.quantized_kernels(), model.parameter_count()["total"]
    share = sum(kernels.values()) / total
    lines.append(f"linear layers    {_KINDS[policy.quantized]}")
    lines.append(f"                 {share:.1%} of the parameters: {', '.join(kernels)}")
    lines += [f"warning: {reason}" for reason in (no_faster(policy, devices),) if reason]
    return "\n".join(lines)


def no_faster_on(policy: Policy, generation: str) -> str | None:
    """Returns why ``Policy.quantized`` gains no speed on a TPU generation; None where it does."""
    kind, best = policy.quantized, GENERATIONS[generation].quantized
    if not kind or kind == best:
        return None
    other = f"{best!r} is" if best else "no 8-bit type is"
    return f"Policy.quantized = {kind!r} is no faster than bfloat16 on {generation}; {other}."


def no_faster(policy: Policy, devices: Sequence[jax.Device] | None) -> str | None:
    """Returns why ``Policy.quantized`` gains no speed on ``devices``; None where it may."""
    if not policy.quantized or devices is None:
        return None
    kind = policy.quantized
    first = devices[0]
    if first.platform == "cpu":
        return f"Policy.quantized = {kind!r} is for trying out on a CPU, slower than bfloat16."
    generation = generation_of(first.device_kind)
    if generation is not None:
        return no_faster_on(policy, generation)
    capability = getattr(first, "compute_capability", None)
    if kind == "fp8" and capability is not None and float(capability) < _FP8_GPU:
        return f"Policy.quantized = 'fp8' needs compute capability {_FP8_GPU}, not {capability}."
    return None
