"""Reading Hugging Face directories that GPTQ quantised: codes stay codes.

Of a linear layer X there are X.qweight int32 [inputs * bits / 32, outputs], codes of successive
inputs from the lowest bits up; X.qzeros int32 [groups, outputs * bits / 32], likewise of outputs;
X.scales [groups, outputs]; X.g_idx int32 [inputs], the group of each input. A weight is
scale * (code - zero). ``checkpoint_format`` 'gptq' stores zeros less 1, 'gptq_v2' as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf import parity
from t5x_llm.hf.import_ import Imported, NamedTensors, check_tokenizer, family_in, resolve
from t5x_llm.hf.reference import NoReference, numpy_reference
from t5x_llm.hf.safetensors_io import SafetensorsReader
from t5x_llm.hf.source import ModelSource, open_source, read_config
from t5x_llm.models.base_storage import Storing
from t5x_llm.models.family import Family
from t5x_llm.models.model import Model, Params
from t5x_llm.models.weight_map import Assembly, unflatten
from t5x_llm.nn.fewbit.gptq import BITS, GptqKernel

_FIELD = "quantization_config"
_PARTS = ("codes", "scales", "zeros", "groups")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a quantisation, from config.json.

    Attributes:
      bits: of a code, 4 or 8.
      group: inputs that share a scale; 0 for all.
      zero_less: what is stored of a zero is so much less.
    """

    bits: int
    group: int
    zero_less: int

    @property
    def storage(self) -> str:
        """Returns the name of the storage in ``models.base_storage``."""
        return f"gptq-{self.bits}-{self.group}"


def read_settings(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Settings]:
    """Returns config.json without its quantisation, and that.

    Raises:
      ConfigError: it is no GPTQ directory, or of bits or a format that are not read.
    """
    config = read_config(path)
    said = config.pop(_FIELD, None)
    if not isinstance(said, dict) or said.get("quant_method") != "gptq":
        raise ConfigError(
            f"config.json {_FIELD}",
            said,
            "quant_method = 'gptq'",
            f"{path} is no GPTQ directory: Run.base_storage = 'nf4' quantises any other model.",
        )
    bits, group = said.get("bits"), said.get("group_size", -1)
    if bits not in BITS or not isinstance(group, int) or isinstance(group, bool) or group == 0:
        shown = {"bits": bits, "group_size": group}
        raise ConfigError(f"config.json {_FIELD}", shown, f"bits of {BITS} and a group_size")
    form = said.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise ConfigError(f"config.json {_FIELD}.checkpoint_format", form, "'gptq' or 'gptq_v2'")
    return config, Settings(bits, max(group, 0), int(form == "gptq"))


