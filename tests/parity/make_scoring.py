"""Writes golden/scoring: tiny classifiers that transformers made, and its scores of a padded batch.

Run it in the parity environment: .venv-parity/bin/python tests/parity/make_scoring.py
"""

from __future__ import annotations

import pathlib

import numpy as np
import torch
import transformers

GOLDEN = pathlib.Path(__file__).parent / "golden" / "scoring"
COMMON = dict(vocab_size=48, pad_token_id=0, bos_token_id=1, eos_token_id=2)
LLAMA = COMMON | dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
)
CASES = {
    "llama": (transformers.LlamaConfig, LLAMA | dict(num_labels=3)),
    "mistral": (transformers.MistralConfig, LLAMA | dict(num_labels=2, sliding_window=None)),
    "qwen2": (transformers.Qwen2Config, LLAMA | dict(num_labels=4, tie_word_embeddings=True)),
    "gpt2": (
        transformers.GPT2Config,
        COMMON | dict(n_embd=16, n_layer=2, n_head=4, n_positions=32, num_labels=1),
    ),
}


def main() -> None:
    """Writes all cases."""
    rng = np.random.default_rng(0)
    lengths = (9, 4, 20, 1)
    ids = np.zeros((4, 20), np.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = rng.integers(3, 48, length)
    for name, (config, sizes) in CASES.items():
        torch.manual_seed(0)
        auto = transformers.AutoModelForSequenceClassification
        model = auto.from_config(config(**sizes)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            mask = torch.from_numpy((ids != 0).astype(np.int64))
            scores = model(torch.from_numpy(ids), attention_mask=mask).logits
        model.save_pretrained(GOLDEN / name)
        np.savez(GOLDEN / f"{name}.npz", ids=ids, lengths=lengths, scores=scores.numpy())


if __name__ == "__main__":
    main()
