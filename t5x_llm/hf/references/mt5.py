"""mT5 (arXiv 2010.11934) in NumPy: T5 1.1, whose logits are never scaled."""

import numpy as np

from t5x_llm.hf.references import numpy_layers as nl
from t5x_llm.hf.references.t5 import t5


def mt5(config: nl.Config, read: nl.Read, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of the decoder; see ``t5``."""
    feed_forward = config.get("feed_forward_proj", "gated-gelu")
    said = {"feed_forward_proj": feed_forward, "scale_decoder_outputs": False}
    return t5(config | said, read, tokens)
