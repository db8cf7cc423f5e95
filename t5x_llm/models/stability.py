"""Options of stable training for any decoder: they rewrite what a family's preset describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.family import changed
from t5x_llm.nn.attention import QKNormConfig
from t5x_llm.nn.block import BlockConfig, GroupConfig, residual
from t5x_llm.nn.norm import NormConfig

# alpha and beta of DeepNorm for L layers.
DEEP_NORM: dict[str, Callable[[int], tuple[float, float]]] = {
    "fourth_root": lambda layers: ((2 * layers) ** 0.25, (8 * layers) ** -0.25),
    "square_root": lambda layers: ((2 * layers) ** 0.5, (2 * layers) ** -0.5),
}


@dataclasses.dataclass(frozen=True)
class Stability:
    """Changes to a model; what is not set stays as the family has it.

    Norms that are added are of the family's own kind.

    Attributes:
      deep_norm: norm(alpha * x + f(x)) instead of x + f(norm(x)), and fresh value, output and
        feed-forward kernels times beta: 'fourth_root' (arXiv 2203.00555, table 1, decoder-only:
        alpha = (2 L)^(1/4), beta = (8 L)^(-1/4)) or 'square_root' (GLM-130B, arXiv 2210.02414,
        section 2.1: (2 L)^(1/2), (2 L)^(-1/2)).
      sandwich_norm: norms on every layer's input and output (arXiv 2105.13290, section 2.3).
      embed_norm: a norm after the embedding (BLOOM, arXiv 2211.05100, section 3.2.2).
      qk_norm: norms, without bias, on queries and keys (arXiv 2302.05442, section 2): 'head',
        'heads' or 'all', as ``nn.attention.QKNormConfig.scope`` says.
      attention_softcap: cap of attention logits (Gemma 2, arXiv 2408.00118, section 2).
      logit_softcap: cap of the output logits.
    """

    deep_norm: str | None = None
    sandwich_norm: bool = False
    embed_norm: bool = False
    qk_norm: str | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None

    def __post_init__(self) -> None:
        if self.deep_norm is not None:
            check_choice("Stability.deep_norm", self.deep_norm, DEEP_NORM)
        if self.qk_norm is not None:
            check_choice("Stability.qk_norm", self.qk_norm, ("head", "heads", "all"))
        for name in ("attention_softcap", "logit_softcap"):
            if getattr(self, name) is not None:
                check_number(f"Stability.{name}", getattr(self, name), above=0)
        if self.deep_norm and self.sandwich_norm:
            raise ConfigError(
                "Stability.sandwich_norm",
                True,
                "False with Stability.deep_norm",
                "Both say where the norms of a layer are: choose one.",
            )

    @property
    def chosen(self) -> tuple[str, ...]:
        """Fields that are set, as gin knows them."""
        names = (field.name for field in dataclasses.fields(self))
        return tuple(f"Stability.{name}" for name in names if getattr(self, name))

    def apply(self, config: DecoderConfig) -> DecoderConfig:
        """The decoder with these changes.

        Raises:
          ConfigError: naming the option that this architecture has no place for.
        """
        blocks = [block for group in config.groups for block in group.blocks]
        for option, part in (("qk_norm", "qk_norm"), ("attention_softcap", "softcap")):
            if getattr(self, option) and not any(hasattr(b.mixer, part) for b in blocks):
                raise ConfigError(
                    f"Stability.{option}", getattr(self, option), "None: no layer here can have it"
                )
        groups = tuple(self._group(group, config) for group in config.groups)
        config = changed(config, groups=groups)
        if self.deep_norm:
            beta = DEEP_NORM[self.deep_norm](config.n_layers)[1]
            init = changed(config.init, residual_scale=beta, branch_scale=beta)
            config = changed(config, init=init, final_norm=None)
        if self.embed_norm and config.embed_norm is None:
            config = changed(config, embed_norm=_norm_of(blocks))
        if self.logit_softcap:
            config = changed(config, logit_softcap=self.logit_softcap)
        return config

    def _group(self, group: GroupConfig, config: DecoderConfig) -> GroupConfig:
        return changed(group, blocks=tuple(self._block(b, config.n_layers) for b in group.blocks))

    def _block(self, block: BlockConfig, n_layers: int) -> BlockConfig:
        mixer, joined = block.mixer, block.residual
        if self.qk_norm and hasattr(mixer, "qk_norm"):
            qk_norm = QKNormConfig(changed(_norm_of([block]), bias=False), self.qk_norm)
            mixer = changed(mixer, qk_norm=qk_norm)
        if self.attention_softcap and hasattr(mixer, "softcap"):
            mixer = changed(mixer, softcap=self.attention_softcap)
        for option in ("deep_norm", "sandwich_norm"):
            if getattr(self, option) and block.parallel != "no":
                raise ConfigError(
                    f"Stability.{option}", getattr(self, option), "unset where layers are parallel"
                )
        if self.deep_norm:
            alpha = DEEP_NORM[self.deep_norm](n_layers)[0]
            joined = residual(None, post=_norm_of([block]), skip_scale=alpha)
        elif self.sandwich_norm:
            norm = _norm_of([block])
            joined = changed(joined, pre=joined.pre or norm, out=joined.out or norm)
        return changed(block, mixer=mixer, residual=joined)


def _norm_of(blocks: list[BlockConfig]) -> NormConfig:
    """The kind of norm that the layers have."""
    for block in blocks:
        residual = block.residual
        for norm in (residual.pre, residual.post, residual.out):
            if norm is not None:
                return norm
    raise ConfigError("Run.stability", None, "None: the layers of this model have no norm")
