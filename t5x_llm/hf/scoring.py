"""Classifiers and regressions as transformers' AutoModelForSequenceClassification stores them."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import CheckpointError, ConfigError, check_choice
from t5x_llm.data.batch import Batch
from t5x_llm.hf import parity
from t5x_llm.hf.export import DTYPES, MAX_SHARD_BYTES, narrowed, special_ids, write_configs
from t5x_llm.hf.import_ import check_tokenizer, family_of
from t5x_llm.hf.reference import NoReference, numpy_reference, torch_available
from t5x_llm.hf.safetensors_io import SafetensorsReader
from t5x_llm.hf.safetensors_write import TensorSpec, new_directory, write_safetensors
from t5x_llm.hf.source import read_config, tokenizer_of
from t5x_llm.models.family import Family
from t5x_llm.models.model import Model, Params
from t5x_llm.models.weight_map import Entry, from_hf, hf_shapes, to_hf
from t5x_llm.train.scoring import (
    SCORE,
    Classification,
    Regression,
    Scoring,
    token_scores,
    without_head,
)

if TYPE_CHECKING:
    from t5x_llm.text import Tokenizer

# transformers' class of each architecture that is proved here.
CLASSES = {
    "LlamaForCausalLM": "LlamaForSequenceClassification",
    "MistralForCausalLM": "MistralForSequenceClassification",
    "Qwen2ForCausalLM": "Qwen2ForSequenceClassification",
    "GPT2LMHeadModel": "GPT2ForSequenceClassification",
}
_HEAD = ("head.", "head_bias")
_KERNEL = f"{SCORE}.weight"
_TOKENS = (64, 9)  # of the two prompts that are compared


class ScoredModel(NamedTuple):
    """Classifier or regression taken in.

    Attributes:
      family: the preset dataclass.
      params: tree of a ``ScoringTask``, float32.
      scoring: what the scores mean.
      tokenizer: or None where the directory holds none.
    """

    family: Family
    params: Params
    scoring: Scoring
    tokenizer: Tokenizer | None


def check_scored(family: Family) -> None:
    """Raises ConfigError unless a family's scores can be written for transformers."""
    if family.architecture not in CLASSES:
        raise ConfigError(
            "Run.model", type(family).__name__, f"one of {', '.join(CLASSES)} for the export of "
            "a head of scores", "Set Export.enabled = False; the run directory has the weights.",
        )  # fmt: skip


def export_scorer(
    params: Mapping[str, Any],
    family: Family,
    scoring: Scoring,
    tokenizer: Tokenizer,
    out_dir: str | os.PathLike[str],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: str = "float32",
) -> parity.ParityReport:
    """Writes config, weights, tokenizer and parity report, proved before they take their place.

    Args:
      params: tree of a ``ScoringTask``, of NumPy or JAX arrays.
      family: the preset dataclass.
      scoring: what the scores mean: ``id2label`` and ``problem_type`` of the config.
      tokenizer: saved with the model; transformers needs its padding token to score a batch.
      out_dir: new, empty, or an earlier export.
      max_shard_bytes: limit on the data of one safetensors file.
      dtype: of the stored weights.

    Raises:
      ConfigError: a family whose scores transformers does not know; a tokenizer that has neither a
        padding nor an end token, or does not fit.
      ParityError: the written model does not score as ours does, or nothing here can tell.
    """
    check_choice("dtype", dtype, DTYPES)
    check_scored(family)
    check_tokenizer(tokenizer, family.vocab_size)
    ids = special_ids(tokenizer)
    if ids["pad_token_id"] is None:
        ids["pad_token_id"] = ids["eos_token_id"]
    if ids["pad_token_id"] is None:
        raise ConfigError("tokenizer", None, "one with a padding or an end token")
    body = {name: part for name, part in params.items() if name != SCORE}
    entries = _entries(family)
    kernel = np.asarray(params[SCORE]["kernel"], np.float32).T
    layouts = {n: TensorSpec(DTYPES[dtype], s) for n, s in hf_shapes(entries, body).items()}
    layouts[_KERNEL] = TensorSpec(DTYPES[dtype], kernel.shape)
    makers: dict[str, Callable[[], np.ndarray]] = dict(to_hf(entries, body))
    makers[_KERNEL] = lambda: kernel
    with new_directory(out_dir) as draft:
        write_configs(draft, family, ids, dtype)
        config = read_config(draft) | _labels(scoring)
        config["architectures"] = [CLASSES[family.architecture]]
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        write_safetensors(
            draft,
            layouts,
            lambda name: narrowed(name, makers[name](), DTYPES[dtype]),
            max_shard_bytes,
        )
        tokenizer.save(draft)
        report = _gate(draft, dtype)
        report.raise_if_failed(f"Export to {out_dir}")
        report.write(draft)
    return report


