"""The tokenizer inside a GGUF file, written out as the files that ``load_tokenizer`` reads."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf.gguf_io import GgufReader

_SPECIAL = (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> list[dict[str, Any]]:
    regex = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return [{**regex, "invert": False}, {**_BYTES, "use_regex": False}]


# How tokenizer.ggml.pre cuts text before the merges, as llama.cpp's llama-vocab.cpp does it.
_PRETOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "default": [_BYTES],
    "gpt-2": [_BYTES],
    "smollm": [_DIGITS, _BYTES],
    "starcoder": [_DIGITS, _BYTES],
    "refact": [_DIGITS, _BYTES],
    "command-r": [_DIGITS, _BYTES],
    "llama-bpe": _split(_LLAMA3),
    "qwen2": _split(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
}


def write_tokenizer(reader: GgufReader, directory: pathlib.Path) -> None:
    """Writes tokenizer.json and its config, or tokenizer.model.

    Args:
      reader: the opened file.
      directory: exists.

    Raises:
      ConfigError: for a kind of tokenizer this reader does not know.
      CheckpointError: its parts do not fit together.
    """
    meta = {k.removeprefix("tokenizer.ggml."): v for k, v in reader.fields.items()}
    where = f"{reader.path.name} tokenizer.ggml."
    writers = {"gpt2": _byte_level, "llama": _sentencepiece}
    if meta.get("model") not in writers:
        raise ConfigError(where + "model", meta.get("model"), choices=writers)
    tokens = meta.get("tokens")
    kinds = [int(kind) for kind in meta.get("token_type", [1] * len(tokens or ()))]
    scores = [float(score) for score in meta.get("scores", [0.0] * len(tokens or ()))]
    if not isinstance(tokens, list) or not len(tokens) == len(kinds) == len(scores):
        raise CheckpointError(f"{where}tokens, token_type and scores are not equally long lists.")
    writers[meta["model"]](reader, directory, meta, [*zip(tokens, kinds, scores, strict=True)])


def _special(meta: dict[str, Any], count: int) -> dict[str, int]:
    """Ids of the special tokens there are."""
    found = {}
    for name, key in _SPECIAL:
        index = meta.get(f"{key}_token_id")
        if index is None:
            continue
        if not isinstance(index, int) or not 0 <= index < count:
            raise CheckpointError(f"tokenizer.ggml.{key}_token_id = {index!r} is no token.")
        found[name] = index
    return found


def _sentencepiece(
    reader: GgufReader,
    directory: pathlib.Path,
    meta: dict[str, Any],
    pieces: list[tuple[str, int, float]],
) -> None:
    """llama.cpp's "llama" is SentencePiece's BPE; its token types are SentencePiece's."""
    from sentencepiece import sentencepiece_model_pb2

    schema: Any = sentencepiece_model_pb2
    proto = schema.ModelProto()
    for text, kind, score in pieces:
        if not 1 <= kind <= 6:
            raise CheckpointError(f"tokenizer.ggml.token_type = {kind} is not known.")
        proto.pieces.add(piece=text, score=float(score), type=int(kind))
    special = _special(meta, len(pieces))
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type = schema.TrainerSpec.BPE
    trainer.vocab_size = len(pieces)
    trainer.byte_fallback = any(kind == 6 for _, kind, _ in pieces)
    for name, _ in _SPECIAL:
        setattr(trainer, f"{name}_id", special.get(name, -1))
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(meta.get("add_space_prefix", True))
    normalizer.remove_extra_whitespaces = bool(meta.get("remove_extra_whitespaces", False))
    (directory / "tokenizer.model").write_bytes(proto.SerializeToString())


def _byte_level(
    reader: GgufReader,
    directory: pathlib.Path,
    meta: dict[str, Any],
    pieces: list[tuple[str, int, float]],
) -> None:
    where = f"{reader.path.name} tokenizer.ggml."
    pre = meta.get("pre", "default")
    if pre not in _PRETOKENIZERS:
        raise ConfigError(where + "pre", pre, choices=_PRETOKENIZERS)
    tokens = [text for text, _, _ in pieces]
    control, user = 3, 4
    added = [
        {
            **{"id": i, "content": token, "single_word": False, "lstrip": False},
            **{"rstrip": False, "normalized": False, "special": kind == control},
        }
        for i, (token, kind, _) in enumerate(pieces)
        if kind in (control, user)
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRETOKENIZERS[pre]},
        "post_processor": None,
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in meta["merges"]],
        },
    }
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(meta.get("add_bos_token", False)),
        "model_max_length": reader.config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    for name, index in _special(meta, len(tokens)).items():
        settings[f"{name}_token"] = tokens[index]
    if template := reader.fields.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    for name, value in (("tokenizer", tokenizer), ("tokenizer_config", settings)):
        text = json.dumps(value, ensure_ascii=False)
        (directory / f"{name}.json").write_text(text, encoding="utf-8")
