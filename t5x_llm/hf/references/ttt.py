"""TTT-Linear (arXiv 2407.04620) in NumPy: one token after the other, its primal form."""

import numpy as np

from t5x_llm.hf.references import numpy_layers as nl

EPS = 1e-6


def _gradient(z: np.ndarray, target: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Gradient by z of |gamma * (z - mean) / std + beta - target|^2 / 2, by the whole Jacobian."""
    size = len(z)
    centre = np.eye(size) - 1 / size
    centred = centre @ z
    std = np.sqrt(centred @ centred / size + EPS)
    jacobian = centre / std - np.outer(centred, centred) / (size * std**3)
    return jacobian @ (gamma * (gamma * centred / std + beta - target))


def _learn(
    w: np.ndarray,
    b: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    qkv: tuple[np.ndarray, np.ndarray, np.ndarray],
    rate: np.ndarray,
    steps: np.ndarray,
) -> np.ndarray:
    """One head: outputs [T, H]; gradients are taken at the weights its mini-batch begins with."""
    out = []
    for t, (q, k, v) in enumerate(zip(*qkv, strict=True)):
        j = t % len(steps)
        if j == 0:
            start_w, start_b = w, b
            sum_w, sum_b = np.zeros_like(w), np.zeros_like(b)
        g = _gradient(k @ start_w + start_b, v - k, gamma, beta)
        sum_w, sum_b = sum_w + rate[t] * np.outer(k, g), sum_b + rate[t] * g
        w, b = start_w - steps[j] * sum_w, start_b - steps[j] * sum_b
        out.append(q + nl.layer_norm(q @ w + b, gamma, beta, EPS))
    return np.stack(out)


def _conv(read: nl.Read, x: np.ndarray, name: str) -> np.ndarray:
    """Causal, channel by channel: x [T, C]."""
    weight = read(f"{name}.weight")[:, 0]
    taps = weight.shape[1]
    padded = np.concatenate([np.zeros((taps - 1, x.shape[1]), x.dtype), x])
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps, axis=0)
    return np.einsum("tck,ck->tc", windows, weight) + read(f"{name}.bias")


def ttt(config: nl.Config, read: nl.Read, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of tokens [T]."""
    n, size = config["num_attention_heads"], config.get("mini_batch_size", 16)
    eps = config.get("rms_norm_eps", 1e-6)
    place = np.arange(len(tokens)) % size
    theta = config.get("rope_theta", 10000.0)

    def layer(y: np.ndarray, name: str) -> np.ndarray:
        q, v = (nl.linear(read, y, f"{name}{p}_proj") for p in "qv")
        if config.get("share_qk"):
            q, k = (_conv(read, q, f"{name}conv_{p}") for p in "qk")
        else:
            k = nl.linear(read, y, f"{name}k_proj")
        q, k, v = (nl.heads(a, n) for a in (q, k, v))
        h = q.shape[-1]
        q, k = (nl.rotate(a, place, theta, h, interleaved=True) for a in (q, k))
        gate = y @ read(f"{name}learnable_ttt_lr_weight")[:, 0].T
        gate = 1 / (1 + np.exp(-gate - read(f"{name}learnable_ttt_lr_bias")[:, 0]))
        rate = config.get("ttt_base_lr", 1.0) * gate / h
        steps = np.maximum(1 / np.arange(1, size + 1) + read(f"{name}learnable_token_idx"), 0)
        w, b = read(f"{name}W1"), read(f"{name}b1")[:, 0]
        norms = read(f"{name}ttt_norm_weight"), read(f"{name}ttt_norm_bias")
        outs = [
            _learn(
                *(w[i], b[i], norms[0][i], norms[1][i], (q[:, i], k[:, i], v[:, i])),
                *(rate[:, i], steps),
            )
            for i in range(n)
        ]
        post = read(f"{name}post_norm.weight"), read(f"{name}post_norm.bias")
        out = nl.layer_norm(np.concatenate(outs, axis=1), *post, EPS)
        if config.get("use_gate"):
            out = nl.gelu_tanh(nl.linear(read, y, f"{name}g_proj")) * out
        return nl.linear(read, out, f"{name}o_proj")

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        return nl.rms_norm(x, read(f"{name}.weight"), eps)

    table = read("model.embed_tokens.weight")
    x = table[tokens]
    for i in range(config["num_hidden_layers"]):
        name = f"model.layers.{i}."
        if config.get("pre_conv"):
            x = x + _conv(read, normed(x, f"{name}conv.norm"), f"{name}conv.conv")
        x = x + layer(normed(x, f"{name}seq_norm"), f"{name}seq_modeling_block.")
        parts = (f"{name}mlp.{part}_proj" for part in ("gate", "up", "down"))
        x = x + nl.swiglu(read, normed(x, f"{name}ffn_norm"), *parts)
    head = table if config.get("tie_word_embeddings", True) else read("lm_head.weight")
    return normed(x, "model.norm") @ head.T
