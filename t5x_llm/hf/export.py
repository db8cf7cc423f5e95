"""Export to a Hugging Face directory that transformers loads, proved by a parity check."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from t5x_llm.core.errors import CheckpointError, ParityError, check_choice, check_number
from t5x_llm.hf import parity
from t5x_llm.hf.import_ import check_tokenizer, read_config
from t5x_llm.hf.reference import reference
from t5x_llm.hf.safetensors_io import SafetensorsReader, new_directory, write_safetensors
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten, from_hf, hf_sizes, to_hf

if TYPE_CHECKING:
    from t5x_llm.text import Tokenizer

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


def export_hf(
    params: Mapping[str, Any],
    family: Any,
    tokenizer: Tokenizer | None,
    out_dir: str | os.PathLike[str],
    max_shard_bytes: int = 5_000_000_000,
    dtype: str = "float32",
) -> parity.ParityReport:
    """Writes config, weights, tokenizer, generation config, model card and parity report.

    Everything is written to a directory beside ``out_dir``, checked there, and renamed; a failure
    at any point leaves nothing, and an earlier export untouched.

    Args:
      params: parameter tree of NumPy or JAX arrays.
      family: the preset dataclass.
      tokenizer: saved with the model if given.
      out_dir: new, empty, or an earlier export.
      max_shard_bytes: limit on the data of one safetensors file.
      dtype: of the stored weights.

    Raises:
      ConfigError: ``out_dir`` cannot be written, or ``tokenizer`` does not fit the model.
      ParityError: the written model does not compute what ours does.
    """
    check_choice("dtype", dtype, DTYPES)
    check_number("max_shard_bytes", max_shard_bytes, low=1, integer=True)
    check_tokenizer(tokenizer, family.vocab_size)
    with new_directory(out_dir) as draft:
        _write_configs(draft, family, tokenizer, dtype)
        _write_weights(draft, params, family, max_shard_bytes, dtype)
        if tokenizer is not None:
            tokenizer.save(draft)
        report = _prove(draft, params, family, dtype)
        report.raise_if_failed(f"Export to {out_dir}")
        report.write(draft)
        (draft / "README.md").write_text(_model_card(family, report), encoding="utf-8")
    return report


def _write_configs(
    draft: pathlib.Path, family: Any, tokenizer: Tokenizer | None, dtype: str
) -> None:
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_id", None) for name in ("bos", "eos", "pad")
    }
    config = {**family.to_hf_config(), **ids, "dtype": dtype, "use_cache": True}
    generation = {name: value for name, value in ids.items() if value is not None}
    for name, value in (("config", config), ("generation_config", generation)):
        (draft / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")


def _write_weights(
    draft: pathlib.Path, params: Mapping[str, Any], family: Any, max_shard_bytes: int, dtype: str
) -> None:
    target = DTYPES[dtype]
    abstract = Model(family.decoder()).abstract_params()
    expected = {k: tuple(v.shape) for k, v in flatten(abstract).items()}
    found = {k: tuple(v.shape) for k, v in flatten(params).items()}
    if expected != found:
        wrong = sorted(k for k in expected | found if expected.get(k) != found.get(k))[0]
        raise CheckpointError(
            f"Parameter {wrong}: {type(family).__name__} expects shape {expected.get(wrong)}, "
            f"found {found.get(wrong)}."
        )

    def narrowed(name: str, make: Any) -> np.ndarray:
        array = make()
        with np.errstate(over="ignore"):
            out = array.astype(target)
        if not np.all(np.isfinite(out.astype(np.float32))):
            raise ParityError(
                f"{name}: values that are not finite in {dtype}. Nothing was written."
            )
        return out

    tensors = [
        (name, functools.partial(narrowed, name, make))
        for name, make in to_hf(family.weight_map(), params)
    ]
    sizes = {k: n * target.itemsize for k, n in hf_sizes(family.weight_map(), params).items()}
    write_safetensors(draft, tensors, sizes, max_shard_bytes)


def _prove(
    draft: pathlib.Path, params: Mapping[str, Any], family: Any, dtype: str
) -> parity.ParityReport:
    """Reads the files back, compares them with ``params``, then the logits with a reference."""
    reader = SafetensorsReader(draft)
    abstract = Model(family.decoder()).abstract_params()
    ours = flatten(params)

    def same(path: str, array: np.ndarray) -> np.ndarray:
        expected = np.asarray(ours[path], np.float32).astype(DTYPES[dtype]).astype(np.float32)
        if not np.array_equal(array, expected):
            raise ParityError(f"{path} reads back changed from {draft}. Nothing was written.")
        return array

    written = from_hf(family.weight_map(), abstract, reader.read, same)
    return parity.check_parity(
        parity.our_logits(family, written),
        reference(draft, read_config(draft), reader.read),
        vocab_size=family.vocab_size,
        max_length=family.decoder().learned_positions,
        dtype=dtype,
    )


def _model_card(family: Any, report: parity.ParityReport) -> str:
    long = report.prompts["long"]
    count = Model(family.decoder()).parameter_count()["total"]
    kind = family.to_hf_config()["architectures"][0]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# {kind}, {count:,} parameters

Trained with t5x_llm and exported in {report.dtype}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")
```

Checked against {report.reference}: on a prompt of {long.tokens} tokens the logits differ by at
most {long.max_abs:.2g} (largest logit {long.scale:.3g}) and the likeliest token agrees at
{long.top1:.1%} of positions. `parity.json` has the full report.
"""
