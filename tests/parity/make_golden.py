"""Writes tests/parity/golden from transformers and torch. Run it in the parity environment only:

    .venv-parity/bin/python tests/parity/make_golden.py

Each case is a Hugging Face directory of a tiny random model (weights wide enough that every part
moves the logits), ``golden.npz`` with float32 logits of a 512-token prompt (every fourth
position, to keep the files small), the mean next-token loss and its gradients by Hugging Face
name. ``training.json`` holds the losses of 50 AdamW steps, ``warps.npz`` what transformers' logits
processors make of random logits.
"""

from __future__ import annotations

import json

import numpy as np
import torch
import transformers
from cases import ADAMW, GOLDEN, LENGTH, STRIDE, VOCAB, prompt, training_batches

_LLAMA = dict(
    vocab_size=VOCAB,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=LENGTH,
    rms_norm_eps=1e-3,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    attention_bias=False,
    mlp_bias=False,
    bos_token_id=1,
    eos_token_id=2,
)
CONFIGS = {
    "llama_untied": transformers.LlamaConfig(**_LLAMA, tie_word_embeddings=False),
    "llama_tied": transformers.LlamaConfig(
        **(_LLAMA | dict(head_dim=8, attention_bias=True, mlp_bias=True)), tie_word_embeddings=True
    ),
    "gpt2": transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=LENGTH,
        n_embd=24,
        n_layer=2,
        n_head=4,
        n_inner=40,
        layer_norm_epsilon=1e-3,
        bos_token_id=1,
        eos_token_id=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
}


def make_model(config: transformers.PreTrainedConfig) -> torch.nn.Module:
    """A random float32 model; norm scales and biases are random too."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                centre = 0.0 if name.endswith("bias") else 1.0
                parameter.copy_(centre + 0.1 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * (0.8 / 24**0.5))
    return model.float().eval()


def logits_and_gradients(model: torch.nn.Module, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """logits [T, V], loss, and 'grad/<name>' of the mean next-token loss."""
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    logits = model(ids).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    model.zero_grad()
    loss.backward()
    found = {"logits": logits[0].detach().numpy(), "loss": loss.detach().numpy()}
    for name, parameter in model.named_parameters():
        found[f"grad/{name}"] = parameter.grad.numpy()
    return found


def train(model: torch.nn.Module) -> list[float]:
    """Losses of AdamW in float32 on ``training_batches()``; every parameter decays."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    losses = []
    for tokens in training_batches().astype(np.int64):
        ids = torch.from_numpy(tokens)
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def warps() -> dict[str, np.ndarray]:
    """What transformers' logits processors do to random logits [3, 40]."""
    from transformers.generation import logits_process as lp

    rng = np.random.default_rng(3)
    logits = rng.normal(size=(3, 40)).astype(np.float32) * 3
    ids = rng.integers(0, 40, (3, 12))
    processors = {
        "repetition_1.3": lp.RepetitionPenaltyLogitsProcessor(1.3),
        "repetition_0.8": lp.RepetitionPenaltyLogitsProcessor(0.8),
        "temperature_0.7": lp.TemperatureLogitsWarper(0.7),
        "temperature_2.5": lp.TemperatureLogitsWarper(2.5),
        "top_k_1": lp.TopKLogitsWarper(1),
        "top_k_7": lp.TopKLogitsWarper(7),
        "top_k_100": lp.TopKLogitsWarper(100),
        "top_p_0.05": lp.TopPLogitsWarper(0.05),
        "top_p_0.6": lp.TopPLogitsWarper(0.6),
        "top_p_0.95": lp.TopPLogitsWarper(0.95),
    }
    found = {"logits": logits, "ids": ids}
    for name, processor in processors.items():
        scores = processor(torch.from_numpy(ids), torch.from_numpy(logits.copy()))
        found[name] = scores.numpy()
    chain, scores = list(processors), torch.from_numpy(logits.copy())
    for name in (chain[0], chain[2], chain[5], chain[8]):
        scores = processors[name](torch.from_numpy(ids), scores)
    found["chain"] = scores.numpy()
    return found


def main() -> None:
    """Writes everything."""
    for name, config in CONFIGS.items():
        model = make_model(config)
        model.save_pretrained(GOLDEN / name)
        found = logits_and_gradients(model, prompt())
        found["logits"] = found["logits"][::STRIDE]
        np.savez_compressed(GOLDEN / name / "golden.npz", **found)
    losses = train(make_model(CONFIGS["llama_untied"]))
    (GOLDEN / "training.json").write_text(json.dumps(losses, indent=0) + "\n")
    np.savez_compressed(GOLDEN / "warps.npz", **warps())


if __name__ == "__main__":
    main()
