"""nanochat's recipe at a size of ours, as a peer of ``learning.py``; written from its description.

Rotary positions, norms without scales, the embedding's and the queries' and keys' among them,
squared ReLU, an untied head that starts at zero, logits capped at 15; Muon for matrices (learning
rate 0.02, momentum 0.85 to 0.95 over 300 steps), AdamW for the embedding (0.2) and the head
(0.004), both times (d / 768)^-0.5, betas 0.8 and 0.95; constant rates that fall over the last
fifth.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from learning import blocks, windows
from torch import nn


@dataclasses.dataclass(frozen=True)
class NanochatSetting:
    """A size: heads are 128 wide, the feed-forward 4 d."""

    d_model: int
    layers: int
    batch: int

    @property
    def heads(self) -> int:
        return max(1, self.d_model // 128)


NANOCHAT_GRID = (
    NanochatSetting(128, 2, 4),
    NanochatSetting(128, 4, 4),
    NanochatSetting(256, 2, 4),
    NanochatSetting(256, 4, 4),
)


def _norm(x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, (x.size(-1),))


class _Block(nn.Module):
    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.ModuleList(nn.Linear(d, d, bias=False) for _ in range(3))
        self.out = nn.Linear(d, d, bias=False)
        self.up = nn.Linear(d, 4 * d, bias=False)
        self.down = nn.Linear(4 * d, d, bias=False)

    def forward(self, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        h = _norm(x)
        q, k, v = (w(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in self.qkv)
        q, k = (_norm(_turned(y, *turn)) for y in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(_norm(x))).square())


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], -1).to(x.dtype)


class _Model(nn.Module):
    def __init__(self, setting: NanochatSetting, vocab: int, length: int):
        super().__init__()
        d, width = setting.d_model, setting.d_model // setting.heads
        self.embed = nn.Embedding(vocab, d)
        self.blocks = nn.ModuleList(_Block(d, setting.heads) for _ in range(setting.layers))
        self.head = nn.Linear(d, vocab, bias=False)
        rates = 10000.0 ** (-torch.arange(0, width, 2) / width)
        angles = torch.outer(torch.arange(length), rates)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        nn.init.normal_(self.embed.weight)
        nn.init.zeros_(self.head.weight)
        for block in self.blocks:
            for linear in (*block.qkv, block.up):
                out, into = linear.weight.shape
                nn.init.normal_(linear.weight, std=into**-0.5 * min(1.0, (out / into) ** 0.5))
            nn.init.zeros_(block.out.weight)
            nn.init.zeros_(block.down.weight)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = _norm(self.embed(ids))
        turn = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, turn)
        return 15 * torch.tanh(self.head(_norm(x)).float() / 15)


class Nanochat:
    """nanochat's recipe; the same methods as ``learning.Peer``.

    Args:
      setting: its size.
      tokenizer: for the number of pieces.
      length: tokens in a row, T.
      bfloat16: whether products are computed in bfloat16.
    """

    def __init__(self, setting: NanochatSetting, tokenizer: Any, length: int, bfloat16: bool):
        torch.manual_seed(0)
        torch.set_num_threads(2)
        self.setting, self.length, self.bfloat16 = setting, length, bfloat16
        self.model = _Model(setting, tokenizer.vocab_size, length)
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def train(self, docs: list[np.ndarray], seconds: float) -> dict[str, Any]:
        """Trains for ``seconds``."""
        scale = (self.setting.d_model / 768) ** -0.5
        adam = torch.optim.AdamW(
            [{"params": self.model.head.parameters(), "lr": 0.004 * scale},
             {"params": self.model.embed.parameters(), "lr": 0.2 * scale}],
            betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0,
        )  # fmt: skip
        muon = torch.optim.Muon(self.model.blocks.parameters(), lr=0.02, weight_decay=0.0)
        groups = [*adam.param_groups, *muon.param_groups]
        rates = [group["lr"] for group in groups]
        rows = blocks(docs, self.length, seed=0)
        self.model.train()
        step, loss, start = 0, math.nan, time.monotonic()
        while (spent := time.monotonic() - start) < seconds:
            left = min(1.0, (1 - spent / seconds) / 0.2)
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * left
            muon.param_groups[0]["momentum"] = 0.85 + 0.1 * min(1.0, step / 300)
            batch = np.stack([next(rows) for _ in range(self.setting.batch)])
            nll = self._nll(batch[:, :-1], batch[:, 1:]).mean()
            nll.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in (adam, muon):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            step, loss = step + 1, nll.item()
        spent = time.monotonic() - start
        tokens = step * self.setting.batch * self.length
        return {"steps": step, "tokens": tokens, "seconds": round(spent, 1),
                "loss": round(loss, 3), "tokens_per_second": round(tokens / spent)}  # fmt: skip

    def bits(self, docs: list[np.ndarray]) -> float:
        """Bits of the documents in full, begin-of-text given, end-of-text predicted."""
        self.model.eval()
        nats = 0.0
        with torch.no_grad():
            for given, predicted in (w for d in docs for w in windows(d, self.length)):
                nats += self._nll(given[None], predicted[None]).double().sum().item()
        return nats / math.log(2)

    def _nll(self, inputs: np.ndarray, targets: np.ndarray) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bfloat16):
            logits = self.model(torch.from_numpy(inputs))
        goal = torch.from_numpy(targets).flatten()
        return F.cross_entropy(logits.float().flatten(0, 1), goal, reduction="none")
