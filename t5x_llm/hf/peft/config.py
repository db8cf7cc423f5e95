"""adapter_config.json of PEFT directories: read with suspicion, written in full."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf.peft.targets import matches, pattern_value
from t5x_llm.hf.shards import read_json

FILE = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
LOW_RANK = ("LORA", "ADALORA")
PROMPTS = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")
KINDS = (*LOW_RANK, "IA3", *PROMPTS)
MAX_RANK = 65536
MAX_TOKENS = 1_000_000

# Fields that change nothing of what a finished adapter computes: how it was begun, trained, found.
_IGNORED = frozenset(
    {"auto_mapping", "peft_version", "revision", "inference_mode", "init_lora_weights"}
    | {"lora_dropout", "loftq_config", "eva_config", "corda_config", "lora_ga_config"}
    | {"runtime_config", "ensure_weight_tying", "layers_pattern", "layers_to_transform"}
    | {"exclude_modules", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight"}
    | {"total_step", "target_r", "r", "init_ia3_weights", "encoder_hidden_size", "megatron_core"}
    | {"prefix_projection", "init_weights", "encoder_dropout", "encoder_num_layers"}
    | {"encoder_reparameterization_type", "prompt_tuning_init", "prompt_tuning_init_text"}
    | {"tokenizer_name_or_path", "tokenizer_kwargs", "qalora_group_size"}
)


@dataclasses.dataclass(frozen=True)
class PeftConfig:
    """Contents of adapter_config.json that a computation needs.

    Attributes:
      kind: ``peft_type``, one of ``KINDS``.
      base: ``base_model_name_or_path``, or None.
      task: ``task_type``, or None.
      rank: ``r`` (``init_r`` of AdaLoRA), where ``ranks`` does not say otherwise.
      alpha: ``lora_alpha``, where ``alphas`` does not say otherwise.
      dropout: ``lora_dropout``.
      rank_stabilised: the scale is alpha / sqrt(rank).
      dora: rows of the adapted weight have magnitudes of their own.
      ranks: ``rank_pattern``, names or patterns of modules to ranks.
      alphas: ``alpha_pattern``.
      kept: ``rank_pattern`` of AdaLoRA: which of the ranks a module keeps.
      targets: ``target_modules``; a string is a pattern.
      parameters: ``target_parameters``, names of fused experts.
      feedforward: ``feedforward_modules`` of (IA)3, whose inputs are scaled.
      transposed: ``fan_in_fan_out``: weights lie as [in, out].
      saved: ``modules_to_save``.
      tokens: ``num_virtual_tokens``.
      token_width: ``token_dim``.
      heads: ``num_attention_heads`` of a prefix: its key/value heads.
      layers: ``num_layers`` of a prefix.
      sides: ``num_transformer_submodules``: 2 where a decoder has virtual tokens too.
      resolved: (rank, scale) of modules that were cut out of a fused one, whose name the config
        has; no field of the file.
    """

    kind: str
    base: str | None = None
    task: str | None = "CAUSAL_LM"
    rank: int = 8
    alpha: float = 8
    dropout: float = 0.0
    rank_stabilised: bool = False
    dora: bool = False
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alphas: Mapping[str, float] = dataclasses.field(default_factory=dict)
    kept: Mapping[str, tuple[bool, ...]] = dataclasses.field(default_factory=dict)
    targets: tuple[str, ...] | str = ()
    parameters: tuple[str, ...] = ()
    feedforward: tuple[str, ...] | str = ()
    transposed: bool = False
    saved: tuple[str, ...] = ()
    tokens: int = 0
    token_width: int = 0
    heads: int = 0
    layers: int = 0
    sides: int = 1
    resolved: Mapping[str, tuple[int, float]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("targets", "feedforward", "saved", "parameters"):
            if isinstance(value := getattr(self, name), tuple):
                object.__setattr__(self, name, tuple(sorted(value)))  # peft's are sets

    def rank_of(self, module: str) -> int:
        """The rank that the config gives a module."""
        if module in self.resolved:
            return self.resolved[module][0]
        return int(pattern_value(self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        """The factor on B A of a module."""
        if module in self.resolved:
            return self.resolved[module][1]
        if self.kind == "ADALORA":
            return (self.alpha if self.alpha > 0 else self.rank) / (self.rank + 1e-5)
        rank, alpha = self.rank_of(module), pattern_value(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def feeds(self, module: str) -> bool:
        """Returns whether (IA)3 scales the inputs of a module, not its outputs."""
        return matches(self.feedforward, module)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields of adapter_config.json."""
        common: dict[str, Any] = {
            "peft_type": self.kind,
            "task_type": self.task,
            "base_model_name_or_path": self.base,
            "inference_mode": True,
        }
        if self.kind in PROMPTS:
            sizes = {
                "num_virtual_tokens": self.tokens,
                "token_dim": self.token_width,
                "num_attention_heads": self.heads,
                "num_layers": self.layers,
                "num_transformer_submodules": self.sides,
            }
            if self.kind == "PREFIX_TUNING":
                sizes |= {"prefix_projection": False}
            return dict(sorted((common | sizes).items()))
        targets = self.targets if isinstance(self.targets, str) else sorted(self.targets)
        common |= {"target_modules": targets, "fan_in_fan_out": self.transposed}
        common |= {"modules_to_save": sorted(self.saved) or None}
        if self.kind == "IA3":
            common |= {"feedforward_modules": sorted(self.feedforward)}
            return dict(sorted(common.items()))
        common |= {
            "r": self.rank,
            "lora_alpha": _whole(self.alpha),
            "lora_dropout": self.dropout,
            "bias": "none",
            "use_rslora": self.rank_stabilised,
            "use_dora": self.dora,
            "rank_pattern": dict(self.ranks),
            "alpha_pattern": {k: _whole(v) for k, v in self.alphas.items()},
        }
        if self.kind == "ADALORA":
            kept = {f"{module}.lora_E": list(v) for module, v in self.kept.items()}
            total = max(1, sum(map(sum, self.kept.values())) // max(1, len(self.kept)))
            common |= {"init_r": self.rank, "target_r": total, "rank_pattern": kept or None}
            # peft asks for a schedule; what is exported has done its training.
            common |= {"total_step": 1, "tinit": 0, "tfinal": 0}
        return dict(sorted(common.items()))


def read_peft_config(directory: str | os.PathLike[str]) -> PeftConfig:
    """Reads adapter_config.json.

    Raises:
      CheckpointError: it is missing or no JSON object.
      ConfigError: naming a field that is not known here and would change what is computed.
    """
    path = pathlib.Path(directory)
    if not os.path.lexists(path / FILE):
        raise CheckpointError(f"{directory}: no {FILE}. {_why_no_adapter(path)}".rstrip())
    return parse_peft_config(read_json(path, FILE))


def _why_no_adapter(path: pathlib.Path) -> str:
    if not path.is_dir():
        return "There is no such directory." if not path.exists() else "It is a file."
    if (path / "config.json").exists():
        return (
            "It is a whole model, not an adapter. Give the directory that peft or `t5x-llm export` "
            "wrote; a whole model is given as the model itself."
        )
    if (path / "operative_config.gin").exists():
        return f"It is a run: `t5x-llm export {path}` writes its adapter."
    return "An adapter's directory holds it and " + WEIGHTS + "."


def parse_peft_config(raw: Mapping[str, Any]) -> PeftConfig:
    """Reads the fields of adapter_config.json; raises as ``read_peft_config``."""
    read = _Fields(raw)
    kind = read.text("peft_type")
    if kind not in KINDS:
        remedy = f"Read here are {', '.join(KINDS)}; merge another with peft itself first."
        raise ConfigError(f"{FILE} peft_type", kind, "a method that is known here", remedy)
    common: dict[str, Any] = dict(
        kind=kind, base=read.text("base_model_name_or_path"), task=read.text("task_type")
    )
    if kind in PROMPTS:
        common |= dict(
            tokens=read.count("num_virtual_tokens", MAX_TOKENS),
            token_width=read.count("token_dim", MAX_TOKENS),
            heads=read.count("num_attention_heads", MAX_TOKENS),
            layers=read.count("num_layers", MAX_TOKENS),
            sides=read.count("num_transformer_submodules", 2),
        )
        read.rest(())
        return PeftConfig(**common)
    common |= dict(
        targets=read.names("target_modules"),
        transposed=read.flag("fan_in_fan_out"),
        saved=tuple(read.names("modules_to_save")),
    )
    if kind == "IA3":
        feeding = read.names("feedforward_modules")
        read.rest(())
        return PeftConfig(**common, feedforward=feeding)
    if read.raw.get("bias") not in (None, "none"):
        remedy = "Merge it with peft first, or train it with bias = 'none'."
        raise ConfigError(f"{FILE} bias", read.raw["bias"], "'none'", remedy)
    kept: dict[str, tuple[bool, ...]] = {}
    ranks: Mapping[str, Any] = read.pattern("rank_pattern")
    if kind == "ADALORA":
        kept = {k.removesuffix(".lora_E"): _booleans(k, v) for k, v in ranks.items()}
        ranks = {}
    for name, value in ranks.items():
        _check_rank(f"rank_pattern {name!r}", value)
    alphas = read.pattern("alpha_pattern")
    for name, value in alphas.items():
        _check_number(f"alpha_pattern {name!r}", value)
    rank = read.count("init_r" if kind == "ADALORA" else "r", MAX_RANK, 12 if kept else 8)
    parameters, dora = tuple(read.names("target_parameters")), read.flag("use_dora")
    stable = read.flag("use_rslora")
    read.rest({"bias", "lora_alpha"})
    return PeftConfig(
        **common,
        rank=rank,
        alpha=_check_number("lora_alpha", raw.get("lora_alpha", 8)),
        dropout=_check_number("lora_dropout", raw.get("lora_dropout", 0.0)),
        rank_stabilised=stable,
        dora=dora,
        ranks=ranks,
        alphas=alphas,
        kept=kept,
        parameters=parameters,
    )


class _Fields:
    """Fields of adapter_config.json, each checked as it is taken."""

    def __init__(self, raw: Mapping[str, Any]):
        self.raw, self._taken = raw, set[str]()

    def text(self, name: str) -> str | None:
        value = self._get(name)
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{FILE} {name}", value, "a text")
        return value

    def flag(self, name: str) -> bool:
        value = self._get(name)
        if value not in (None, True, False):
            raise ConfigError(f"{FILE} {name}", value, "true or false")
        return bool(value)

    def count(self, name: str, high: int, default: int = 1) -> int:
        value = self._get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
            raise ConfigError(f"{FILE} {name}", value, f"an integer from 1 to {high}")
        return value

    def names(self, name: str) -> tuple[str, ...] | str:
        value = self._get(name)
        if value is None or isinstance(value, str):
            return value or ()
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise ConfigError(f"{FILE} {name}", value, "a list of names, or a pattern")
        return tuple(value)

    def pattern(self, name: str) -> dict[str, Any]:
        value = self._get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ConfigError(f"{FILE} {name}", value, "an object of names and numbers")
        return value

    def rest(self, known: Collection[str]) -> None:
        """Raises ConfigError if a field that was not taken says something."""
        for name, value in self.raw.items():
            if name in self._taken or name in _IGNORED or name in known:
                continue
            if value not in (None, False, 0, "", [], {}):
                remedy = "Merge it with the version of peft that wrote it, and import the result."
                raise ConfigError(f"{FILE} {name}", value, "nothing: it is not known here", remedy)

    def _get(self, name: str) -> Any:
        self._taken.add(name)
        return self.raw.get(name)


def _check_rank(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_RANK:
        raise ConfigError(f"{FILE} {name}", value, f"an integer from 1 to {MAX_RANK}")


def _check_number(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e12:
        raise ConfigError(f"{FILE} {name}", value, "a finite number")
    return value


def _booleans(name: str, value: object) -> tuple[bool, ...]:
    if not isinstance(value, list) or len(value) > MAX_RANK or set(map(type, value)) - {bool}:
        raise ConfigError(f"{FILE} rank_pattern {name!r}", value, "a list of true and false")
    return tuple(value)


def _whole(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)
