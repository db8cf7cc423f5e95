"""The tokenizer inside a GGUF file."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from t5x_llm.core.errors import CheckpointError, ConfigError, DataError
from t5x_llm.hf.gguf_io import GgufReader
from t5x_llm.text.companions import CONFIG, AddedToken, dumped
from t5x_llm.text.vocabularies import BYTE_LEVEL, LLAMA3, QWEN2, bpe, split

if TYPE_CHECKING:
    from t5x_llm.text import Tokenizer

_SPECIAL = (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
_DIGITS = {"type": "Digits", "individual_digits": True}
_LLAMA = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral")

# How tokenizer.ggml.pre cuts text before the merges, as llama.cpp's llama-vocab.cpp does it.
_PRETOKENIZERS: dict[str, list[dict[str, Any]]] = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "jina-es", "jina-de"), [BYTE_LEVEL]),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), [_DIGITS, BYTE_LEVEL]),
    **dict.fromkeys(_LLAMA, split(LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), split(QWEN2)),
}


def read_tokenizer(reader: GgufReader) -> Tokenizer | None:
    """Returns the tokenizer in a GGUF file; None where it has none.

    Args:
      reader: the opened file.

    Raises:
      ConfigError: for a kind of tokenizer this reader does not know.
      CheckpointError: its parts are missing or do not fit together.
    """
    meta = {k.removeprefix("tokenizer.ggml."): v for k, v in reader.fields.items()}
    where = f"{reader.path.name} tokenizer.ggml."
    readers = {"gpt2": _byte_level, "llama": _sentencepiece}
    if meta.get("model") == "no_vocab" or not {"model", "tokens"} & meta.keys():
        return None
    if meta.get("model") not in readers:
        raise ConfigError(where + "model", meta.get("model"), choices=readers)
    tokens = meta.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise CheckpointError(f"{where}tokens is no list of texts.")
    try:
        kinds = [int(kind) for kind in meta.get("token_type", [1] * len(tokens))]
        scores = [float(score) for score in meta.get("scores", [0.0] * len(tokens))]
    except (TypeError, ValueError) as e:
        raise CheckpointError(f"{where}token_type or scores are no numbers: {e}.") from e
    if not len(tokens) == len(kinds) == len(scores) > 0:
        raise CheckpointError(f"{where}tokens, token_type and scores are not equally long lists.")
    try:
        return readers[meta["model"]](reader, meta, [*zip(tokens, kinds, scores, strict=True)])
    except DataError as e:
        raise CheckpointError(f"The tokenizer in {reader.path} is damaged: {e}") from e


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
    reader: GgufReader, meta: dict[str, Any], pieces: list[tuple[str, int, float]]
) -> Tokenizer:
    """llama.cpp's "llama" is SentencePiece's BPE; its token types are SentencePiece's."""
    from sentencepiece import sentencepiece_model_pb2

    from t5x_llm.text.sentencepiece import SentencePieceTokenizer

    schema: Any = sentencepiece_model_pb2
    proto = schema.ModelProto()
    for text, kind, score in pieces:
        if not 1 <= kind <= 6:
            raise CheckpointError(f"tokenizer.ggml.token_type = {kind} is not known.")
        proto.pieces.add(piece=text, score=float(score), type=int(kind))
    special = _special(meta, len(pieces))
    # llama.cpp's own ids where the file names none; and its converter marks <unk>, which
    # tokenizer_config.json calls special, as a control token.
    for name, index in (("unk", 0), ("bos", 1), ("eos", 2)):
        if name not in special and index < len(pieces) and pieces[index][1] in (2, 3):
            special[name] = index
    if "unk" in special:
        proto.pieces[special["unk"]].type = schema.ModelProto.SentencePiece.UNKNOWN
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type = schema.TrainerSpec.BPE
    trainer.vocab_size = len(pieces)
    trainer.byte_fallback = any(kind == 6 for _, kind, _ in pieces)
    for name, _ in _SPECIAL:
        setattr(trainer, f"{name}_id", special.get(name, -1))
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(meta.get("add_space_prefix", True))
    normalizer.remove_extra_whitespaces = bool(meta.get("remove_extra_whitespaces", False))
    config = _config(reader, meta, special, [text for text, _, _ in pieces])
    files = {CONFIG: dumped(config)}
    return SentencePieceTokenizer(proto.SerializeToString(), f"{reader.path}", files)


def _byte_level(
    reader: GgufReader, meta: dict[str, Any], pieces: list[tuple[str, int, float]]
) -> Tokenizer:
    from t5x_llm.text.hf_json import HFTokenizer

    where = f"{reader.path.name} tokenizer.ggml."
    pre = meta.get("pre", "default")
    if pre not in _PRETOKENIZERS:
        raise ConfigError(where + "pre", pre, choices=_PRETOKENIZERS)
    tokens = [text for text, _, _ in pieces]
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        double = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise CheckpointError(f"{where}tokens has {double!r} twice.")
    control, user = 3, 4
    added = [
        {"id": i, **dataclasses.asdict(AddedToken(token, kind == control))}
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
        "decoder": BYTE_LEVEL,
        "model": bpe(vocab, _merges(meta, vocab, where), ignore_merges=pre in _LLAMA),
    }
    data = json.dumps(tokenizer, ensure_ascii=False).encode()
    special = _special(meta, len(tokens))
    files = {CONFIG: dumped(_config(reader, meta, special, tokens))}
    return HFTokenizer(data, f"{reader.path}", files)


def _merges(meta: dict[str, Any], vocab: dict[str, int], where: str) -> list[tuple[str, str]]:
    """Returns the rules, each of which makes a token of two.

    Raises:
      CheckpointError: there are none, or one does not fit the tokens.
    """
    merges = meta.get("merges")
    if not isinstance(merges, list):
        raise CheckpointError(
            f"{where}merges is missing, without which a byte-level tokenizer cannot be read. "
            "Convert the model again with a current llama.cpp."
        )
    rules = []
    for number, merge in enumerate(merges):
        left, _, right = merge.partition(" ") if isinstance(merge, str) else ("", "", "")
        if not left or not right or " " in right:
            raise CheckpointError(f"{where}merges[{number}] = {merge!r} is no pair of tokens.")
        if absent := {left, right, left + right} - vocab.keys():
            raise CheckpointError(
                f"{where}merges[{number}] = {merge!r} does not fit {where}tokens, which lack "
                f"{min(absent)!r}."
            )
        rules.append((left, right))
    return rules


def _config(
    reader: GgufReader, meta: dict[str, Any], special: dict[str, int], tokens: list[str]
) -> dict[str, Any]:
    """Returns tokenizer_config.json as the metadata has it."""
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": reader.config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    # llama.cpp's defaults: SentencePiece begins a prompt, byte-level does not unless told to.
    settings["add_bos_token"] = bool(meta.get("add_bos_token", meta["model"] == "llama"))
    if "add_eos_token" in meta:
        settings["add_eos_token"] = bool(meta["add_eos_token"])
    for name, index in special.items():
        settings[f"{name}_token"] = tokens[index]
    template, prefix = reader.fields.get("tokenizer.chat_template"), "tokenizer.chat_template."
    named = {k.removeprefix(prefix): v for k, v in reader.fields.items() if k.startswith(prefix)}
    if named:
        named = ({"default": template} if template else {}) | named
        template = [{"name": name, "template": text} for name, text in named.items()]
    if template:
        settings["chat_template"] = template
    return settings
