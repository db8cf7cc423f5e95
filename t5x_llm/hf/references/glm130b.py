"""GLM-130B (arXiv 2210.02414, sections 2 and 3; its released code) in NumPy."""

import numpy as np

from t5x_llm.hf.references import numpy_layers as nl
from t5x_llm.hf.references.chatglm import glm_layers, two_d


def glm130b(config: nl.Config, read: nl.Read, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of tokens [T]."""
    at = np.arange(len(tokens))

    def rotate(x: np.ndarray) -> np.ndarray:
        if config.get("position_encoding_2d"):
            return two_d(x, at, np.zeros_like(at), 10000.0)
        return nl.rotate(x, at, 10000.0, x.shape[-1])

    def geglu(x: np.ndarray) -> np.ndarray:
        a, b = np.split(x, 2, -1)
        return a * nl.gelu(b)

    table = read("transformer.word_embeddings.weight")
    x = glm_layers(config, read, table[tokens], rotate, geglu, np.tri(len(tokens), dtype=bool))
    head = table if config.get("tie_word_embeddings", True) else read("lm_head.weight")
    return x @ head.T
