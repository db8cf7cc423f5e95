"""Adapters of fused experts, as transformers 5 and peft keep them, by expert.

transformers 5 keeps all experts of a layer in two tensors, ``gate_up_proj`` [E, 2 F, D] and
``down_proj`` [E, D, F]. peft adapts those as parameters (``target_parameters``): A is [E r, in],
expert by expert; B is [out, r E], its columns by rank first. The wrapper of ``gate_up_proj`` lies
inside that of ``down_proj`` and is called ``base_layer``. Files of models still name one module an
expert, as does everything that serves them; peft turns those names into its own when it loads.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from t5x_llm.core.errors import CheckpointError
from t5x_llm.hf.peft.config import PeftConfig

_FUSED = re.compile(
    r"^(?P<head>base_model\.model\..+)\.mlp\.experts(?P<inner>\.base_layer)?"
    r"\.(?P<leaf>lora_A|lora_B)\.weight$"
)
_PREFIX = "base_model.model."
_MOST_EXPERTS = 4096


def unfused(
    config: PeftConfig, tensors: Mapping[str, np.ndarray]
) -> tuple[PeftConfig, dict[str, np.ndarray]]:
    """Config and tensors by name, those of fused experts replaced by one module an expert.

    Names become Mixtral's (``block_sparse_moe.experts.0.w1``), as its weight files have them.

    Raises:
      CheckpointError: the factors of fused experts do not fit together.
    """
    out: dict[str, np.ndarray] = {}
    resolved: dict[str, tuple[int, float]] = {}
    pairs: dict[tuple[str, bool], dict[str, np.ndarray]] = {}
    for key, array in tensors.items():
        if match := _FUSED.match(key):
            pairs.setdefault((match["head"], bool(match["inner"])), {})[match["leaf"]] = array
        else:
            out[key] = array
    for (head, inner), pair in pairs.items():
        single = len([p for p in config.parameters if p.endswith(("gate_up_proj", "down_proj"))])
        gated = inner or (single == 1 and any("gate_up" in p for p in config.parameters))
        scale, made = _by_expert(config, head, gated, pair)
        for key, array in made.items():
            if key.endswith(".lora_A.weight"):
                name = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
                resolved[name] = len(array), scale
        out |= made
    return dataclasses.replace(config, resolved=resolved), out


def _by_expert(
    config: PeftConfig, head: str, gated: bool, pair: Mapping[str, np.ndarray]
) -> tuple[float, dict[str, np.ndarray]]:
    name = f"{head}.mlp.experts.{'gate_up_proj' if gated else 'down_proj'}"
    if pair.keys() != {"lora_A", "lora_B"}:
        raise CheckpointError(f"{name}: has {', '.join(sorted(pair))} alone.")
    plain = name.removeprefix(_PREFIX)
    rank, scale = config.rank_of(plain), config.scale_of(plain)
    a, b = pair["lora_A"], pair["lora_B"]
    experts, rest = divmod(len(a), rank)
    if rest or b.shape[-1] != len(a) or not 1 <= experts <= _MOST_EXPERTS or b.shape[0] % 2:
        raise CheckpointError(
            f"{name}: factors of shapes {list(a.shape)} and {list(b.shape)} are not of experts of "
            f"rank {rank}."
        )
    a = a.reshape(experts, rank, a.shape[1])
    b = b.reshape(len(b), rank, experts).transpose(2, 0, 1)
    found: dict[str, np.ndarray] = {}
    for i in range(experts):
        one = f"{head}.block_sparse_moe.experts.{i}."
        if not gated:
            found |= _pair(f"{one}w2", a[i], b[i])
            continue
        half, cut = b.shape[1] // 2, rank // 2
        gate, up = b[i][:half], b[i][half:]
        # Two adapters made one are blocks: each has half of the ranks.
        if rank % 2 == 0 and not np.any(gate[:, cut:]) and not np.any(up[:, :cut]):
            found |= _pair(f"{one}w1", a[i][:cut], gate[:, :cut])
            found |= _pair(f"{one}w3", a[i][cut:], up[:, cut:])
        else:
            found |= _pair(f"{one}w1", a[i], gate) | _pair(f"{one}w3", a[i], up)
    return scale, found


def _pair(name: str, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
