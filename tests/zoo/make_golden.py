"""Writes tests/zoo/golden from transformers and torch, in the parity environment only:

.venv-parity/bin/python tests/zoo/make_golden.py [case ...]

For each case of a family that transformers has: float32 logits of a 512-token prompt and of two
documents computed apart (every eighth position), the mean next-token loss, a norm and a projection
of every gradient, and the tensors' shapes. Weights are made from names (zoo.array), not stored.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
import transformers
from zoo import CASES, CUT, GOLDEN, STRIDE, array, summary, tokens


def known(config: dict) -> bool:
    """Whether transformers has the family."""
    return (
        config["model_type"]
        in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )


def make_model(config: dict) -> torch.nn.Module:
    """transformers' model in float32 with zoo.array's weights."""
    fields = {k: v for k, v in config.items() if k != "model_type"}
    made = transformers.AutoConfig.for_model(config["model_type"], **fields)
    model = transformers.AutoModelForCausalLM.from_config(made, attn_implementation="eager")
    model = model.float().eval()
    model.get_input_embeddings().padding_idx = None  # it would drop that row's gradient
    with torch.no_grad():
        for name, tensor in hf_tensors(model).items():
            tensor.copy_(torch.from_numpy(array(name, tuple(tensor.shape))))
    return model


def hf_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that a checkpoint of the model holds, each once, by the name it is saved under."""
    saved = dict(model.named_parameters()) | {
        name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()
    }
    return saved


def compute(model: torch.nn.Module, case: str) -> dict[str, np.ndarray]:
    """What a golden file holds."""
    ids = torch.from_numpy(tokens().astype(np.int64))[None]
    with torch.no_grad():
        parts = [model(part).logits[0] for part in (ids[:, :CUT], ids[:, CUT:])]
    model.zero_grad()
    logits = model(ids).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    loss.backward()
    tensors = {}
    for name, tensor in hf_tensors(model).items():
        gradient = getattr(tensor, "grad", None)
        figures = None if gradient is None else summary(name, gradient.numpy())
        tensors[name] = [list(tensor.shape), figures]
    return {
        "logits": logits[0].detach().numpy()[::STRIDE],
        "packed": torch.cat(parts).numpy()[::STRIDE],
        "loss": loss.detach().numpy(),
        "tensors": np.asarray(json.dumps(tensors)),
    }


def main() -> None:
    """Writes the cases named, or all."""
    torch.set_num_threads(1)
    for case in sys.argv[1:] or CASES:
        if known(CASES[case]):
            np.savez_compressed(GOLDEN / f"{case}.npz", **compute(make_model(CASES[case]), case))
            print(case)


if __name__ == "__main__":
    main()
