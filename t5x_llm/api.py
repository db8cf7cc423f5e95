"""The package from Python: load a run, plan it, train it, use what came of it.

    from t5x_llm import api

    run = api.load_run("configs/recipes/quickstart.gin", bindings={"Loop.steps": 30})
    result = api.train(run)
    api.generate(result.directory, "春风")[0].text

The commands of ``t5x-llm`` are made of these functions, which import JAX; the module does not. A
mistake of the user's raises ``T5xLLMError`` with what was received and what to do.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from t5x_llm.core.errors import DataError, T5xLLMError

if TYPE_CHECKING:
    from jax.sharding import AbstractMesh, Mesh

    from t5x_llm.data.catalog import Opened
    from t5x_llm.hf.convert import Converted
    from t5x_llm.infer.sampler import Completion, Sampling
    from t5x_llm.plan.planned import PlannedRun
    from t5x_llm.run.assembled import Assembled
    from t5x_llm.run.data import OpenData
    from t5x_llm.run.load import Loaded
    from t5x_llm.run.resolved import Bindings, ResolvedRun
    from t5x_llm.run.result import TrainResult
    from t5x_llm.run.use import Exported
    from t5x_llm.train.hooks import Results
    from t5x_llm.train.task import TrainTask

__all__ = [
    "Completion",
    "Loaded",
    "PlannedRun",
    "ResolvedRun",
    "Sampling",
    "T5xLLMError",
    "TrainResult",
    "assemble",
    "describe",
    "evaluate",
    "export_model",
    "generate",
    "import_model",
    "load_model",
    "load_run",
    "plan",
    "prepare",
    "train",
]

Path = str | os.PathLike[str]
# Types of arguments and results; each is imported, JAX with it, when it is asked for.
_TYPES = {
    "Completion": "infer.sampler",
    "Loaded": "run.load",
    "PlannedRun": "plan.planned",
    "ResolvedRun": "run.resolved",
    "Sampling": "infer.sampler",
    "TrainResult": "run.result",
}


def __getattr__(name: str) -> type:
    if name in _TYPES:
        found: type = getattr(importlib.import_module(f"t5x_llm.{_TYPES[name]}"), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_run(
    *gin_files: Path,
    bindings: Bindings = (),
    search_paths: Sequence[Path] = (),
    allow_imports: Sequence[str] = (),
) -> ResolvedRun:
    """Reads the configuration of a run and checks it.

    Args:
      gin_files: in order, a later binding replaces an earlier one; a run directory stands for the
        operative config saved in it.
      bindings: ``{"Loop.steps": 10}`` or ``["Loop.steps = 10"]``, after the files. In a dict a
        string such as ``"@Llama()"`` or ``"%name"`` is a gin reference, in a tuple too.
      search_paths: further directories to look for files in.
      allow_imports: modules, besides this package's, that a gin file may import.

    Raises:
      ConfigError: for any mistake in it, naming the field and the remedy.

    Example:
      run = load_run("configs/recipes/quickstart.gin", bindings={"Loop.steps": 30})
      longer = load_run("runs/quickstart", bindings={"Loop.steps": 2000})
    """
    from t5x_llm.run.resolved import resolve_files

    return resolve_files(gin_files, bindings, search_paths, allow_imports)


def describe(run: ResolvedRun) -> str:
    """Describes a run as ``train.py --dry_run`` prints it; compiles and writes nothing.

    Returns:
      Configuration, parameters, mesh, shardings, mixture, memory (bytes of a device) and FLOPs.

    Raises:
      T5xLLMError: whatever the run itself would raise before its first step.

    Example:
      print(describe(load_run("configs/recipes/quickstart.gin")))
    """
    from t5x_llm.plan.describe import describe as describe_run

    return describe_run(run.config, run.resolved)


def plan(
    run: ResolvedRun,
    machine: str,
    slices: int = 1,
    *,
    tokens: float | None = None,
    price: float | None = None,
) -> PlannedRun:
    """Compiles the run's train step for described devices, or reckons it for GPUs.

    Args:
      run: whose mesh has as many devices as the slices.
      machine: such as ``v5p-128`` (needs libtpu, but no TPU), ``h100-64``, or ``here`` for the
        devices of this machine, which keeps the compiled step for training.
      slices: how many slices, joined by the data-centre network.
      tokens: of the run; adds days.
      price: of a chip-hour; adds money.

    Raises:
      ConfigError: the run does not fit the mesh, the machine is unknown, or libtpu is missing.

    Example:
      plan(load_run("configs/recipes/llama2_7b.gin"), "h100-64").figures()["mfu"]
    """
    from t5x_llm.plan.planned import parse_machines, plan_run

    return plan_run(run.config, parse_machines(machine, slices), slices, tokens, price)


def prepare(
    run: ResolvedRun, *, force: bool = False, verify: bool = True, process_index: int = 0
) -> Opened:
    """Trains the tokenizer if the run asks for one, builds its token stores, and opens them.

    What is there and unchanged is kept. ``train`` prepares too, in a process of its own.

    Args:
      run: the run.
      force: read seqio tasks again even if they seem unchanged.
      verify: read the stores that are there, and build a damaged one again.
      process_index: of this process, where several prepare one bucket: 0 builds, others wait.

    Raises:
      DataError: files that are missing or cannot be read.

    Example:
      {name: store.train.tokens for name, store in prepare(run).stores.items()}
    """
    from t5x_llm.data.prepare import prepare as prepare_data

    data = run.config.data
    return prepare_data(data, force=force, verify=verify, process_index=process_index)


def assemble(
    run: ResolvedRun,
    mesh: Mesh | AbstractMesh | None = None,
    data: OpenData | None = None,
    task: TrainTask | None = None,
) -> Assembled:
    """Makes what training runs and a plan compiles: mesh, model, optimizer, task, jitted step.

    Args:
      run: what is assembled.
      mesh: devices that are here or described, or sizes alone; this machine's if None.
      data: what training reads; without it the batch that prepared data will give.
      task: what is learned instead of the prediction of the run's tokens.

    Raises:
      ConfigError: the run's mesh does not fit the devices.

    Example:
      assembled = assemble(run)
      assembled.batch.tokens.shape, assembled.step.lower(*assembled.arguments)
    """
    from t5x_llm.run import assembled

    return assembled.assemble(run.config, mesh, data, task)


def train(run: ResolvedRun, resume: str = "auto") -> TrainResult:
    """Trains, evaluates, samples, exports and reports, as ``python train.py`` does.

    Args:
      run: what is trained; its operative config is saved in ``run.directory``.
      resume: ``auto`` continues a run that has checkpoints, ``never`` refuses to, ``always``
        insists on it; ``anew`` begins anew where all checkpoints are damaged.

    Returns:
      Directory, last step, metrics by step (loss in nats a token), held-out results, and the state
      with its parameters; ``load()`` gives the model to use.

    Raises:
      ConfigError: the run does not fit its mesh, or its directory is not what ``resume`` asks for.
      Held: another training writes there.
      DataError, SpikeError: the data could not be prepared; the loss spiked again and again.
      Preempted: SIGTERM came; the run was saved, and the same call continues it.

    Example:
      train(load_run("configs/recipes/quickstart.gin")).held_out["all"]["bits_per_byte"]
    """
    from t5x_llm.run.result import read_result
    from t5x_llm.tune.training import train

    try:
        return read_result(run.directory, train(run.config, run.operative_config, resume))
    except SystemExit as e:  # of the process that prepares the data; it printed why
        if e.code != DataError.exit_code:
            raise
        raise DataError("The data could not be prepared; the message above says why.") from e


def load_model(
    path: Path,
    step: int | None = None,
    compute: str | None = None,
    lazy: bool = False,
    adapter: Path | None = None,
) -> Loaded:
    """Loads a model on one device.

    Args:
      path: a run directory, a Hugging Face directory or a ``.gguf`` file.
      step: checkpoint of a run; the newest sound one if None.
      compute: dtype of activations; the run's, or float32 for a conversion, if None.
      lazy: a run's parameters stay on disk, and slices of them are read when asked for.
      adapter: a PEFT directory that a Hugging Face model is given.

    Returns:
      Family, model, parameters (nested dict of arrays), tokenizer, and the run it comes from.

    Raises:
      ConfigError: nothing can be loaded from there.
      CheckpointError: files are missing or damaged.

    Example:
      load_model("runs/quickstart").model.parameter_count()["total"]
    """
    from t5x_llm.run.load import load

    return load(os.fspath(path), step, compute, lazy, adapter)


def evaluate(
    model: Loaded | Path,
    run: ResolvedRun | None = None,
    *,
    step: int | None = None,
    sequence_length: int | None = None,
    limit: int | None = None,
) -> Results:
    """Evaluates a model on the held-out documents of a run, on all devices.

    Args:
      model: a path as ``load_model`` takes, or what it returned.
      run: says which data, made with the model's tokenizer; a run's own model needs none.
      step: checkpoint of a run directory; the newest sound one if None.
      sequence_length: tokens of a window; the run's if None.
      limit: tokens read of each source; None reads all.

    Returns:
      By source, by language, and of ``all``: loss (nats a token), perplexity, bits_per_byte, ...

    Raises:
      ConfigError: nothing says which data, it has another tokenizer, or the window is too long.
      DataError: the data was not prepared, or no document is held out.

    Example:
      evaluate("runs/quickstart")["all"]["bits_per_byte"]
    """
    from t5x_llm.run.use import evaluate_model

    where = os.fspath(model) if isinstance(model, (str, os.PathLike)) else model
    return evaluate_model(where, None if run is None else run.config, step, sequence_length, limit)


def generate(
    model: Loaded | Path,
    prompts: str | Sequence[str],
    sampling: Sampling | None = None,
    *,
    step: int | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Completion]:
    """Lets a model continue texts; an encoder-decoder answers them.

    Args:
      model: a path as ``load_model`` takes, or what it returned.
      prompts: texts of any length; one may stand alone.
      sampling: an ``infer.sampler.Sampling``; if None the model's own, else temperature 1.
      step: as ``evaluate``.
      on_text: called with (number of the prompt, new text) as text becomes certain.

    Returns:
      One completion a prompt, in order: text, tokens, finish_reason.

    Raises:
      ConfigError: the model is an encoder, has no tokenizer, or a prompt is too long for it.

    Example:
      generate("runs/quickstart", ["The people", "春风"], Sampling(max_tokens=20))[1].text
    """
    from t5x_llm.run.use import complete

    where = os.fspath(model) if isinstance(model, (str, os.PathLike)) else model
    texts = [prompts] if isinstance(prompts, str) else prompts
    return complete(where, texts, sampling, step, on_text)


def import_model(
    path: Path,
    out: Path,
    *,
    dtype: str = "stored",
    kind: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    unproved: bool = False,
    ignore: Sequence[str] = (),
) -> Converted:
    """Writes a Hugging Face or GGUF model as a verified Hugging Face directory.

    Our logits of source and result are compared with a reference's on a prompt of 512 tokens.

    Args:
      path: a Hugging Face directory or a ``.gguf`` file.
      out: directory to write; new, empty, or an earlier export.
      dtype: of the written weights: stored, float32, bfloat16 or float16.
      kind: ``hf`` or ``gguf`` where it must be one of them.
      max_shard_bytes: limit on the data of one safetensors file.
      unproved: write the model even if nothing here can compute it; the report says so.
      ignore: fields of config.json to read as if they were absent.

    Raises:
      ConfigError: the architecture or a field is unknown, or ``out`` cannot be written.
      CheckpointError: missing, damaged or malicious files.
      ParityError: the logits differ; nothing is written.

    Example:
      import_model("downloads/llama", "models/base", dtype="bfloat16").report.summary()
    """
    from t5x_llm.hf.convert import convert

    limits = dict(max_shard_bytes=max_shard_bytes)
    return convert(path, out, kind=kind, dtype=dtype, unproved=unproved, ignore=ignore, **limits)


def export_model(
    path: Path,
    out: Path | None = None,
    *,
    step: int | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    unproved: bool = False,
    merge: bool = False,
) -> Exported:
    """Writes a checkpoint as a Hugging Face directory, proved by parity as ``import_model``.

    Args:
      path: a run directory; or a model as ``import_model`` takes, which is rewritten.
      out: directory to write; ``hf`` (of an adapter ``adapter``) of the run if None.
      step: as ``evaluate``.
      dtype: of the weights; float32 for a run, as stored for a directory, if None.
      max_shard_bytes: limit on the data of one safetensors file.
      unproved: write the model even if nothing here can compute it; the report says so.
      merge: of a run with adapters, one model of base and adapter; else its PEFT directory.

    Raises:
      ConfigError: ``out`` cannot be written, or config.json cannot say what the run trains.
      ParityError: the written model does not compute what ours does; nothing is written.

    Example:
      export_model("runs/quickstart", "models/mine", dtype="bfloat16").report.summary()
    """
    from t5x_llm.run.use import export

    to = None if out is None else os.fspath(out)
    return export(os.fspath(path), to, step, dtype, max_shard_bytes, unproved, merge)
