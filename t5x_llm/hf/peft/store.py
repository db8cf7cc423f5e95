"""PEFT directories written: all files, read back, and the gate before anything is left."""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np

from t5x_llm.core.errors import ParityError
from t5x_llm.hf import parity
from t5x_llm.hf.peft.adapter import PlainAdapter
from t5x_llm.hf.peft.base_mark import base_mark, write_mark
from t5x_llm.hf.peft.config import FILE, WEIGHTS, PeftConfig
from t5x_llm.hf.peft.fitting import check_fits
from t5x_llm.hf.peft.gate import THRESHOLD, BaseModel, check_adapter
from t5x_llm.hf.peft.layout import linear_layers
from t5x_llm.hf.peft.read import PeftAdapter, open_adapter
from t5x_llm.hf.peft.serving import check_adapter_for, for_servers
from t5x_llm.hf.peft.write import to_peft
from t5x_llm.hf.reference import Logits
from t5x_llm.hf.safetensors_write import TensorSpec, new_directory, write_file
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import hf_shapes

README = "README.md"


def write_adapter(
    directory: str | os.PathLike[str],
    adapter: PlainAdapter,
    base: BaseModel,
    ours: Logits | None,
    servers: tuple[str, ...] = (),
) -> parity.ParityReport:
    """Writes a PEFT directory, reads it back, and compares logits; nothing is left that differs.

    Args:
      directory: new, empty, or an earlier export.
      adapter: arrays, by our paths.
      base: the model it adapts.
      ours: tokens [T] to logits [T, V] of the adapted model; None compares tensors alone.
      servers: programs that are to load it, see ``serving.SERVERS``.

    Raises:
      ConfigError: peft or a server could not load it, naming what; or ``directory`` cannot be
        written.
      ParityError: what was written does not compute what ours does.
    """
    family = base.family
    task = "SEQ_2_SEQ_LM" if family.decoder().kind == "encoder_decoder" else "CAUSAL_LM"
    layers = linear_layers(family)
    config, tensors = to_peft(adapter, layers, base.name, base.read, task)
    config, tensors = for_servers(config, tensors, servers)
    check_adapter_for(servers, config.kind, config.rank, config.dora)
    shapes = hf_shapes(family.weight_map(), Model(family.decoder()).abstract_params())
    with new_directory(directory) as draft:
        _write_files(draft, config, tensors)
        back = check_fits(open_adapter(draft), layers, shapes)
        _check_same(back, PeftAdapter(config, tensors), draft)
        if ours is None:
            report = parity.unproved("Nothing was given to compare with.", "float32")
        elif config.kind == "PREFIX_TUNING":
            why = "A prefix is content of the cache, for which there is no reference here."
            report = parity.unproved(why, "float32")
        else:
            report = check_adapter(back, base, ours)
            report.raise_if_failed(f"Export of the adapter to {directory}")
        report.write(draft)
        write_mark(draft, base_mark(base.read, shapes), base.name)
        (draft / README).write_text(_card(config, base, report), encoding="utf-8")
    return report


def _write_files(draft: pathlib.Path, config: PeftConfig, tensors: dict[str, np.ndarray]) -> None:
    (draft / FILE).write_text(json.dumps(config.to_json(), indent=2) + "\n")
    arrays = {k: np.ascontiguousarray(v, np.float32) for k, v in sorted(tensors.items())}
    layouts = {k: TensorSpec(v.dtype, v.shape) for k, v in arrays.items()}
    write_file(draft / WEIGHTS, layouts, arrays.__getitem__)


def _check_same(back: PeftAdapter, meant: PeftAdapter, draft: pathlib.Path) -> None:
    same = back.tensors.keys() == meant.tensors.keys() and all(
        np.array_equal(back.tensors[k], np.asarray(v, np.float32)) for k, v in meant.tensors.items()
    )
    if not same or back.config != meant.config:
        raise ParityError(f"The adapter reads back changed from {draft}. Nothing was written.")


def _card(config: PeftConfig, base: BaseModel, report: parity.ParityReport) -> str:
    name = base.name or "its base model"
    lines = ["---", "library_name: peft"]
    lines += ["tags:", "- t5x_llm", "---", "", f"# Adapter of {name}", ""]
    lines += [f"{config.kind} of a {type(base.family).__name__}, trained with t5x_llm.", ""]
    if report.prompts:
        figure = max(p.relative for p in report.prompts.values())
        lines.append(
            f"Logits of base and adapter, put together from these files by {report.reference}, are "
            f"within {figure:.1e} of the trained model's (allowed {THRESHOLD:g}, relative)."
        )
    load = "PeftModel.from_pretrained(base, directory)"
    return "\n".join([*lines, "", f"With peft: `{load}`.", ""])
