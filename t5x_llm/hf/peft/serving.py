"""Rules of the programs that serve adapters, to be checked before one is trained.

vLLM (vllm/lora/peft_helper.py): LoRA of rank 512 at most, no DoRA, no whole modules, no biases, and
one rank and alpha for all modules. llama.cpp (convert_lora_to_gguf.py): LoRA alone, no DoRA, the
scale alpha / rank.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from t5x_llm.core.errors import ConfigError, check_choice
from t5x_llm.hf.peft.config import PeftConfig

SERVERS = ("peft", "vllm", "gguf")
FIELD = "Export.adapter_for"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of --max-lora-rank
_NO_PEFT = "Merging is impossible too, as it is a layer of its own: keep the run."


def check_servers(servers: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the names as a tuple; raises ConfigError unless each is a server."""
    names = (servers,) if isinstance(servers, str) else tuple(servers)
    for name in names:
        check_choice(FIELD, name, SERVERS)
    return names


def check_adapter_for(servers: Sequence[str], kind: str, rank: int, dora: bool) -> None:
    """Raises ConfigError, with the remedy, if a server could not load an adapter.

    Args:
      servers: names of ``SERVERS``.
      kind: PEFT's name of the method, or 'BOTTLENECK'.
      rank: of low rank methods.
      dora: whether rows have magnitudes.
    """
    check_servers(servers)
    if servers and kind == "BOTTLENECK":
        raise ConfigError(FIELD, tuple(servers), "() for bottleneck adapters", _NO_PEFT)
    for name in (name for name in servers if name != "peft"):
        if kind != "LORA":
            remedy = "Train @LoRA(), or export it merged: t5x-llm export RUN --merge."
            raise ConfigError(FIELD, name, f"'peft': {name} loads LoRA, not {kind}", remedy)
        if dora:
            remedy = "Set LoRA.dora = False, or export it merged: t5x-llm export RUN --merge."
            raise ConfigError(FIELD, name, f"'peft': {name} loads no DoRA", remedy)
        if name == "vllm" and rank > VLLM_RANKS[-1]:
            remedy = f"Its --max-lora-rank is one of {', '.join(map(str, VLLM_RANKS))}."
            raise ConfigError("LoRA.rank", rank, f"at most {VLLM_RANKS[-1]} for vLLM", remedy)


def for_servers(
    config: PeftConfig, tensors: dict[str, np.ndarray], servers: Sequence[str]
) -> tuple[PeftConfig, dict[str, np.ndarray]]:
    """Gives all modules one rank and one alpha, as vLLM and llama.cpp read no patterns.

    Smaller ranks are filled with zeros and what scales differ by goes into B; llama.cpp also knows
    no rank-stabilised scale. Adapters of one rank and scale stay as they are.
    """
    plain = set(servers) - {"peft"}
    if not plain or config.kind != "LORA":
        return config, tensors
    stable = config.rank_stabilised and "gguf" not in servers
    if not config.ranks and not config.alphas and stable == config.rank_stabilised:
        return config, tensors
    modules = {
        key.removesuffix(".lora_A.weight"): array
        for key, array in tensors.items()
        if key.endswith(".lora_A.weight")
    }
    rank = max(map(len, modules.values()))
    scale = config.scale_of(next(iter(modules)).removeprefix("base_model.model."))
    out = dict(tensors)
    for name, a in modules.items():
        more = rank - len(a)
        factor = config.scale_of(name.removeprefix("base_model.model.")) / scale
        b = tensors[f"{name}.lora_B.weight"]
        b = b if factor == 1 else (b * factor).astype(b.dtype)
        out[f"{name}.lora_A.weight"] = np.pad(a, ((0, more), (0, 0)))
        out[f"{name}.lora_B.weight"] = np.pad(b, ((0, 0), (0, more)))
    alpha = float(f"{scale * (math.sqrt(rank) if stable else rank):.12g}")
    made = dataclasses.replace(
        config, rank=rank, alpha=alpha, ranks={}, alphas={}, rank_stabilised=stable
    )
    return made, out
