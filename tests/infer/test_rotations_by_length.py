"""Generation across the length from which rotations are others: LongRoPE and dynamic NTK."""

from __future__ import annotations

import jax
import numpy as np

from t5x_llm.core.dtypes import Policy
from t5x_llm.hf.model_config import family_of
from t5x_llm.infer.decode import generate_ids
from t5x_llm.infer.sampling import Sampling
from t5x_llm.models.model import Model

ORIGINAL = 20
CONFIG = dict(
    model_type="phi3",
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=80,
    original_max_position_embeddings=ORIGINAL,
    initializer_range=0.3,
    rope_theta=100.0,
    rope_scaling=dict(
        type="longrope", short_factor=[1.0, 1.2, 1.5, 2.0], long_factor=[1.5, 4.0, 9.0, 20.0]
    ),
)


def test_every_token_follows_from_one_pass_over_its_row():
    """Rows stay within, cross and begin beyond; the end token counts before it is read."""
    model = Model(family_of(CONFIG).decoder(), Policy(compute="float32"))
    params = model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 40, n).tolist() for n in (3, 12, ORIGINAL, ORIGINAL + 1, 30)]
    found = generate_ids(model, params, prompts, Sampling(max_tokens=12, temperature=0))

    @jax.jit
    def padded(tokens, count):
        place = np.arange(48)[None]
        segments = (place < count).astype(int)
        hidden, _ = model.apply(params, tokens, positions=place * segments, segment_ids=segments)
        return model.logits(params, hidden)[0]

    def next_logits(row):
        tokens = np.zeros((1, 48), np.int32)
        tokens[0, : len(row)] = row
        return np.asarray(padded(tokens, len(row))[len(row) - 1], np.float64)

    crossed = 0
    for prompt, (sample,) in zip(prompts, found, strict=True):
        row, tokens = list(prompt), list(sample.tokens)
        assert len(tokens) == 12 and sample.finish_reason == "length"
        crossed += len(row) <= ORIGINAL < len(row) + 11
        for token, log_prob in zip(tokens, sample.log_probs, strict=True):
            logits = next_logits(row)
            assert token == logits.argmax()
            expected = logits[token] - np.logaddexp.reduce(logits)
            assert abs(log_prob - expected) < 1e-4
            row.append(token)
    assert crossed == 2  # one of 12 and one of exactly the pretrained length
