"""The family that a config.json describes, and the fields in it that no family knows."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.families import FAMILIES
from t5x_llm.models.family import Family
from t5x_llm.models.hf_config import WRAPPED, UnknownField, without

_MAX_LAYERS = 10_000
_REAL = ("bart", "mbert")  # architectures whose names are near another's


class ReadConfig(NamedTuple):
    """A config.json as it was read.

    Attributes:
      family: the preset dataclass.
      unknown: fields that were left out of account, by their names in the file.
    """

    family: Family
    unknown: dict[str, Any]

    def known(self) -> Family:
        """Returns the family; raises UnknownField if a field was left out of account."""
        for path, value in self.unknown.items():
            raise UnknownField(path, value, tuple(self.unknown))
        return self.family

    def note(self) -> tuple[str, ...]:
        """Returns what a report says of the fields that were left out of account."""
        if not self.unknown:
            return ()
        fields = ", ".join(f"{k} = {v!r}"[:80] for k, v in self.unknown.items())
        return (f"Fields of config.json that are unknown here had no effect: {fields}.",)


def family_of(config: Mapping[str, Any], ignore: Collection[str] = ()) -> Family:
    """The family dataclass of a config.json.

    Args:
      config: the parsed JSON.
      ignore: fields to read as if they were absent; 'a.b' is field b in field a.

    Raises:
      UnknownField: naming the fields that are not known.
      ConfigError: naming the model type, or the field whose value is not understood.
    """
    return read_family(config, ignore).known()


def read_family(config: Mapping[str, Any], ignore: Collection[str] = ()) -> ReadConfig:
    """Reads a config.json as ``family_of``, and lists fields that are not known.

    Raises:
      ConfigError: naming the model type, or the field whose value is not understood.
    """
    for path in ignore:
        config = without(config, path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise _unknown_model(config)
    for name, value in config.items():
        # Families write out a list a layer: no file may say how long that gets.
        if "layer" in name and isinstance(value, int) and value > _MAX_LAYERS:
            raise ConfigError(f"config.json {name}", value, f"at most {_MAX_LAYERS} layers")
    unknown: dict[str, Any] = {}
    while True:
        try:
            return ReadConfig(FAMILIES[model_type].from_hf_config(config), unknown)
        except UnknownField as e:
            shorter = without(config, e.path)
            if e.path in unknown or shorter == config:
                raise
            unknown[e.path], config = e.value, shorter
        except KeyError as e:
            field = f"config.json {e.args[0]}"
            raise ConfigError(field, None, "a value; the field is missing") from e
        except (TypeError, ValueError, ArithmeticError, AttributeError, IndexError) as e:
            raise ConfigError("config.json", model_type, f"fields of the right types ({e})") from e


def _unknown_model(config: Mapping[str, Any]) -> ConfigError:
    """Returns the error for a model of an architecture that is not known."""
    model_type = config.get("model_type")
    field, known = "config.json model_type", f"one of {', '.join(sorted(FAMILIES))}"
    wrapper = next((name for name in WRAPPED if isinstance(config.get(name), Mapping)), None)
    if wrapper is not None:
        inner = config[wrapper].get("model_type")
        return ConfigError(
            field,
            model_type,
            known,
            f"This is a model of several modalities, whose language model, {inner!r}, is described "
            f"in {wrapper}; only text models are read. Where {inner!r} is known here, save that "
            "part by itself: its weights, and its fields as config.json.",
        )
    if config.get("peft_type") is not None:
        return ConfigError(
            field,
            model_type,
            known,
            "These are the settings of an adapter (PEFT), not of a model: merge it into its base "
            f"model {config.get('base_model_name_or_path')!r} and import the result.",
        )
    if not isinstance(model_type, str) or not model_type:
        remedy = "It says which architecture the other fields belong to."
        return ConfigError(field, model_type, known, remedy)
    near = next((name for name in FAMILIES if _plain(model_type) == _plain(name)), None)
    near = near or next((name for name in FAMILIES if _misspelt(model_type, name)), None)
    if near is not None:
        return ConfigError(field, model_type, known, f"Did you mean {near!r}?")
    return ConfigError(
        field,
        model_type,
        known,
        f"Another architecture of a similar name computes something else; {model_type!r} itself is "
        "not known here.",
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _misspelt(name: str, known: str) -> bool:
    """Returns True where ``name`` is ``known`` but for one letter.

    A number more or another one makes another architecture: Gemma 3 is no misspelt Gemma.
    """
    if any(c.isdigit() for c in name + known) or name in _REAL or len(name) < 4:
        return False
    short, long = sorted((_plain(name), _plain(known)), key=len)
    for i in range(len(long)):
        cut = long[:i] + long[i + 1 :]
        if short == cut or (len(short) == len(long) and short[:i] + short[i + 1 :] == cut):
            return True
    return False
