"""Families: sizes that know their decoder, their config.json and their weights.

A family lists which field of config.json is which of its own, once; reading and writing follow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self, cast

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.family_errors import check_sizes, in_own_names, sized
from t5x_llm.models.hf_config import check_copies, check_hf_config
from t5x_llm.models.preset_errors import by_config, by_preset
from t5x_llm.models.weight_map import Entry

REQUIRED = object()


class Family:
    """Base of the presets; subclasses are frozen dataclasses.

    Attributes:
      hf_type: ``model_type`` of config.json.
      architecture: its class in transformers.
      FIELDS: our field to (config.json's field, what transformers takes where it is absent, or
        ``REQUIRED``).
      WRITTEN: fields of config.json with the one value this family computes; written on export.
      FIXED: the same, but accepted only: old names, switches that are off; absent and null are
        fine.
      IGNORED: fields that change no inference: dropout rates, initialisation.
      READ: fields that ``read_hf`` reads.
      COPIES: fields that repeat, if they are there, an attribute of ours; refused if they do not.
      UNUSED: pattern of tensors that files may have and the model does not use; none if empty.
      OLD_NAMES: endings of tensors' names to what old files have there.
    """

    hf_type: ClassVar[str]
    architecture: ClassVar[str]
    FIELDS: ClassVar[Mapping[str, tuple[str, Any]]]
    WRITTEN: ClassVar[Mapping[str, Any]] = {}
    FIXED: ClassVar[Mapping[str, Any]] = {}
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    READ: ClassVar[frozenset[str]] = frozenset()
    COPIES: ClassVar[Mapping[str, str]] = {}
    UNUSED: ClassVar[str] = ""
    OLD_NAMES: ClassVar[Mapping[str, str]] = {}

    vocab_size: int
    # What ``dataclasses`` asks of its arguments, for type checkers: every preset is one.
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __init_subclass__(cls, **more: Any) -> None:
        """Lets every preset check its sizes, and name its own fields in what it refuses."""
        super().__init_subclass__(**more)
        for name, wrapped in (("__post_init__", sized), ("decoder", in_own_names)):
            if name in cls.__dict__:
                setattr(cls, name, wrapped(cls.__dict__[name]))

    def __post_init__(self) -> None:
        check_sizes(self)

    def decoder(self) -> DecoderConfig:
        """The generic decoder this preset describes."""
        raise NotImplementedError

    def weight_map(self) -> list[Entry]:
        """HF tensor names and layouts against ours."""
        raise NotImplementedError

    def check_decoder(self) -> None:
        """Raises ConfigError, naming a field of the preset, unless its decoder can be made."""
        try:
            self.decoder()
        except ConfigError as e:
            found = by_preset(e, self)
            if found is e:
                raise
            raise found from e

    def special_ids(self) -> dict[str, int]:
        """Our fields that are ids of the tokenizer's: ``pad_id``, ``start_id``."""
        return {}

    def copies(self) -> dict[str, str]:
        """Tensors that files may repeat, to the names of what they repeat."""
        if not self.decoder().tied:
            return {}
        return {"lm_head.weight": next(e.hf for e in self.weight_map() if e.ours == "embed.table")}

    def fitted(self, names: Collection[str]) -> Self:
        """The preset of a file with tensors ``names``, where config.json leaves it open."""
        return self

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Our fields that are no plain copy of one of config.json's."""
        return {}

    def write_hf(self) -> dict[str, Any]:
        """The fields of config.json that ``read_hf`` reads."""
        return {}

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> Self:
        """The preset of a transformers config.json.

        Raises:
          UnknownField: naming a field that this family does not know.
          ConfigError: naming a field whose value it cannot express.
          KeyError: naming a field that is missing.
        """
        known = {hf for hf, _ in cls.FIELDS.values()} | cls.IGNORED | cls.READ | cls.COPIES.keys()
        fixed = {"model_type": cls.hf_type, **cls.FIXED, **cls.WRITTEN}
        check_hf_config(config, known=known, fixed=fixed)
        kwargs: dict[str, Any] = {}
        kinds = {field.name: str(field.type) for field in dataclasses.fields(cast(Any, cls))}
        for ours, (hf, default) in cls.FIELDS.items():
            if config.get(hf) is not None:
                kwargs[ours] = config[hf]
            elif default is REQUIRED:
                raise KeyError(hf)
            else:
                kwargs[ours] = _of_null(kinds[ours], default) if hf in config else default
            if kwargs[ours] is not default and kwargs[ours] is not None:
                _check_kind(f"config.json {hf}", kwargs[ours], kinds[ours])
        kwargs |= cls.read_hf(config)
        try:
            preset = cls(**kwargs)
        except ConfigError as e:
            raise by_config(e, cls, cls.FIELDS, cls.READ) from e
        check_copies(config, {hf: getattr(preset, ours) for hf, ours in cls.COPIES.items()})
        return preset

    def to_hf_config(self) -> dict[str, Any]:
        """config.json of the transformers class."""
        return {
            "architectures": [self.architecture],
            "model_type": self.hf_type,
            **{hf: getattr(self, ours) for ours, (hf, _) in self.FIELDS.items()},
            **self.WRITTEN,
            **self.write_hf(),
        }

    def check_divides(self, name: str, by: str) -> None:
        """Raises ConfigError unless field ``by`` divides field ``name``."""
        whole, part = getattr(self, name), getattr(self, by)
        if not isinstance(part, int) or part < 1 or whole % part:
            family = type(self).__name__
            raise ConfigError(f"{family}.{by}", part, f"a divisor of {family}.{name} = {whole}")


