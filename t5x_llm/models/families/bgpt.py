"""bGPT (arXiv 2402.19155), with the tensors of the released sanderwood/bgpt.

Released files have no config.json: its fields are those of the release's config.py, in lower case.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from t5x_llm.models.byte_patches import BytePatchesConfig
from t5x_llm.models.families.gpt2 import GPT2
from t5x_llm.models.family import REQUIRED, Family, dense, norm
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.block import GroupConfig
from t5x_llm.nn.param import InitConfig


@dataclasses.dataclass(frozen=True)
class BGPT(Family):
    """Two GPT-2s: one over patches of bytes, one over the bytes of a patch.

    Attributes:
      d_model: D.
      n_patch_layers: of the patch level.
      n_byte_layers: of the byte level.
      n_heads: N, a divisor of D; None means D / 64.
      patch_size: P, bytes of a patch.
      max_patches: rows of the table of patches' positions.
      vocab_size: V, the bytes and 256, which ends a document.
      norm_eps: LayerNorm epsilon.
      init_std: standard deviation of fresh weights.
    """

    d_model: int
    n_patch_layers: int
    n_byte_layers: int
    n_heads: int | None = None
    patch_size: int = 16
    max_patches: int = 1024
    vocab_size: int = 257
    norm_eps: float = 1e-5
    init_std: float = 0.02

    hf_type = "bgpt"
    architecture = "bGPTLMHeadModel"
    FIELDS: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "d_model": ("hidden_size", REQUIRED),
        "n_patch_layers": ("patch_num_layers", REQUIRED),
        "n_byte_layers": ("byte_num_layers", REQUIRED),
        "n_heads": ("num_attention_heads", None),
        "patch_size": ("patch_size", 16),
        "max_patches": ("patch_length", 1024),
        "vocab_size": ("vocab_size", 257),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "init_std": ("initializer_range", 0.02),
    }
    # The patch level's table of a vocabulary it does not have.
    UNUSED = r"^patch_level_decoder\.base\.wte\.weight$"

    def __post_init__(self) -> None:
        if self.n_heads is not None:
            self.check_divides("d_model", "n_heads")
        self.check_decoder()

    def _groups(self, n_layers: int) -> tuple[GroupConfig, ...]:
        n_heads = max(self.d_model // 64, 1) if self.n_heads is None else self.n_heads
        sizes = (self.vocab_size, self.d_model, n_layers, n_heads)
        return GPT2(*sizes, norm_eps=self.norm_eps).decoder().groups

    def decoder(self) -> BytePatchesConfig:  # type: ignore[override]
        """The generic model of byte patches this preset describes."""
        groups = self._groups(self.n_byte_layers)
        norm = groups[0].blocks[0].residual.pre
        assert norm is not None
        scale = 1 / math.sqrt(2 * (self.n_patch_layers + self.n_byte_layers))
        return BytePatchesConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            patch_size=self.patch_size,
            patches=self._groups(self.n_patch_layers),
            groups=groups,
            final_norm=norm,
            max_patches=self.max_patches,
            init=InitConfig(self.init_std, self.init_std, scale, 1.0),
        )

    def copies(self) -> dict[str, str]:
        """The head is stored beside the table."""
        name = "byte_level_decoder.base.{}.weight"
        return {name.format("lm_head"): name.format("transformer.wte")}

    def weight_map(self) -> list[Entry]:
        """HF tensor names and layouts against ours."""
        patch, byte = "patch_level_decoder.", "byte_level_decoder.base.transformer."
        entries = [
            Entry(f"{byte}wte.weight", "embed.table", "V D", "V D"),
            *dense(f"{patch}patch_embedding", "patch_level.project", "D (S V)", "S V D", "D"),
        ]
        for hf, ours in ((byte, ""), (f"{patch}base.", "patch_level.")):
            theirs, block = f"{hf}h.{{layer}}.", f"{ours}group_0.block_0."
            qkv = f"{theirs}attn.c_attn"
            entries += [
                Entry(f"{hf}wpe.weight", f"{ours}position_embed.table", "T D", "T D"),
                *norm(f"{hf}ln_f", f"{ours}final_norm", bias=True),
                *norm(f"{theirs}ln_1", f"{block}attention_norm", bias=True),
                *norm(f"{theirs}ln_2", f"{block}mlp_norm", bias=True),
                *dense(f"{theirs}attn.c_proj", f"{block}attention.out", "(N H) D", "N H D", "D"),
                *dense(f"{theirs}mlp.c_fc", f"{block}mlp.up", "I O", "I O", "O"),
                *dense(f"{theirs}mlp.c_proj", f"{block}mlp.down", "I O", "I O", "O"),
            ]
            for i, part in enumerate(("query", "key", "value")):
                path = f"{block}attention.{part}"
                entries += dense(qkv, path, "D (P N H)", "D N H", "(P N H)", part=(i, 3))
        return entries
