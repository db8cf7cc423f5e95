"""bGPT (arXiv 2402.19155, section 3) in NumPy: two GPT-2s, patch after patch."""

import numpy as np

from t5x_llm.hf.references import numpy_layers as nl


def _gpt2(config: nl.Config, read: nl.Read, x: np.ndarray, base: str, layers: int) -> np.ndarray:
    """GPT-2 (Radford et al. 2019) over x [T, D], positions already added."""
    d = x.shape[-1]
    heads = config.get("num_attention_heads") or max(d // 64, 1)
    eps = config.get("layer_norm_epsilon", 1e-5)

    def project(y: np.ndarray, name: str) -> np.ndarray:
        return y @ read(f"{name}.weight") + read(f"{name}.bias")

    def norm(y: np.ndarray, name: str) -> np.ndarray:
        return nl.layer_norm(y, read(f"{name}.weight"), read(f"{name}.bias"), eps)

    for i in range(layers):
        name = f"{base}.h.{i}"
        y = project(norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn")
        q, k, v = (nl.heads(part, heads) for part in np.split(y, 3, -1))
        x = x + project(nl.attention(q, k, v), f"{name}.attn.c_proj")
        y = nl.gelu_tanh(project(norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc"))
        x = x + project(y, f"{name}.mlp.c_proj")
    return norm(x, f"{base}.ln_f")


def bgpt(config: nl.Config, read: nl.Read, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of tokens [T]; a document's first patch has no feature before it."""
    size, patch, byte = config.get("patch_size", 16), "patch_level_decoder", "byte_level_decoder"
    table = read(f"{byte}.base.transformer.wte.weight")
    whole = tokens[: len(tokens) // size * size].reshape(-1, size)
    features = np.zeros((0, table.shape[1]), table.dtype)
    if len(whole):
        one_hot = np.eye(len(table), dtype=table.dtype)[whole].reshape(len(whole), -1)
        name = f"{patch}.patch_embedding"
        x = one_hot @ read(f"{name}.weight").T + read(f"{name}.bias")
        x = x + read(f"{patch}.base.wpe.weight")[: len(x)]
        features = _gpt2(config, read, x, f"{patch}.base", config["patch_num_layers"])
    base = f"{byte}.base.transformer"
    places, logits = read(f"{base}.wpe.weight"), []
    for i in range(len(features) + 1):
        known = table[tokens[i * size : (i + 1) * size - 1]]
        first = features[i - 1 : i] if i else features[:0]
        x = np.concatenate([first, known])
        if len(x):
            x = x + places[int(i == 0) :][: len(x)]
            x = _gpt2(config, read, x, base, config["byte_num_layers"])
            logits.append(x @ table.T)
    return np.concatenate(logits)