def _of_null(kinds: str, default: Any) -> Any:
    """Returns what null means in a field of ours: None, or off, where it can be that."""
    names = set(kinds.replace(" ", "").split("|"))
    return None if "None" in names else False if names == {"bool"} else default


def _check_kind(field: str, value: Any, kinds: str) -> None:
    """Raises ConfigError unless a value is of a field's annotated type, such as 'int | None'."""
    names = set(kinds.replace(" ", "").split("|"))
    if isinstance(value, bool):
        ok = "bool" in names
    elif isinstance(value, (int, float)):
        ok = "float" in names or ("int" in names and float(value).is_integer())
    else:
        ok = isinstance(value, str) and "str" in names
    if not ok:
        raise ConfigError(field, value, f"a value of type {kinds}")


def dense(
    hf: str,
    ours: str,
    hf_axes: str,
    our_axes: str,
    bias: str | tuple[str, str] | None = None,
    **more: Any,
) -> list[Entry]:
    """Entries of one linear layer: ``hf.weight`` to ``ours.kernel``, and its bias.

    Args:
      hf: prefix of the tensors' names, without the dot.
      ours: path of the layer.
      hf_axes: einops pattern of HF's weight.
      our_axes: of our kernel.
      bias: patterns of the bias, HF's and ours; HF's alone where ours is the same without
        parentheses and the part's axis; None without a bias.
      more: further fields of ``Entry``, for fused tensors.
    """
    entries = [Entry(f"{hf}.weight", f"{ours}.kernel", hf_axes, our_axes, **more)]
    if isinstance(bias, str):
        dropped = ("P",) if "part" in more else ()
        plain = bias.replace("(", " ").replace(")", " ").split()
        bias = bias, " ".join(axis for axis in plain if axis not in dropped)
    if bias is not None:
        entries.append(Entry(f"{hf}.bias", f"{ours}.bias", *bias, **more))
    return entries


def fused_qkv(
    hf: str, ours: str, heads: tuple[int, int], head_dim: int, bias: bool = False
) -> list[Entry]:
    """Entries of one tensor ``hf`` that has all queries, then all keys, then all values.

    Args:
      hf: prefix of the tensor's name, without the dot.
      ours: path of the attention layer.
      heads: N and K.
      head_dim: H.
      bias: whether it has one.
    """
    (n, k), entries = heads, []
    for part, first, span in (("query", 0, n), ("key", n, k), ("value", n + k, k)):
        more: dict[str, Any] = dict(part=(first, n + 2 * k), span=span, sizes=(("H", head_dim),))
        patterns = ("(P H)", "P H") if bias else None
        entries += dense(hf, f"{ours}.{part}", "(P H) D", "D P H", patterns, **more)
    return entries


def grouped_qkv(hf: str, ours: str, heads: tuple[int, int]) -> list[Entry]:
    """Entries of one tensor ``hf`` that has, for each key/value head, its queries, key and value.

    Args:
      hf: prefix of the tensor's name, without the dot; also of its bias, if the layer has one.
      ours: path of the attention layer.
      heads: N and K.
    """
    (n, k), entries = heads, []
    group = n // k
    for part, first, span in (("query", 0, group), ("key", group, 1), ("value", group + 1, 1)):
        axis = "(K P)" if span > 1 else "K"
        more: dict[str, Any] = dict(part=(first, group + 2), span=span, sizes=(("K", k),))
        bias = ("(K P H)", f"{axis} H")
        entries += dense(hf, f"{ours}.{part}", "(K P H) D", f"D {axis} H", bias, **more)
    return entries


def norm(hf: str, ours: str, bias: bool, axes: str = "D") -> list[Entry]:
    """Entries of one norm: ``hf.weight`` to ``ours.scale``, and its bias."""
    entries = [Entry(f"{hf}.weight", f"{ours}.scale", axes, axes)]
    return entries + ([Entry(f"{hf}.bias", f"{ours}.bias", axes, axes)] if bias else [])


def changed(config: Any, **fields: Any) -> Any:
    """A copy of a config dataclass with other fields."""
    return dataclasses.replace(config, **fields)
