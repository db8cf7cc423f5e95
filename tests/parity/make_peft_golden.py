"""Writes golden/peft: adapters as peft saves them, and its logits. Needs torch, transformers, peft.

    python tests/parity/make_peft_golden.py

Bases are drawn from names (``peft_cases.draw``); adapters too, so that none of them is zero.
"""

from __future__ import annotations

import shutil
import sys

import numpy as np
import peft
import peft_cases as cases
import torch
import transformers


def base_model(family: str, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """transformers' model of a family with the weights of ``peft_cases``."""
    config = transformers.AutoConfig.for_model(**cases.config_of(family))
    kind = "AutoModelForSeq2SeqLM" if family == "t5" else "AutoModelForCausalLM"
    config._experts_implementation = "eager"
    model = getattr(transformers, kind).from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.from_numpy(weight(family, name, tuple(value.shape))))
    return model.to(dtype).eval()


def weight(family: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of transformers' from the tensors of a file, which name experts one by one."""
    if family != "mixtral" or ".experts." not in name:
        name = (
            name.replace(".mlp.gate.", ".block_sparse_moe.gate.") if family == "mixtral" else name
        )
        return cases.draw(name, shape)
    head = name.partition(".mlp.")[0] + ".block_sparse_moe.experts."
    experts, half = shape[0], shape[1] // 2
    if name.endswith("down_proj"):
        found = [cases.draw(f"{head}{i}.w2.weight", shape[1:]) for i in range(experts)]
        return np.stack(found)
    both = [
        np.concatenate(
            [cases.draw(f"{head}{i}.{w}.weight", (half, shape[2])) for w in ("w1", "w3")]
        )
        for i in range(experts)
    ]
    return np.stack(both)


def peft_config(family: str, method: str) -> peft.PeftConfig:
    """peft's config of a case."""
    task = "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM"
    targets = cases.TARGETS[family]
    low = dict(
        task_type=task, target_modules=targets, lora_alpha=6, fan_in_fan_out=family == "gpt2"
    )
    first = targets[0]
    if method == "lora":
        return peft.LoraConfig(r=3, **low)
    if method == "experts":
        experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        return peft.LoraConfig(
            task_type=task, r=3, lora_alpha=6, target_modules=[], target_parameters=experts
        )
    if method == "rslora":
        return peft.LoraConfig(r=2, use_rslora=True, **low)
    if method == "dora":
        return peft.LoraConfig(r=2, use_dora=True, **low)
    if method == "patterns":
        more = dict(rank_pattern={first: 4}, alpha_pattern={first: 3})
        return peft.LoraConfig(r=2, **low, **more)
    if method == "adalora":
        return peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, **low)
    if method == "ia3":
        return peft.IA3Config(
            task_type=task, target_modules=targets, feedforward_modules=cases.FEEDS[family],
            fan_in_fan_out=family == "gpt2",
        )  # fmt: skip
    sides = {"num_transformer_submodules": 1}
    if family == "mamba":  # peft asks for heads, which virtual tokens do not need
        sides["num_attention_heads"] = 1
    if method == "prefix":
        return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=3, **sides)
    if method == "prompt":
        return peft.PromptTuningConfig(task_type=task, num_virtual_tokens=3, **sides)
    return peft.PromptEncoderConfig(
        task_type=task, num_virtual_tokens=3, encoder_hidden_size=8, **sides
    )


def adapted(family: str, method: str, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """peft's model of a case, every value of the adapter drawn from its name."""
    model = peft.get_peft_model(base_model(family, torch.float32), peft_config(family, method))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".default" not in name and "prompt_encoder" not in name:
                continue
            if name.endswith("ranknum.default"):
                continue
            drawn = torch.from_numpy(cases.draw(name, tuple(value.shape), 0.3))
            if "magnitude" in name or "ia3_l" in name:
                drawn = 1 + drawn
            value.copy_(drawn)
    if method == "adalora":
        prune(model)
    return model.to(dtype).eval()


def prune(model: torch.nn.Module) -> None:
    """Takes singular values away as the allocator would, another number in each module."""
    pattern = {}
    for i, (name, value) in enumerate(
        (n, v) for n, v in model.base_model.model.named_parameters() if "lora_E" in n
    ):
        kept = [(i + j) % 3 != 0 for j in range(len(value))]
        value.data[~torch.tensor(kept)] = 0
        pattern[name] = kept
    model.peft_config["default"].rank_pattern = pattern


def logits(model: torch.nn.Module, family: str) -> np.ndarray:
    """Logits [T, V] of a model on the prompt."""
    tokens = cases.prompt()
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    more = {}
    if family == "t5":
        more["decoder_input_ids"] = torch.from_numpy(cases.decoder_prompt(tokens).astype(np.int64))[
            None
        ]
    with torch.no_grad():
        out = model(input_ids=ids, **more).logits[0].double().numpy()
    return out[-len(tokens) :]


def main(only: list[str]) -> None:
    for family, method in cases.STORED:
        case = f"{family}_{method}"
        if only and case not in only:
            continue
        model = adapted(family, method)
        found = logits(model, family)
        out = cases.GOLDEN / case
        shutil.rmtree(out, ignore_errors=True)
        model.float().save_pretrained(out)
        (out / "README.md").unlink(missing_ok=True)
        np.save(cases.GOLDEN / f"{case}.npy", found.astype(np.float32))
        print(case, float(np.abs(found).max()))


if __name__ == "__main__":
    main(sys.argv[1:])
