"""W1's torch peer: transformers' LLaMA, AdamW, clip 1.0. Run by w1.py in the peer's environment.

Reads one line for each step on stdin and answers with one JSON line.
"""

from __future__ import annotations

import json
import sys
import time

from answering import answer


def main() -> None:
    """argv: dtype, threads, JSON of the model, B, T."""
    begin = time.perf_counter()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    dtype, threads, shape, rows, length = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    m = json.loads(shape)
    config = LlamaConfig(
        vocab_size=m["vocab_size"],
        hidden_size=m["d_model"],
        num_hidden_layers=m["n_layers"],
        num_attention_heads=m["n_heads"],
        num_key_value_heads=m["n_heads"],
        intermediate_size=m["d_ff"],
        max_position_embeddings=int(length),
        tie_word_embeddings=False,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, foreach=True
    )
    tokens = torch.randint(0, m["vocab_size"], (int(rows), int(length) + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].contiguous()

    def step() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=inputs, labels=inputs, shift_labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    answer(begin, step)


if __name__ == "__main__":
    main()
