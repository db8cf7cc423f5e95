"""RoBERTa's masked language model (arXiv 1907.11692) in NumPy."""

import numpy as np

from t5x_llm.hf.references import numpy_layers as nl
from t5x_llm.hf.references.bert import body, normed


def roberta(config: nl.Config, read: nl.Read, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of every place; positions count from after the pad token's id."""
    x = body(config, read, tokens, "roberta.", config.get("pad_token_id", 1) + 1)
    y = normed(config, read, nl.gelu(nl.biased(read, x, "lm_head.dense")), "lm_head.layer_norm")
    return y @ read("roberta.embeddings.word_embeddings.weight").T + read("lm_head.bias")
