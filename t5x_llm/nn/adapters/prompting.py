"""Prefix tuning, prompt tuning and P-tuning: the configs of methods that add virtual tokens."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.core.rng import fold_name
from t5x_llm.nn.adapters.config import Adapter
from t5x_llm.nn.adapters.places import blocks, drawn
from t5x_llm.nn.adapters.virtual import (
    PrefixKeys,
    PrefixTrunk,
    PromptEncoder,
    PromptRows,
    VirtualTokens,
)
from t5x_llm.nn.attention import Attention

if TYPE_CHECKING:
    from jaxtyping import Array, Key


@dataclasses.dataclass(frozen=True)
class Prefix(Adapter):
    """Prefix tuning: learned keys and values before those of every attention layer (2101.00190).

    Positions of the text begin after the prefix, as in peft. Of an encoder-decoder it is the
    decoder's self-attention that has one.

    Attributes:
      tokens: n, virtual tokens.
      std: standard deviation of fresh keys and values.
    """

    tokens: int = 20
    std: float = 0.02

    method: ClassVar[str] = "Prefix"

    def __post_init__(self) -> None:
        check_number("Prefix.tokens", self.tokens, low=1, integer=True)
        check_number("Prefix.std", self.std, low=0)

    @property
    def virtual(self) -> int:
        """Returns ``tokens``."""
        return self.tokens

    def attach(self, module: Any, key: Key[Array, ""]) -> None:
        """Gives every self-attention of a decoder its keys and values; see ``attach_prefix``."""
        _table_width(module, "Prefix")
        module.adapter = VirtualTokens(self.tokens)
        for path, attention, heads, repeat in _prefixed(module, "Prefix"):
            own = PrefixKeys(self.tokens, heads)
            attention.adapter = drawn(own, path, key, lambda _: self.std, repeat)


@dataclasses.dataclass(frozen=True)
class Prompt(Adapter):
    """Prompt tuning: learned rows before those of the input (arXiv 2104.08691).

    Of an encoder-decoder they stand before what the encoder reads.

    Attributes:
      tokens: n, virtual tokens.
      init: fresh rows are those of random ids in the embedding table ('vocabulary', which the
        paper found to learn faster), or 'random' numbers.
      std: standard deviation of random ones.
    """

    tokens: int = 20
    init: str = "vocabulary"
    std: float = 0.02

    method: ClassVar[str] = "Prompt"

    def __post_init__(self) -> None:
        check_choice("Prompt.init", self.init, ("vocabulary", "random"))
        check_number("Prompt.tokens", self.tokens, low=1, integer=True)
        check_number("Prompt.std", self.std, low=0)

    @property
    def virtual(self) -> int:
        """Returns ``tokens``."""
        return self.tokens

    def check(self, config: Any, total_steps: int | None = None) -> None:
        """Checks that virtual tokens know nothing of the text after them; see ``Adapter``."""
        _check_causal(config, "Prompt")

    def attach(self, module: Any, key: Key[Array, ""]) -> None:
        """Gives the model the rows; see ``Adapter``."""
        own = PromptRows(self.tokens, _table_width(module, "Prompt"))
        own = drawn(own, "adapter", key, lambda _: self.std)
        if self.init == "vocabulary":
            table = module.embed.table[...]
            ids = jax.random.randint(fold_name(key, "adapter.ids"), self.tokens, 0, len(table))
            own.embedding[...] = table[ids].astype(jnp.float32)
        module.adapter = own


@dataclasses.dataclass(frozen=True)
class PTuning(Adapter):
    """Virtual tokens that a small network makes of embeddings; only what it makes is exported.

    Attributes:
      form: 'deep' makes keys and values of every layer, as ``Prefix`` has them, by tanh(W e + b)
        for all layers and a linear map of each (P-tuning v2, arXiv 2110.07602, with its
        reparametrisation); 'input' makes rows before the input, as ``Prompt`` has them, by three
        linear maps with ReLU between (P-tuning, arXiv 2103.10385).
      tokens: n, virtual tokens.
      hidden: width of the network; None for that of the model.
      std: standard deviation of fresh embeddings.
    """

    form: str = "deep"
    tokens: int = 20
    hidden: int | None = None
    std: float = 0.02

    method: ClassVar[str] = "PTuning"

    def __post_init__(self) -> None:
        check_choice("PTuning.form", self.form, ("deep", "input"))
        check_number("PTuning.tokens", self.tokens, low=1, integer=True)
        if self.hidden is not None:
            check_number("PTuning.hidden", self.hidden, low=1, integer=True)
        check_number("PTuning.std", self.std, low=0)

    @property
    def virtual(self) -> int:
        """Returns ``tokens``."""
        return self.tokens

    def check(self, config: Any, total_steps: int | None = None) -> None:
        """Checks that virtual tokens know nothing of the text after them; see ``Adapter``."""
        if self.form == "input":
            _check_causal(config, "PTuning")

    def attach(self, module: Any, key: Key[Array, ""]) -> None:
        """Gives the model the network, and its layers the last maps of a deep one."""
        width = _table_width(module, "PTuning")
        hidden = self.hidden or module.config.d_model

        def std(name: str) -> float:
            if "bias" in name:
                return 0.0
            fan_in = width if name in ("kernel", "kernel_0") else hidden
            return self.std if name == "embedding" else 1.0 / math.sqrt(fan_in)

        if self.form == "input":
            own: VirtualTokens = PromptEncoder(self.tokens, width, hidden)
        else:
            places = _prefixed(module, "PTuning")
            width = math.prod(places[0][2])  # as peft has it
            own = PrefixTrunk(self.tokens, width, hidden)
            for path, attention, heads, repeat in places:
                maps = PrefixKeys(self.tokens, heads, hidden)
                attention.adapter = drawn(maps, path, key, std, repeat)
        module.adapter = drawn(own, "adapter", key, std)


Heads = tuple[int, int]


def _prefixed(module: Any, name: str) -> list[tuple[str, Attention, Heads, int]]:
    """The self-attention layers of a decoder: (path of an adapter, layer, (K, H), copies of it).

    Raises:
      ConfigError: no layer has keys and values by head.
    """
    found = []
    for path, block, repeat in blocks(module):
        attention = getattr(block, block.config.mixer.part)
        if isinstance(attention, Attention) and not path.startswith("encoder."):
            heads = (attention.config.n_kv_heads, attention.config.head_dim)
            place = f"{path}.{block.config.mixer.part}.adapter"
            found.append((place, attention, heads, repeat))
    if not found:
        raise ConfigError(
            "Run.adapter",
            name,
            "LoRA, Bottleneck or another method that this model has a place for",
            "A prefix is keys and values by head before those of attention, and no layer of this "
            "model has them.",
        )
    return found


def _causal(mixer: Any) -> bool:
    return bool(getattr(mixer, "causal", mixer.part == "attention"))


def _check_causal(config: Any, name: str) -> None:
    """Refuses models in which several segments of a row cannot share rows before the input."""
    blocks = (block for group in getattr(config, "groups", ()) for block in group.blocks)
    if getattr(config, "kind", "") == "decoder" and all(_causal(b.mixer) for b in blocks):
        return
    raise ConfigError(
        "Run.adapter",
        name,
        "Prefix, PTuning(form='deep'), Bottleneck or LoRA for this model",
        "Several texts share a row, and rows before the input are shared by all of them: causal "
        "attention alone allows that. A recurrence or an encoder would mix the texts.",
    )


def _table_width(module: Any, name: str) -> int:
    """The width of the embedding table, before which rows are put."""
    if not hasattr(module, "adapter"):
        raise ConfigError("Run.adapter", name, "a method other than virtual tokens",
                          "The input of this model is no table of tokens.")  # fmt: skip
    return int(module.embed.table.shape[-1])
