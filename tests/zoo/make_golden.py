"""Writes tests/zoo/golden from transformers and torch, in the parity environment only:

.venv-parity/bin/python tests/zoo/make_golden.py [case ...]

For each case of a family that transformers has: float32 logits of a 512-token prompt and of two
documents computed apart (every eighth position), the mean next-token loss, a norm and a projection
of every gradient, and the tensors' shapes. Weights are made from names (zoo.array), not stored.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from zoo import CASES, CUT, GOLDEN, STRIDE, array, summary, tokens

from t5x_llm.hf.reference import attention_code


def known(config: dict) -> bool:
    """Whether transformers has the family."""
    return (
        config["model_type"]
        in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )


def make_model(config: dict) -> torch.nn.Module:
    """transformers' model in float32 with zoo.array's weights, by the names of its files.

    Those may differ from its modules' names: experts are kept together in memory.
    """
    fields = {k: v for k, v in config.items() if k != "model_type"}
    made = transformers.AutoConfig.for_model(config["model_type"], **fields)
    model = transformers.AutoModelForCausalLM.from_config(made)
    with tempfile.TemporaryDirectory() as directory:
        model.float().save_pretrained(directory)
        file = pathlib.Path(directory) / "model.safetensors"
        shapes = {name: tuple(tensor.shape) for name, tensor in load_file(file).items()}
        save_file(
            {name: torch.from_numpy(array(name, shape)) for name, shape in shapes.items()},
            file,
            metadata={"format": "pt"},
        )
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32,
            attn_implementation=attention_code(config),
            output_loading_info=True,
        )
        assert not info["missing_keys"] and not info["unexpected_keys"], info
    model.config.use_cache = False  # RWKV's is written in place, which its gradients do not survive
    model.get_input_embeddings().padding_idx = None  # it would drop that row's gradient
    return model.eval()


def hf_gradients(model: torch.nn.Module) -> tuple[dict[str, np.ndarray], set[str]]:
    """Gradients by the names of the model's files, and names without one. Ruins the model."""
    without = {name for name, _ in model.named_buffers()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                without.add(name)
            parameter.copy_(torch.zeros(()) if parameter.grad is None else parameter.grad)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        found = load_file(pathlib.Path(directory) / "model.safetensors")
    return {name: tensor.numpy() for name, tensor in found.items()}, without


def compute(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """What a golden file holds."""
    ids = torch.from_numpy(tokens().astype(np.int64))[None]
    with torch.no_grad():
        parts = [model(part).logits[0] for part in (ids[:, :CUT], ids[:, CUT:])]
    model.zero_grad()
    logits = model(ids).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    loss.backward()
    kept, tensors = logits[0].detach().numpy()[::STRIDE], {}
    gradients, without = hf_gradients(model)
    for name, gradient in gradients.items():
        figures = None if name in without else summary(name, gradient)
        tensors[name] = [list(gradient.shape), figures]
    return {
        "logits": kept,
        "packed": torch.cat(parts).numpy()[::STRIDE],
        "loss": loss.detach().numpy(),
        "tensors": np.asarray(json.dumps(tensors)),
    }


def main() -> None:
    """Writes the cases named, or all."""
    torch.set_num_threads(1)
    for case in sys.argv[1:] or CASES:
        if known(CASES[case]):
            np.savez_compressed(GOLDEN / f"{case}.npz", **compute(make_model(CASES[case])))
            print(case)


if __name__ == "__main__":
    main()
