"""Adapters of a run and PEFT's directories: checked before training, begun from, exported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from t5x_llm.core.errors import ConfigError
from t5x_llm.hf import parity
from t5x_llm.hf.convert import STORED
from t5x_llm.hf.import_ import resolve
from t5x_llm.hf.peft.adapter import PlainAdapter, Site
from t5x_llm.hf.peft.base_mark import check_mark
from t5x_llm.hf.peft.config import LOW_RANK
from t5x_llm.hf.peft.fitting import check_fits
from t5x_llm.hf.peft.gate import BaseModel
from t5x_llm.hf.peft.layout import linear_layers
from t5x_llm.hf.peft.merge import Merged, merge_adapter
from t5x_llm.hf.peft.ours import filled, folded, from_plain, kind_of, no_form, site_path, to_plain
from t5x_llm.hf.peft.read import PeftAdapter, from_peft, open_adapter
from t5x_llm.hf.peft.serving import check_adapter_for
from t5x_llm.hf.peft.store import write_adapter
from t5x_llm.hf.peft.write import adapted, check_loadable, to_peft
from t5x_llm.hf.source import open_source
from t5x_llm.models.family import Family
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten, hf_shapes, unflatten
from t5x_llm.nn.adapters import roots
from t5x_llm.nn.adapters.config import Adapter
from t5x_llm.nn.adapters.lora import LoRA
from t5x_llm.run.config import Run

OUT = "adapter"


class Given(NamedTuple):
    """An adapter that a model is given.

    Attributes:
      config: by whose targets it is attached.
      params: nested dict of its parameters alone.
    """

    config: Adapter
    params: dict[str, Any]


def read_adapter(
    directory: str | os.PathLike[str], family: Family, base: str | None = None
) -> PlainAdapter:
    """Reads a PEFT directory for a base, as plain arrays.

    Args:
      directory: of the adapter.
      family: the preset of the base.
      base: where the base lies, to compare with the one that the adapter was trained on; or None.

    Raises:
      CheckpointError: it is damaged, or of another base.
      ConfigError: it has what an adapter here cannot hold.
    """
    layers = linear_layers(family)
    shapes = hf_shapes(family.weight_map(), Model(family.decoder()).abstract_params())
    found = check_fits(open_adapter(directory), layers, shapes)
    if base is not None:
        tensors = resolve(open_source(base).weights, family)
        check_mark(directory, tensors.read, tensors.shapes, base)
    return from_peft(found, layers)


def given_adapter(
    directory: str | os.PathLike[str], family: Family, base: str | None = None
) -> Given:
    """Reads a PEFT directory as an adapter that a model can be given; see ``read_adapter``."""
    return Given(*from_plain(read_adapter(directory, family, base), family))


def check_adapter(run: Run) -> None:
    """Checks before training that servers can load what will be exported, and what is begun from.

    Raises:
      ConfigError: naming the map of the model, the server's rule and the remedy.
      CheckpointError: ``Run.start_adapter`` is damaged, or of another base.
    """
    servers = run.export.adapter_for
    if run.adapter is None:
        return
    kind = kind_of(run.adapter)
    if servers and kind is None:
        raise no_form(run.adapter)
    if servers and kind in (*LOW_RANK, "IA3"):
        model = run.build_model()
        paths = [site_path(path) for path in flatten(model.abstract_params())]
        sites = {path[0]: Site() for path in paths if path is not None}
        layers = linear_layers(run.model)
        modules = adapted(PlainAdapter(kind, sites), layers)
        check_loadable(modules, layers, kind)
        if isinstance(run.adapter, LoRA):
            parts = max(sum(path in sites for path in m.paths()) for m in modules)
            rank = max([run.adapter.rank, *run.adapter.ranks.values()])
            rank *= parts * (2 if run.adapter.init == "pissa" else 1)
            check_adapter_for(servers, kind, rank, run.adapter.dora)
    if servers and kind is not None and not isinstance(run.adapter, LoRA):
        check_adapter_for(servers, kind, 0, False)
    if run.start_adapter is not None:
        start_params(run, None)


def start_params(run: Run, fresh: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the adapter's parameters that a run begins with: those of ``Run.start_adapter``.

    Args:
      run: with ``start_adapter``.
      fresh: nested dict of fresh ones, for maps that the directory has no adapter of; zeros if
        None.

    Raises:
      ConfigError: the run's adapter is another, naming what to set.
    """
    assert run.start_adapter is not None and run.adapter is not None
    if not isinstance(run.adapter, LoRA) or run.adapter.init == "pissa":
        raise ConfigError(
            "Run.start_adapter",
            run.start_adapter,
            "None where Run.adapter is not @LoRA(), or LoRA.init is 'pissa'",
        )
    plain = folded(read_adapter(run.start_adapter, run.model, run.start_from))
    if plain.kind != "LORA":
        raise ConfigError("Run.start_adapter", plain.kind, "a LoRA, as Run.adapter is")
    if fresh is None:
        abstract = flatten(run.build_model().abstract_params())
        flat = {p: np.zeros(x.shape, np.float32) for p, x in abstract.items() if site_path(p)}
    else:
        flat = flatten(fresh)
    return unflatten(filled(plain, run.adapter, flat))


def plain_of(run: Run, params: Mapping[str, Any]) -> PlainAdapter:
    """Returns the adapter in the parameters of a run's model, as plain arrays."""
    parts = roots.split(params)
    trained = {name: part for name, part in parts.items() if name != roots.BASE}
    assert run.adapter is not None
    return to_plain(run.adapter, jax.device_get(roots.merge(trained)))


def export_adapter(run: Run, params: Mapping[str, Any], out: str) -> parity.ParityReport:
    """Writes a run's adapter as a PEFT directory that passed its gate.

    Args:
      run: with an adapter.
      params: of its model, base and adapter.
      out: new, empty, or an earlier export.

    Raises:
      ConfigError: peft, or a server of ``Export.adapter_for``, could not load it.
      ParityError: what was written does not compute what the model does.
    """
    assert run.start_from is not None and run.adapter is not None
    source = open_source(run.start_from)
    tensors = resolve(source.weights, run.model)
    parts = {k: v for k, v in roots.split(params).items() if k != roots.BASE}
    # The base as its files have it: in training it may be held in fewer bits.
    logits = parity.streamed_logits(
        run.model, tensors.read, run.adapter, jax.device_get(roots.merge(parts))
    )
    return write_adapter(
        out,
        plain_of(run, params),
        BaseModel(run.start_from, run.model, tensors.read),
        logits,
        run.export.adapter_for,
    )


def merge_run(
    run: Run, params: Mapping[str, Any], out: str, dtype: str | None, unproved: bool
) -> Merged:
    """Writes a run's base and adapter as one Hugging Face directory; see ``merge_adapter``."""
    assert run.start_from is not None
    source = open_source(run.start_from)
    tensors = resolve(source.weights, run.model)
    config, made = to_peft(
        plain_of(run, params),
        linear_layers(run.model),
        os.path.basename(run.start_from),
        tensors.read,
        "CAUSAL_LM",
        loadable=False,
    )
    return merge_adapter(
        run.start_from,
        PeftAdapter(config, made),
        out,
        dtype=dtype or STORED,
        max_shard_bytes=run.export.max_shard_bytes,
        unproved=unproved,
    )
