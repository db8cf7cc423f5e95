"""Generation by an encoder-decoder, against passes without cache; encoders are refused."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from test_sampler import PROMPTS, Bytes, make

from t5x_llm.core.errors import ConfigError
from t5x_llm.infer.sampler import Sampling, generate
from t5x_llm.models.families.bert import Bert
from t5x_llm.models.families.t5 import T5

FAMILY = T5(vocab_size=258, d_model=32, n_layers=2, n_heads=4, head_dim=8, d_ff=48, start_id=7)


def padded(ids, width=64):
    row = np.zeros((1, width), np.int32)
    row[0, : len(ids)] = ids
    return row


@functools.partial(jax.jit, static_argnums=0)
def full(model, params, ids, **encoder):
    return model.logits(params, model.apply(params, ids, **encoder)[0])[0]


def test_greedy_answers_are_the_argmax_of_full_passes():
    """Rows of unlike lengths, the end token after each prompt, the start token before answers."""
    model, params = make(FAMILY)
    shown = []
    done = generate(
        model,
        params,
        Bytes(),
        PROMPTS,
        Sampling(max_tokens=20, temperature=0),
        on_text=lambda row, text: shown.append((row, text)),
    )
    for row, (prompt, completion) in enumerate(zip(PROMPTS, done, strict=True)):
        read = [*prompt.encode(), 257]
        assert completion.prompt_tokens == len(read)
        ended = [257] if completion.finish_reason == "eos" else []
        ids = [7, *completion.tokens, *ended]
        logits = full(
            model,
            params,
            padded(ids),
            encoder_tokens=padded(read),
            encoder_segment_ids=padded([1] * len(read)),
        )
        assert logits[: len(ids) - 1].argmax(-1).tolist() == ids[1:]
        assert "".join(text for i, text in shown if i == row) == completion.text
    assert len({completion.tokens for completion in done}) > 1


def test_a_row_does_not_depend_on_its_neighbours():
    model, params = make(FAMILY)
    sampling = Sampling(max_tokens=12, temperature=0.9, top_p=0.95, repetition_penalty=1.2, seed=3)
    together = generate(model, params, Bytes(), PROMPTS, sampling)
    alone = generate(model, params, Bytes(), PROMPTS[1:2], sampling)
    assert together[1].tokens == alone[0].tokens


def test_an_encoder_continues_nothing():
    model, params = make(Bert(vocab_size=258, d_model=32, n_layers=1, n_heads=4))
    with pytest.raises(ConfigError, match="cannot continue a text"):
        generate(model, params, Bytes(), ["a"])
