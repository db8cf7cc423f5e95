"""Small models and adapters that peft and this package are compared on; needs no torch.

Weights are drawn from each tensor's name, so that no file of a base is stored.
"""

from __future__ import annotations

import json
import pathlib
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden" / "peft"
VOCAB, D = 24, 16

_COMMON = dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2)
_LLAMA = dict(
    hidden_size=D, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=24, max_position_embeddings=64, tie_word_embeddings=False,
)  # fmt: skip
CONFIGS = {
    "llama": dict(model_type="llama", **_LLAMA, **_COMMON),
    "qwen2": dict(model_type="qwen2", **_LLAMA | {"tie_word_embeddings": True}, **_COMMON),
    "gpt2": dict(
        model_type="gpt2", n_embd=D, n_layer=2, n_head=4, n_positions=64,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **_COMMON,
    ),
    "mixtral": dict(
        model_type="mixtral", num_local_experts=4, num_experts_per_tok=2,
        **_LLAMA, **_COMMON,
    ),
    "falcon": dict(
        model_type="falcon", hidden_size=D, num_hidden_layers=2, num_attention_heads=4,
        num_kv_heads=2, new_decoder_architecture=True, bias=False, alibi=False,
        parallel_attn=True, multi_query=True, hidden_dropout=0.0, attention_dropout=0.0,
        **_COMMON,
    ),
    "mamba": dict(
        model_type="mamba", hidden_size=D, num_hidden_layers=2, state_size=4, expand=2,
        intermediate_size=32, time_step_rank=3, **_COMMON,
    ),
    "t5": dict(
        model_type="t5", d_model=D, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=4,
        d_kv=4, feed_forward_proj="relu", decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        vocab_size=VOCAB, dropout_rate=0.0, tie_word_embeddings=True,
    ),
}  # fmt: skip

# Modules of each family: separate maps, maps of one fused matrix, and those that (IA)3 feeds.
TARGETS = {
    "llama": ["q_proj", "v_proj", "o_proj", "down_proj"],
    "qwen2": ["q_proj", "k_proj", "up_proj", "gate_proj"],
    "gpt2": ["c_attn", "mlp.c_proj", "c_fc"],
    "mixtral": ["q_proj", "o_proj"],
    "falcon": ["query_key_value", "dense", "dense_4h_to_h"],
    "mamba": ["in_proj", "x_proj"],
    "t5": ["q", "v", "wo"],
}
FEEDS = {
    "llama": ["down_proj"], "qwen2": ["up_proj"], "gpt2": ["mlp.c_proj"], "mixtral": ["o_proj"],
    "falcon": ["dense_4h_to_h"], "mamba": ["x_proj"], "t5": ["wo"],
}  # fmt: skip
METHODS = ("lora", "rslora", "dora", "patterns", "adalora", "ia3", "prefix", "prompt", "ptuning")
CASES = [
    (family, method)
    for family in CONFIGS
    for method in METHODS
    # A state space has no keys and values; of two sides peft gives both the same prefix.
    if not (method == "prefix" and family in ("mamba", "t5"))
] + [("mixtral", "experts")]
# Those whose files are kept; the others are made where peft is.
STORED = [("llama", method) for method in METHODS] + [
    ("qwen2", "lora"),
    ("gpt2", "lora"),
    ("gpt2", "dora"),
    ("gpt2", "adalora"),
    ("mixtral", "experts"),
    ("falcon", "rslora"),
    ("falcon", "ia3"),
    ("mamba", "patterns"),
    ("t5", "lora"),
    ("t5", "ptuning"),
]


def draw(name: str, shape: tuple[int, ...], scale: float = 0.2) -> np.ndarray:
    """float32 values that a name stands for; scales of norms lie around 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = scale * rng.standard_normal(shape)
    norms = ("norm.weight", "ln_f.weight", "norm_f.weight", "ln_1.weight", "ln_2.weight")
    norms += ("ln_attn.weight", "ln_mlp.weight", "norm1.weight")
    return (values + (1 if name.endswith(norms) else 0)).astype(np.float32)


def prompt(length: int = 12) -> np.ndarray:
    """Token ids, none of them special."""
    return np.random.default_rng(5).integers(3, VOCAB, length).astype(np.int32)


def decoder_prompt(tokens: np.ndarray) -> np.ndarray:
    """What an encoder-decoder's decoder reads."""
    return tokens[::-1].copy()


def logits(case: str) -> np.ndarray:
    """peft's logits [T, V], computed in float64."""
    return np.load(GOLDEN / f"{case}.npy").astype(np.float64)


def config_of(family: str) -> dict:
    return json.loads(json.dumps(CONFIGS[family]))
