"""Writes tests/zoo/golden_encoders from transformers and torch, in the parity environment only:

cd tests/zoo && PYTHONPATH=../.. ../../.venv-parity/bin/python make_golden_encoders.py [case ...]

As make_golden.py, for models with an encoder (encoders.py says of what inputs).
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
import torch
import transformers
from encoders import CASES, CUT, GOLDEN, TARGET_CUT, inputs, stride, targets, two_sided
from make_golden import hf_gradients
from safetensors.torch import load_file, save_file
from zoo import array, summary


def auto(name: str) -> Any:
    """transformers' class of classes."""
    return (
        transformers.AutoModelForSeq2SeqLM if two_sided(name) else transformers.AutoModelForMaskedLM
    )


def make_model(name: str, directory: str | None = None) -> torch.nn.Module:
    """transformers' model in float32 with zoo.array's weights, by way of files in ``directory``."""
    if directory is None:
        with tempfile.TemporaryDirectory() as scratch:
            return make_model(name, scratch)
    config = CASES[name]
    fields = {k: v for k, v in config.items() if k != "model_type"}
    made = transformers.AutoConfig.for_model(config["model_type"], **fields)
    auto(name).from_config(made, attn_implementation="eager").float().save_pretrained(directory)
    file = pathlib.Path(directory) / "model.safetensors"
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(file).items()}
    if config.get("tie_word_embeddings") is False:
        shapes["lm_head.weight"] = shapes["shared.weight"]
    tensors = {name: torch.from_numpy(array(name, shape)) for name, shape in shapes.items()}
    save_file(tensors, file, metadata={"format": "pt"})
    model, info = auto(name).from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    model.get_input_embeddings().padding_idx = None  # it would drop that row's gradient
    return model.eval()


def logits(model: torch.nn.Module, given: dict[str, np.ndarray]) -> torch.Tensor:
    """[T, V] of arrays of ``inputs`` for one document."""
    ids = {k: torch.from_numpy(v.astype(np.int64)) for k, v in given.items()}
    if "encoder_tokens" in ids:
        return model(input_ids=ids["encoder_tokens"], decoder_input_ids=ids["tokens"]).logits[0]
    count = torch.arange(ids["tokens"].shape[1])[None]
    if model.config.model_type == "roberta":
        count = count + model.config.pad_token_id + 1
    return model(input_ids=ids["tokens"], position_ids=count).logits[0]


def parts(name: str) -> list[dict[str, np.ndarray]]:
    """The documents of ``inputs(name, packed=True)``, apart."""
    cut = {"tokens": TARGET_CUT if two_sided(name) else CUT, "encoder_tokens": CUT}
    whole = inputs(name)
    return [
        {k: v[:, s(cut[k])] for k, v in whole.items()} for s in (slice, lambda c: slice(c, None))
    ]


def loss(model: torch.nn.Module, name: str) -> torch.Tensor:
    """Mean over the counted targets."""
    goal, counted = (torch.from_numpy(x[0]) for x in targets(name))
    each = torch.nn.functional.cross_entropy(
        logits(model, inputs(name)), goal.long(), reduction="none"
    )
    return (each * counted).sum() / counted.sum()


def compute(name: str) -> dict[str, np.ndarray]:
    """What a golden file holds."""
    model = make_model(name)
    with torch.no_grad():
        whole = logits(model, inputs(name))
        packed = torch.cat([logits(model, part) for part in parts(name)])
    model.zero_grad()
    value = loss(model, name)
    value.backward()
    gradients, without = hf_gradients(model)
    tensors = {
        tensor: [list(gradient.shape), None if tensor in without else summary(tensor, gradient)]
        for tensor, gradient in gradients.items()
    }
    return {
        "logits": whole.numpy()[:: stride(name)],
        "packed": packed.numpy()[:: stride(name)],
        "loss": value.detach().numpy(),
        "tensors": np.asarray(json.dumps(tensors)),
    }


def main() -> None:
    """Writes the cases named, or all."""
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    for case in sys.argv[1:] or CASES:
        np.savez_compressed(GOLDEN / f"{case}.npz", **compute(case))
        print(case)


if __name__ == "__main__":
    main()