class GptqReader:
    """The tensors of a GPTQ directory; a quantised weight goes by the name that it had before.

    Args:
      directory: a Hugging Face directory with safetensors.
      settings: of its config.json.

    Raises:
      CheckpointError: missing, damaged or malicious files.
    """

    def __init__(self, directory: str | os.PathLike[str], settings: Settings):
        self._reader, self.settings = SafetensorsReader(directory, integers=True), settings
        names = self._reader.names()
        self.layers = {n.removesuffix(".qweight") for n in names if n.endswith(".qweight")}
        for layer in sorted(self.layers):
            self._check(layer)

    def _check(self, layer: str) -> None:
        """Raises CheckpointError unless a layer's tensors fit each other."""
        bits, group = self.settings.bits, self.settings.group
        missing = [
            part for part in ("qzeros", "scales", "g_idx") if f"{layer}.{part}" not in self._reader
        ]
        if missing:
            raise CheckpointError(f"{layer}: GPTQ's tensors {', '.join(missing)} are missing.")
        shapes = {
            part: self._reader.shape(f"{layer}.{part}")
            for part in ("qweight", "qzeros", "scales", "g_idx")
        }
        inputs, outputs = self.shape(f"{layer}.weight")[::-1]
        groups = math.ceil(inputs / (group or inputs)) if inputs else 0
        expected = {
            "qweight": (inputs * bits // 32, outputs),
            "qzeros": (groups, outputs * bits // 32),
            "scales": (groups, outputs),
            "g_idx": (inputs,),
        }
        if shapes != expected:
            raise CheckpointError(
                f"{layer}: tensors of shapes {shapes} are no {bits}-bit GPTQ layer with groups of "
                f"{group or 'all'} inputs, which has {expected}."
            )

    def names(self) -> list[str]:
        """Names of all tensors, with one weight for what a layer is stored in."""
        own = {
            f"{layer}.{part}"
            for layer in self.layers
            for part in ("qweight", "qzeros", "scales", "g_idx")
        }
        plain = [name for name in self._reader.names() if name not in own]
        return [*plain, *(f"{layer}.weight" for layer in sorted(self.layers))]

    def _layer(self, name: str) -> str | None:
        layer = name.removesuffix(".weight")
        return layer if layer in self.layers and layer != name else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it; of a weight [outputs, inputs]."""
        if (layer := self._layer(name)) is None:
            return self._reader.shape(name)
        packed = self._reader.shape(f"{layer}.qweight")
        if len(packed) != 2:
            raise CheckpointError(f"{layer}.qweight of shape {packed} is no matrix.")
        return packed[1], packed[0] * 32 // self.settings.bits

    def dtype(self, name: str) -> np.dtype[Any]:
        """Returns the dtype of a tensor; that of a quantised weight is float32."""
        return np.dtype(np.float32) if self._layer(name) else self._reader.dtype(name)

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised."""
        if self._layer(name) is None:
            return self._reader.read(name)
        return (self.part(name, "codes") - self.part(name, "zeros")) * self.part(name, "scales")

    def part(self, name: str, part: str) -> np.ndarray:
        """Returns codes, scales, zeros or groups for each weight: [outputs, inputs] float32.

        Raises:
          CheckpointError: the weight is not quantised, or names groups that there are not.
        """
        if (layer := self._layer(name)) is None:
            raise CheckpointError(
                f"{name} is not quantised, as other weights of this GPTQ directory are. Take the "
                "model that it was made from, with Run.base_storage = 'nf4'."
            )
        bits = self.settings.bits
        if part == "codes":
            return _unpacked(self._reader.read(f"{layer}.qweight"), bits, 0).T.astype(np.float32)
        groups = self._reader.read(f"{layer}.g_idx").astype(np.int64)
        count = self._reader.shape(f"{layer}.scales")[0]
        if groups.size and not 0 <= groups.min() <= groups.max() < count:
            raise CheckpointError(f"{layer}.g_idx names groups that are not among its {count}.")
        if part == "groups":
            return np.broadcast_to(groups.astype(np.float32), self.shape(name))
        if part == "scales":
            values = self._reader.read(f"{layer}.scales").astype(np.float32)
        else:
            zeros = _unpacked(self._reader.read(f"{layer}.qzeros"), bits, 1)
            values = zeros.astype(np.float32) + self.settings.zero_less
        return values[groups].T


def _unpacked(packed: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Returns int32 [...] as its codes, uint8, ``32 / bits`` times as many along an axis."""
    words = np.ascontiguousarray(packed).view(np.uint32)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (np.expand_dims(words, axis + 1) >> (shifts[:, None] if axis == 0 else shifts)) & (
        2**bits - 1
    )
    shape = list(words.shape)
    shape[axis] *= len(shifts)
    return codes.astype(np.uint8).reshape(shape)


class StoringGptq(Storing):
    """``Storing`` whose kernels keep the codes of a GPTQ directory.

    Args:
      model: the model.
      settings: of the directory.
      shardings: as ``Storing`` takes them.
    """

    def __init__(self, model: Model, settings: Settings, shardings: Params):
        super().__init__(model, settings.storage, shardings)
        self.settings = settings
        self._parts: dict[str, Assembly] = {}

    def read_from(
        self, reader: GptqReader, weights: NamedTensors, assembled: Callable[[Any], Assembly]
    ) -> None:
        """Takes codes and scales from ``reader``, each by the weight map of the model."""
        for part in _PARTS:

            def read(name: str, part: str = part) -> np.ndarray:
                return reader.part(weights.stored_name(name), part)

            self._parts[part] = assembled(read)

    def one(self, path: str, assembly: Assembly, repeat: int | None) -> Any:
        """Makes one repeat of a kernel, with NumPy arrays; see ``Storing``."""
        matrix = self.kernels[path]
        found = {part: each.make(path, repeat) for part, each in self._parts.items()}
        spare = found["codes"].shape[: found["codes"].ndim - len(matrix.shape)]
        flat = {part: x.reshape(-1, matrix.n_inputs, matrix.n_outputs) for part, x in found.items()}
        made = [
            self._matrix(path, {part: x[i] for part, x in flat.items()})
            for i in range(math.prod(spare))
        ]
        return jax.tree.map(lambda *xs: np.stack(xs).reshape(*spare, *xs[0].shape), *made)

    def _matrix(self, path: str, found: dict[str, np.ndarray]) -> GptqKernel:
        """Makes one kernel of what each of its weights has: arrays [I, O] float32."""
        matrix, groups = self.kernels[path], found["groups"][:, 0].astype(np.int32)
        if (found["groups"] != found["groups"][:, :1]).any():
            raise CheckpointError(f"{path}: its outputs come from layers of unlike groups.")
        count = math.ceil(matrix.n_inputs / (self.settings.group or matrix.n_inputs))
        first = np.zeros(count, np.int64)
        first[groups[::-1]] = np.arange(matrix.n_inputs)[::-1]
        codes = found["codes"].astype(np.uint8).reshape(-1, *matrix.outputs)
        scales = found["scales"][first].astype(np.float16).reshape(-1, *matrix.outputs)
        zeros = found["zeros"][first].astype(np.uint8).reshape(-1, *matrix.outputs)
        if self.settings.bits == 4:
            codes = codes[::2] | (codes[1::2] << 4)
        made: Any = GptqKernel
        return made(codes, scales, zeros, groups, matrix, self.settings.bits)


def import_gptq(
    path: str | os.PathLike[str], model: Model, shardings: Params, check: bool = True
) -> Imported:
    """Reads a GPTQ directory as a frozen model for adapters.

    Args:
      path: a Hugging Face directory.
      model: the run's model.
      shardings: tree of ``base_storage.stored_axes`` with a sharding for every array.
      check: compare logits with a reference in NumPy, where there is one.

    Raises:
      CheckpointError: missing, damaged or malicious files; weights that are not quantised.
      ConfigError: it is no GPTQ directory, or a field of config.json is not known.
      ParityError: the logits differ.
    """
    source = open_base(path, "gptq")
    reader = source.weights
    assert isinstance(reader, GptqReader)
    family, tokenizer = family_in(source), source.tokenizer()
    check_tokenizer(tokenizer, family.vocab_size)
    weights = resolve(reader, family)
    report = _proved(source, family, weights) if check else None
    abstract = Model(family.decoder()).abstract_params()
    assembled = functools.partial(Assembly, family.weight_map(), abstract)
    storing = StoringGptq(model, reader.settings, shardings)
    storing.read_from(reader, weights, assembled)
    assembly = assembled(weights.read)
    params = unflatten({name: storing(name, assembly) for name in assembly.leaves})
    return Imported(family, params, tokenizer, report, source.generation())


def open_base(path: str | os.PathLike[str], storage: str) -> ModelSource:
    """Opens a model for adapters; the weights of a GPTQ directory are dequantised when read.

    Args:
      path: a Hugging Face directory or a GGUF file.
      storage: ``Run.base_storage``.

    Raises:
      CheckpointError: missing, damaged or malicious files.
      ConfigError: it is no GPTQ directory where ``storage`` says so, or the reverse.
    """
    if storage != "gptq":
        return open_source(path)
    path = pathlib.Path(path).expanduser()
    config, settings = read_settings(path)
    return ModelSource(path, "safetensors", config, GptqReader(path, settings))


def _proved(source: ModelSource, family: Family, weights: NamedTensors) -> parity.ParityReport:
    """Compares our logits with those of the dequantised weights by NumPy."""
    config = source.config
    model_type = str(config.get("model_type"))
    found = numpy_reference(model_type)
    if found is None:
        raise NoReference(f"No reference in NumPy for model_type {model_type!r}.")
    report = parity.check_parity(
        parity.streamed_logits(family, weights.read),
        (f"numpy {np.__version__}", lambda tokens: found(config, weights.read, tokens)),
        vocab_size=family.vocab_size,
        max_length=parity.max_length(family),
        long=parity.long_prompt(family),
        dtype=weights.stored,
    )
    report.raise_if_failed(f"Import of {source.path}")
    return report