def read_scorer(path: str | os.PathLike[str]) -> ScoredModel:
    """Reads a directory of AutoModelForSequenceClassification.

    Raises:
      CheckpointError: missing or damaged files; a head of another shape than its config says.
      ConfigError: a family, or a field of config.json, that is not known.
    """
    directory = pathlib.Path(path)
    config = read_config(directory)
    found = config.get("architectures") or [""]
    if found[0] not in CLASSES.values():
        raise ConfigError(
            "architectures", found, f"one of {', '.join(CLASSES.values())}",
            f"{path} is no classifier or regression.",
        )  # fmt: skip
    scoring = _scoring(config)
    own = {"id2label", "label2id", "problem_type"}
    family = family_of({k: v for k, v in config.items() if k not in own})
    reader = SafetensorsReader(directory)
    model = Model(family.decoder())
    abstract = without_head(model.abstract_params())
    if _KERNEL not in reader:
        raise CheckpointError(f"{path} has no tensor {_KERNEL}, the head of scores.")
    wanted = (scoring.outputs, model.config.d_model)
    if reader.shape(_KERNEL) != wanted:
        raise CheckpointError(f"{_KERNEL} is {reader.shape(_KERNEL)}, expected {wanted}.")
    missing = [name for name in hf_shapes(_entries(family), abstract) if name not in reader]
    if missing:
        raise CheckpointError(f"{path} lacks {len(missing)} tensors, e.g. {missing[0]}.")

    def place(name: str, array: np.ndarray) -> np.ndarray:
        return array

    params: Params = from_hf(_entries(family), abstract, reader.read, place)
    kernel = np.asarray(reader.read(_KERNEL), np.float32).T
    return ScoredModel(
        family, params | {SCORE: {"kernel": kernel}}, scoring, tokenizer_of(directory)
    )


def document_scores(scorer: ScoredModel, documents: Sequence[np.ndarray]) -> np.ndarray:
    """Scores token ids [n] each, one by one in float32: [documents, outputs]."""
    model = Model(scorer.family.decoder(), Policy(compute="float32"))
    score = jax.jit(functools.partial(token_scores, model))
    found = []
    for ids in documents:
        tokens = np.asarray(ids, np.int32)[None]
        ones, places = np.ones_like(tokens), np.arange(tokens.shape[1], dtype=np.int32)[None]
        mask, source = ones.astype(np.float32), np.zeros(1, np.int32)
        batch = Batch(tokens, tokens, places, ones, mask, source)
        found.append(np.asarray(score(scorer.params, batch))[0, -1])
    return np.stack(found)


def _entries(family: Family) -> list[Entry]:
    return [entry for entry in family.weight_map() if not entry.ours.startswith(_HEAD)]


def _labels(scoring: Scoring) -> dict[str, Any]:
    single = isinstance(scoring, Classification)
    return {
        "id2label": {str(i): label for i, label in enumerate(scoring.labels)},
        "label2id": {label: i for i, label in enumerate(scoring.labels)},
        "problem_type": "single_label_classification" if single else "regression",
    }


def _scoring(config: Mapping[str, Any]) -> Scoring:
    # transformers leaves the names out where they are its own for two classes.
    names = config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    try:
        labels = tuple(str(names[str(i)]) for i in range(len(names)))
    except (TypeError, KeyError) as e:
        expected = "a name for each of 0, 1, ..."
        raise ConfigError("id2label", names, expected) from e
    return Regression(labels[0]) if len(labels) == 1 else Classification(labels)


def _gate(draft: pathlib.Path, dtype: str) -> parity.ParityReport:
    """Compares the scores of the files as we read them with those of an independent reader."""
    scorer, config = read_scorer(draft), read_config(draft)
    name, theirs = _reference(draft, config)
    limit = getattr(scorer.family, "max_length", None) or max(_TOKENS)
    rng = np.random.default_rng(0)
    high = scorer.family.vocab_size
    used = [n for n in range(high) if n != config["pad_token_id"]]
    prompts = {
        name: rng.choice(used, min(tokens, limit)).astype(np.int32)
        for name, tokens in zip(("long", "short"), _TOKENS, strict=True)
    }
    ours = document_scores(scorer, list(prompts.values()))
    compared = {
        each: parity.compare(mine[None], theirs(ids)[None])
        for (each, ids), mine in zip(prompts.items(), ours, strict=True)
    }
    passed = all(p.relative <= parity.THRESHOLD for p in compared.values())
    return parity.ParityReport(passed, parity.THRESHOLD, name, dtype, compared)


def _reference(
    draft: pathlib.Path, config: dict[str, Any]
) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """Returns (name, ids [T] -> scores [outputs]) of transformers, or of NumPy where it lacks."""
    if torch_available():
        import torch
        import transformers

        made = transformers.AutoModelForSequenceClassification.from_pretrained(
            draft, dtype=torch.float32
        ).eval()

        def scores(ids: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return np.asarray(made(torch.tensor(ids[None].astype(np.int64))).logits[0])

        return f"transformers {transformers.__version__}", scores
    found = numpy_reference(str(config["model_type"]))
    if found is None:
        raise NoReference(
            f"No reference for scores of {config['model_type']!r} here. Install torch and "
            "transformers to check this conversion."
        )
    reader = SafetensorsReader(draft)

    def read(name: str) -> np.ndarray:
        return np.asarray(reader.read(_KERNEL if name == "lm_head.weight" else name), np.float32)

    untied = config | {"tie_word_embeddings": False}
    return f"numpy {np.__version__}", lambda ids: found(untied, read, ids)[-1]
