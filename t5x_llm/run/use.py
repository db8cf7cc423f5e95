"""Uses of a model from wherever it lies: held-out loss, completions, export."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.core.memory import memory_explained
from t5x_llm.data.catalog import Opened, open_objective, open_stores
from t5x_llm.evaluate.hooks import read_baseline
from t5x_llm.evaluate.perplexity import evaluate
from t5x_llm.hf.card import CardFacts
from t5x_llm.hf.convert import STORED, convert
from t5x_llm.hf.export import MAX_SHARD_BYTES, export_hf
from t5x_llm.hf.generation import NAMES, end_ids, sampling_fields
from t5x_llm.hf.parity import ParityReport
from t5x_llm.infer.sampler import Completion, Sampling, generate
from t5x_llm.parallel import MeshConfig, make_mesh, param_shardings
from t5x_llm.run.card import run_card
from t5x_llm.run.config import Run
from t5x_llm.run.data import held_out
from t5x_llm.run.identity import changed_since
from t5x_llm.run.load import Loaded, check_no_step, is_run, load
from t5x_llm.text.comparing import check_same_tokenizer
from t5x_llm.train.hooks import Results


class Exported(NamedTuple):
    """A Hugging Face directory that was written.

    Attributes:
      directory: where it lies.
      report: the parity check that it passed.
    """

    directory: str
    report: ParityReport


def evaluate_model(
    model: Loaded | str,
    run: Run | None = None,
    step: int | None = None,
    length: int | None = None,
    limit: int | None = None,
) -> Results:
    """Evaluates a model on held-out documents, its parameters in pieces over all devices.

    Args:
      model: loaded, or a path of ``run.load.load``.
      run: says which data; the model's own if None.
      step: checkpoint of a run directory.
      length: T, tokens of a window; the run's if None.
      limit: tokens read of each source; None reads all.

    Returns:
      Measures by source; with ``change`` where ``model`` is the directory of a run that was
      evaluated before its first step.

    Raises:
      ConfigError: nothing says which data; or its token ids mean other text to the model.
      DataError: the data was not prepared, or holds no document out.
    """
    loaded = load(model, step) if isinstance(model, str) else model
    run = run or loaded.run
    if run is None:
        raise ConfigError(
            "run",
            None,
            "the gin files of a run that say which data, as a Hugging Face directory does not",
            "Give --gin_file=..., or run=load_run(...) from Python.",
        )
    opened = open_stores(run.data)
    check_model_tokenizer(loaded, opened, model if isinstance(model, str) else "")
    if isinstance(model, str) and run is loaded.run:
        for text in changed_since(model, opened, step):
            print(f"warning: changed since the checkpoint was saved: {text}", file=sys.stderr)
    length = run.loop.sequence_length if length is None else length
    check_number("sequence_length", length, low=2, integer=True)
    config = MeshConfig()
    mesh, rules = make_mesh(config), config.rules()
    axes, shapes = loaded.model.logical_axes(), loaded.model.abstract_params()
    rows = -(-run.evaluation.batch_size // mesh.size) * mesh.size
    remedy = "Give a shorter sequence_length, or a smaller Evaluation.batch_size."
    with memory_explained(f"An evaluation of {rows} windows of {length:,} tokens", remedy):
        results = evaluate(
            loaded.model,
            jax.device_put(loaded.params, param_shardings(axes, shapes, mesh, rules)),
            held_out(opened),
            mesh,
            rules,
            length,
            rows,
            limit,
            objective=open_objective(run.data, opened, length),
        )
    baseline = read_baseline(model) if isinstance(model, str) and is_run(model) else None
    if baseline is not None and baseline.length == length and limit is None:
        results = baseline.compared(results, full=True)
    return results


def check_model_tokenizer(loaded: Loaded, opened: Opened, path: str = "") -> None:
    """Raises ConfigError unless a model was trained with the token ids of prepared data.

    Args:
      loaded: the model.
      opened: the data it is to be evaluated on.
      path: where the model lies, for messages.
    """
    size, needed = loaded.family.vocab_size, opened.tokenizer.vocab_size
    field, name = "Data.tokenizer", path or "the model"
    if loaded.tokenizer is not None:
        check_same_tokenizer(
            field,
            opened.tokenizer,
            loaded.tokenizer,
            (opened.tokenizer_path, name),
            f"Prepare the data with the model's: Data.tokenizer = {path!r}."
            if path and loaded.run is None
            else "Prepare the data with the tokenizer that the model was trained with.",
        )
    elif needed > size:
        raise ConfigError(field, opened.tokenizer_path, f"at most {size} tokens, as {name} has")
    else:
        print(
            f"warning: {name} has no tokenizer to compare with {opened.tokenizer_path}; the "
            "figures mean nothing if it was trained with another.",
            file=sys.stderr,
        )


def complete(
    model: Loaded | str,
    prompts: Sequence[str],
    sampling: Sampling | None = None,
    step: int | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Completion]:
    """Lets a model continue texts; see ``infer.sampler.generate``.

    A text ends at each token that the model's files name as an end, and at the tokenizer's.

    Args:
      model: loaded, or a path of ``run.load.load``.
      prompts: texts.
      sampling: as the model's files say if None; see ``sampling_for``.
      step: checkpoint of a run directory.
      on_text: called with (number of the prompt, new text) as text becomes certain.

    Raises:
      ConfigError: the model has no tokenizer, is an encoder, or cannot take a prompt.
    """
    loaded = load(model, step) if isinstance(model, str) else model
    if loaded.tokenizer is None:
        raise ConfigError("model", model, "a model whose directory holds its tokenizer too")
    remedy = "Give fewer or shorter prompts, or a smaller Sampling.max_tokens or Sampling.n."
    with memory_explained(f"The continuation of {len(prompts)} prompts", remedy):
        return generate(
            loaded.model,
            loaded.params,
            loaded.tokenizer,
            prompts,
            sampling or sampling_for(loaded.generation),
            end_ids=end_ids(loaded.generation, loaded.family.vocab_size),
            on_text=on_text,
        )


def sampling_for(
    generation: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
    otherwise: Mapping[str, Any] | None = None,
) -> Sampling:
    """Returns how texts are drawn: as the user says, else the model's files, else the caller.

    Args:
      generation: fields of generation_config.json.
      given: fields of ``Sampling`` that the user sets.
      otherwise: fields where neither user nor model says; ``Sampling``'s own defaults if None.

    Raises:
      ConfigError: a value that cannot work, naming the file if it is the file's.
    """
    given, files = dict(given or {}), sampling_fields(generation)
    try:
        return Sampling(**{**(otherwise or {}), **files, **given})
    except ConfigError as e:
        name = e.field.removeprefix("Sampling.")
        if name not in files or name in given:
            raise
        raise ConfigError(
            f"generation_config.json {NAMES.get(name, name)}",
            e.value,
            f"a value that texts can be drawn with ({e})",
            f"Correct the file, or give {name} yourself.",
        ) from e


def _card(path: str, model: Loaded) -> CardFacts:
    run = dataclasses.replace(model.run, directory=path)  # it may have been moved
    return run_card(run, open_stores(run.data), model.step or 0)


def export(
    path: str,
    out: str | None = None,
    step: int | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    unproved: bool = False,
    merge: bool = False,
) -> Exported:
    """Writes a model as a Hugging Face directory, one tensor in memory at a time.

    Of a run with adapters, writes the PEFT directory of its adapter.

    Args:
      path: a run directory, a Hugging Face directory or a ``.gguf`` file.
      out: directory to write; ``hf`` of the run if None, ``adapter`` for an adapter.
      step: checkpoint of a run; the newest sound one if None.
      dtype: of the weights; float32 for a run, as stored for a directory, if None.
      max_shard_bytes: limit on one safetensors file.
      unproved: write the model even if nothing here can compute it; the report says so.
      merge: of a run with adapters, write one model of base and adapter instead.

    Raises:
      ConfigError: ``out`` cannot be written, or config.json cannot say what the run trains.
      ParityError: the written model does not compute what ours does.
    """
    if is_run(path):
        model = load(path, step, lazy=True)
        model.run.check_exportable("There is no form of it that other programs read.")
        if model.run.adapter is not None:
            return _export_adapter(path, model, out, dtype, unproved=unproved, merge=merge)
        if merge:
            raise ConfigError("merge", True, f"a run with adapters; {path} has none")
        out = out or os.path.join(path, "hf")
        report = export_hf(
            model.params, model.family, model.tokenizer, out, max_shard_bytes,
            dtype or "float32", unproved, model.generation, _card(path, model),
        )  # fmt: skip
        return Exported(out, report)
    check_no_step(path, step)
    if out is None:
        raise ConfigError("out", None, "a directory to write", "t5x-llm export PATH OUT")
    done = convert(
        path, out, dtype=dtype or STORED, max_shard_bytes=max_shard_bytes, unproved=unproved
    )
    return Exported(out, done.report)


def _export_adapter(
    path: str, model: Loaded, out: str | None, dtype: str | None, *, unproved: bool, merge: bool
) -> Exported:
    from t5x_llm.run.adapters import OUT, export_adapter, merge_run

    if merge:
        out = out or os.path.join(path, "hf")
        return Exported(out, merge_run(model.run, model.params, out, dtype, unproved).report)
    if dtype not in (None, "float32"):
        raise ConfigError("dtype", dtype, "float32 for an adapter, which is small", "Or --merge.")
    out = out or os.path.join(path, OUT)
    return Exported(out, export_adapter(model.run, model.params, out))
