"""Checks that span the parts of a run: tokenizer and model, mesh and batch, mesh and model."""

from __future__ import annotations

import sys

from jax.sharding import AbstractMesh, Mesh

from t5x_llm.core.errors import ConfigError
from t5x_llm.core.paths import as_path
from t5x_llm.models.model import Model
from t5x_llm.models.pipelined import plan as plan_pipeline
from t5x_llm.parallel import check_divisible, ways
from t5x_llm.run.config import Run
from t5x_llm.run.objective import check_ids
from t5x_llm.text import Tokenizer, TokenizerTraining
from t5x_llm.text.comparing import check_same_tokenizer

# Logical axes that the mesh cuts, and the fields of layers that are their sizes.
_CUT = {"heads": "n_heads", "mlp": "d_ff", "inner": "d_inner", "experts": "n_experts"}


def check_fits(run: Run, mesh: Mesh | AbstractMesh) -> None:
    """Checks what spans parts: tokenizer and model, mesh and batch, mesh and model.

    Raises:
      ConfigError: naming the field, the mesh axes and the remedy.
    """
    rules = run.mesh.rules()
    model = type(run.model).__name__
    if isinstance(run.data.tokenizer, TokenizerTraining):
        check_tokenizer_size(run, run.data.tokenizer)
    parts = run.loop.microbatches
    rows = "Loop.batch_size" if parts == 1 else "Loop.batch_size / Loop.microbatches"
    for size in run.loop.sizes:
        check_divisible(mesh, rules, "batch", rows, size // parts)
    check_divisible(mesh, rules, "batch", "Evaluation.batch_size", run.evaluation.batch_size)
    check_divisible(mesh, rules, "length", "Loop.sequence_length", run.loop.sequence_length)
    check_pipeline(run, mesh)
    for group in run.decoder().groups:
        for block in group.blocks:
            for layer in block.layers:
                for axis, name in _CUT.items():
                    if hasattr(layer, name):
                        field = f"{model}.{name}"
                        check_divisible(mesh, rules, axis, field, getattr(layer, name))
                ulysses = mesh.shape["context"] > 1 and rules.context_attention == "ulysses"
                heads = getattr(layer, "n_heads", None)
                if ulysses and layer.part == "attention" and heads is not None:
                    check_divisible(mesh, rules, "scan_heads", f"{model}.n_heads", heads)


def check_pipeline(run: Run, mesh: Mesh | AbstractMesh) -> None:
    """Raises ConfigError unless the layers go into the stages, and batches into microbatches."""
    rules = run.mesh.rules()
    if (planned := plan_pipeline(run.decoder(), mesh, rules)) is None:
        return
    m, pieces = planned[0].microbatches, ways(mesh, rules, "batch")
    parts = run.loop.microbatches
    rows = "Loop.batch_size" if parts == 1 else "Loop.batch_size / Loop.microbatches"
    sizes = [(rows, size // parts) for size in run.loop.sizes]
    for field, size in [*sizes, ("Evaluation.batch_size", run.evaluation.batch_size)]:
        if size % (m * pieces):
            raise ConfigError(
                field,
                size,
                f"a multiple of Pipeline.microbatches = {m} x the {pieces} ways in which the mesh "
                f"cuts 'batch' = {m * pieces}",
                f"Set {field.split(' /')[0]} to a multiple, or Pipeline.microbatches to fewer.",
            )


def check_tokenizer_size(run: Run, tokenizer: Tokenizer | TokenizerTraining) -> None:
    """Raises ConfigError unless the model has one row for every token, and the same special ids.

    Args:
      run: with the model.
      tokenizer: the tokenizer, or how it will be trained; it then has exactly the size asked for.
    """
    if tokenizer.vocab_size != run.model.vocab_size:
        raise ConfigError(
            f"{type(run.model).__name__}.vocab_size",
            run.model.vocab_size,
            f"the size of the tokenizer, {tokenizer.vocab_size}",
            f"Set it to {tokenizer.vocab_size}, or give another tokenizer.",
        )
    if not isinstance(tokenizer, TokenizerTraining):
        check_ids(run.model, run.data.denoising, tokenizer)


def check_start_from(run: Run) -> None:
    """Raises ConfigError unless the model of ``Run.start_from`` is the run's; reads no weights.

    How fresh weights are drawn, and the length an export is meant for, are no part of that.
    """
    if run.start_from is None:
        return
    from t5x_llm.checkpoint.compat import differences
    from t5x_llm.config import to_dict
    from t5x_llm.hf.gptq import read_settings
    from t5x_llm.hf.import_ import family_of, read_config

    path = as_path(run.start_from)
    if path.suffix == ".gguf":
        from t5x_llm.hf.gguf_io import GgufReader

        theirs = GgufReader(path).config
    else:
        theirs = read_settings(path)[0] if run.base_storage == "gptq" else read_config(path)
    skipped = {"init_std", "residual_scale"}
    if run.model.decoder().learned_positions is None:
        skipped.add("max_length")
    # Both by way of config.json, which writes out what a preset may leave to its other fields.
    there, here = (
        {k: v for k, v in to_dict(family_of(config)).items() if k not in skipped}
        for config in (theirs, run.model.to_hf_config())
    )
    if found := differences(there, here):
        raise ConfigError(
            "Run.start_from",
            run.start_from,
            f"the model of this run, but there -> here: {'; '.join(found)}",
            "Set these fields to what they are there; t5x-llm import prints them all.",
        )
    plain, mine = (Model(each).abstract_params() for each in (run.model.decoder(), run.decoder()))
    if plain != mine:
        raise ConfigError(
            "Run.stability",
            run.stability,
            "None, or options without parameters, where Run.start_from gives the weights",
        )


def check_start_tokenizer(run: Run, tokenizer: Tokenizer) -> None:
    """Raises ConfigError if the model of ``Run.start_from`` was trained with other token ids."""
    if run.start_from is None:
        return
    from t5x_llm.hf.gptq import open_base

    theirs = open_base(run.start_from, run.base_storage).tokenizer()
    if theirs is None:
        print(
            f"warning: {run.start_from} has no tokenizer to compare with Data.tokenizer; its "
            "weights mean anything only under the ids that they were trained with.",
            file=sys.stderr,
        )
        return
    check_same_tokenizer(
        "Run.start_from",
        theirs,
        tokenizer,
        (run.start_from, "the run's data"),
        f"Set Data.tokenizer = {run.start_from!r}, whose tokenizer its weights were trained with; "
        "or give the model rows for a grown tokenizer first (t5x-llm grow, t5x-llm resize).",
    )
