"""BERT's masked language model (arXiv 1810.04805) in NumPy."""

from __future__ import annotations

import numpy as np

from t5x_llm.hf.references import numpy_layers as nl

ACTIVATIONS = {
    "gelu": nl.gelu,
    "gelu_new": nl.gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": nl.silu,
}
_HEAD = ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm")


def bert(config: nl.Config, read: nl.Read, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of every place."""
    activation = ACTIVATIONS[config.get("hidden_act", "gelu")]
    y = activation(nl.biased(read, body(config, read, tokens, "bert.", 0), _HEAD[0]))
    y = normed(config, read, y, _HEAD[1])
    table = read("bert.embeddings.word_embeddings.weight")
    return y @ table.T + read("cls.predictions.bias")


def normed(config: nl.Config, read: nl.Read, x: np.ndarray, name: str) -> np.ndarray:
    """LayerNorm by name."""
    weight, bias = (read(f"{name}.{part}") for part in ("weight", "bias"))
    return nl.layer_norm(x, weight, bias, config.get("layer_norm_eps", 1e-12))


def body(
    config: nl.Config, read: nl.Read, tokens: np.ndarray, prefix: str, first: int
) -> np.ndarray:
    """States [T, D] of the last layer.

    Args:
      config: config.json.
      read: HF tensor name to array.
      tokens: [T].
      prefix: of the tensors' names.
      first: row of the table of positions that the first token has.
    """
    activation = ACTIVATIONS[config.get("hidden_act", "gelu")]
    n, embed = config["num_attention_heads"], f"{prefix}embeddings."
    x = read(f"{embed}word_embeddings.weight")[tokens]
    x = x + read(f"{embed}position_embeddings.weight")[first : first + len(tokens)]
    if config.get("type_vocab_size", 2):
        x = x + read(f"{embed}token_type_embeddings.weight")[0]
    x = normed(config, read, x, f"{embed}LayerNorm")
    every = np.ones((len(tokens), len(tokens)), bool)
    for i in range(config["num_hidden_layers"]):
        layer = f"{prefix}encoder.layer.{i}."
        names = (f"{layer}attention.self.{part}" for part in ("query", "key", "value"))
        q, k, v = (nl.heads(nl.biased(read, x, name), n) for name in names)
        y = nl.biased(read, nl.attention(q, k, v, 0.0, every), f"{layer}attention.output.dense")
        x = normed(config, read, x + y, f"{layer}attention.output.LayerNorm")
        y = activation(nl.biased(read, x, f"{layer}intermediate.dense"))
        x = normed(
            config, read, x + nl.biased(read, y, f"{layer}output.dense"), f"{layer}output.LayerNorm"
        )
    return x
