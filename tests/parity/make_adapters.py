"""Writes golden/adapters.npz and golden/ranks.npz from peft. Run it in the parity environment only:

    .venv-parity/bin/python tests/parity/make_adapters.py

``adapters.npz`` has, for each base of ``make_golden.py`` and each method, the adapter's parameters
by peft's names, all random, and the logits of ``ADAPTER_TOKENS`` tokens. ``ranks.npz`` has random
parameters and gradients of three matrices by step, and what peft's allocator keeps of them.
"""

from __future__ import annotations

import types

import numpy as np
import peft
import torch
import transformers
from cases import ADAPTER_BASES, ADAPTER_TOKENS, GOLDEN, RANKS, prompt
from peft.tuners.adalora.layer import RankAllocator

_TARGETS = {
    "llama_untied": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
}
_FACTORS = {"llama_untied": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}


def configs(base: str) -> dict[str, peft.PeftConfig]:
    """A peft config for each method."""
    task = dict(task_type="CAUSAL_LM")
    scaled, inputs = _TARGETS[base]
    return {
        "ia3": peft.IA3Config(target_modules=scaled, feedforward_modules=inputs, **task),
        "adalora": peft.AdaLoraConfig(
            init_r=3, target_r=2, lora_alpha=6, total_step=10, target_modules=_FACTORS[base], **task
        ),
        "prefix": peft.PrefixTuningConfig(num_virtual_tokens=5, **task),
        "prefix_mlp": peft.PrefixTuningConfig(
            num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=7, **task
        ),
        "prompt": peft.PromptTuningConfig(num_virtual_tokens=5, **task),
        "encoder": peft.PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=7, **task),
    }


def adapted(base: str, method: str) -> dict[str, np.ndarray]:
    """Random parameters of a method on a base, and the logits with them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        GOLDEN / base, attn_implementation="eager", dtype=torch.float32
    )
    model = peft.get_peft_model(model, configs(base)[method])
    torch.manual_seed(len(method))
    found = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                centre = 1.0 if "ia3" in name else 0.0
                parameter.copy_(centre + 0.4 * torch.randn_like(parameter))
                found[name] = parameter.numpy().copy()
        ids = torch.from_numpy(prompt()[:ADAPTER_TOKENS].astype(np.int64))[None]
        logits = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    if method in ("prefix_mlp", "encoder"):
        found["saved"] = model.get_prompt_embedding_to_save("default").numpy()
    return found | {"logits": logits[-ADAPTER_TOKENS:].numpy()}


def ranks() -> dict[str, np.ndarray]:
    """Parameters, gradients and what is kept at each step."""
    model, rng, found = torch.nn.Module(), np.random.default_rng(5), {}
    for i, (inputs, outputs) in enumerate(RANKS["shapes"]):
        part = torch.nn.Module()
        for name, shape in (
            ("lora_A", (RANKS["rank"], inputs)),
            ("lora_E", (RANKS["rank"], 1)),
            ("lora_B", (outputs, RANKS["rank"])),
        ):
            values = {"default": torch.nn.Parameter(torch.zeros(shape))}
            setattr(part, name, torch.nn.ParameterDict(values))
        setattr(model, f"m{i}", part)
    config = types.SimpleNamespace(
        beta1=0.85, beta2=0.85, target_r=RANKS["target"], tinit=RANKS["start"],
        tfinal=RANKS["final"], deltaT=RANKS["every"], total_step=RANKS["steps"],
    )  # fmt: skip
    stop = RANKS["steps"] - RANKS["final"]
    found["budget"] = np.array([RANKS["target"], RANKS["start"], stop, RANKS["every"]])
    allocator = RankAllocator(model, config, "default")
    for step in range(1, stop + 1):
        for name, parameter in model.named_parameters():
            value, grad = rng.normal(size=(2, *parameter.shape)).astype(np.float32)
            parameter.data, parameter.grad = torch.from_numpy(value), torch.from_numpy(grad)
            found[f"{step}/{name}/value"], found[f"{step}/{name}/grad"] = value.copy(), grad
        budget, kept = allocator.update_and_allocate(model, step, force_mask=step == stop)
        found[f"{step}/budget"] = np.array(budget)
        for name, mask in (kept or {}).items():
            found[f"{step}/{name}/kept"] = np.array(mask)
    return found


def main() -> None:
    """Writes both files."""
    found = {
        f"{base}/{method}/{name}": value
        for base in ADAPTER_BASES
        for method in configs(base)
        for name, value in adapted(base, method).items()
    }
    np.savez_compressed(GOLDEN / "adapters.npz", **found)
    np.savez_compressed(GOLDEN / "ranks.npz", **ranks())


if __name__ == "__main__":
    main()
