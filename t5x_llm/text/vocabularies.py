"""Vocabularies that come without a tokenizer.json: GPT-2's, BERT's and tiktoken's files.

The pieces and merges of ``vocab.json`` and ``merges.txt``, ``vocab.txt`` or a tiktoken file are
made into a tokenizer.json. How a text is cut before the merges stands in no file: it follows from
the tokenizer's class or the model's type, as in transformers.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from t5x_llm.core.errors import DataError
from t5x_llm.text.companions import KEYS, USUAL, AddedToken, Companions
from t5x_llm.text.tokenizer import MAX_VOCABULARY

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
BYTE_LEVEL = {
    **{"type": "ByteLevel", "add_prefix_space": False},
    **{"trim_offsets": True, "use_regex": True},
}
_DIGITS = {"type": "Digits", "individual_digits": True}


def split(pattern: str) -> list[dict[str, Any]]:
    """Pre-tokenizers that cut a text by a regular expression and write it in bytes' letters."""
    regex = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return [{**regex, "invert": False}, {**BYTE_LEVEL, "use_regex": False}]


# Of a class, or of a model's type where no class is named: pre-tokenizers and normalizer.
_QWEN2 = (split(QWEN2), {"type": "NFC"})
_GPT2: tuple[list[dict[str, Any]], dict[str, Any] | None] = ([BYTE_LEVEL], None)
_STARCODER = ([_DIGITS, BYTE_LEVEL], None)
_CLASSES = {"Qwen2Tokenizer": _QWEN2} | dict.fromkeys(
    ("GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "CodeGenTokenizer", "OPTTokenizer",
     "LongformerTokenizer", "LEDTokenizer", "PreTrainedTokenizer", "TokenizersBackend", ""),
    _GPT2,
)  # fmt: skip
_MODELS = {
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), _QWEN2),
    **dict.fromkeys(("gpt_bigcode", "starcoder2"), _STARCODER),
}
_BERT = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "PreTrainedTokenizer", "")
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
_LLAMA3_RANKS = 128_000
# llama-models, models/llama3/tokenizer.py: then reserved ones, 256 in all.
_LLAMA3_SPECIAL = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"),
    *("<|reserved_special_token_1|>", "<|finetune_right_pad_id|>", "<|step_id|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
)
_REMEDY = (
    "Write a tokenizer.json with transformers (AutoTokenizer.from_pretrained, save_pretrained)."
)


def is_tiktoken(data: bytes) -> bool:
    """Returns True for a file of lines of base64 and rank."""
    return _TIKTOKEN.match(data) is not None


def byte_level(beside: Companions) -> bytes:
    """The tokenizer.json of ``vocab.json`` and ``merges.txt``.

    Raises:
      DataError: they are damaged, no byte-level BPE, or of a class not known here.
    """
    origin = beside.origin
    pieces = beside.parsed("vocab.json")
    if not pieces or not all(isinstance(i, int) for i in pieces.values()):
        raise DataError(f"{origin}: vocab.json does not map pieces to ids.")
    kind = "" if beside.kind not in _CLASSES and beside.model_type in _MODELS else beside.kind
    if kind not in _CLASSES:
        raise DataError(
            f"{origin} belongs to a {kind}; how that cuts a text is not known here. {_REMEDY}"
        )
    cut, normalizer = _CLASSES[kind]
    if cut is _GPT2[0]:
        cut, normalizer = _MODELS.get(beside.model_type, _GPT2)
    added = _special(pieces, beside)
    own = {token.content for token in added.values()}
    from t5x_llm.text.bytes import letters

    known = letters()
    strange = [p for p in pieces if p not in own and not all(c in known for c in p)]
    if len(strange) > len(pieces) // 100:
        raise DataError(
            f"{origin} is not of byte-level BPE: it has the piece {strange[0]!r}. {_REMEDY}"
        )
    prefix = beside.config.get("add_prefix_space") is True
    cut = [c | {"add_prefix_space": prefix} if c["type"] == "ByteLevel" else c for c in cut]
    rules = _merges(beside.files["merges.txt"], pieces, origin)
    model = bpe(pieces, rules)
    ends = _roberta(pieces) if beside.model_type == "roberta" or kind == "RobertaTokenizer" else (
        _begins(pieces, beside) if beside.add_bos else None
    )  # fmt: skip
    return _file(model, cut, normalizer, {**BYTE_LEVEL}, added, ends)


def word_pieces(beside: Companions) -> bytes:
    """The tokenizer.json of BERT's ``vocab.txt``; raises as ``byte_level``."""
    if beside.kind not in _BERT:
        raise DataError(
            f"{beside.origin} belongs to a {beside.kind}, which is not read here. {_REMEDY}"
        )
    try:
        lines = beside.files["vocab.txt"].decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as e:
        raise DataError(f"{beside.origin} is not UTF-8: {e}.") from e
    lines = lines[:-1] if lines[-1] == "" else lines
    pieces = {piece: i for i, piece in enumerate(lines)}
    names = {k: v for k, v in beside.named.items() if v} | {}
    unknown, cls, sep = (
        names.get(k, d) for k, d in
        (("unk_token", "[UNK]"), ("cls_token", "[CLS]"), ("sep_token", "[SEP]"))
    )  # fmt: skip
    if unknown not in pieces:
        raise DataError(f"{beside.origin} has no {unknown!r} for what is in no piece.")
    said = beside.config
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": said.get("tokenize_chinese_chars", True) is not False,
        "strip_accents": said.get("strip_accents"),
        "lowercase": said.get("do_lower_case", True) is not False,
    }
    model = {
        "type": "WordPiece",
        "unk_token": unknown,
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": pieces,
    }
    ends = None
    if cls in pieces and sep in pieces:
        ends = template([cls], [sep], pieces)
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    cut = [{"type": "BertPreTokenizer"}]
    return _file(model, cut, normalizer, decoder, _special(pieces, beside), ends)


def ranks(data: bytes, beside: Companions) -> bytes:
    """The tokenizer.json of a tiktoken file of LLaMA-3, which is what model directories hold.

    Raises:
      DataError: it is damaged, or another model's: a tiktoken file says neither how a text is cut
        nor which special tokens there are.
    """
    from t5x_llm.text.bytes import letters

    spelled = {b: letter for letter, b in letters().items()}
    order: dict[str, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        word, _, rank = line.partition(b" ")
        try:
            piece = "".join(spelled[b] for b in base64.b64decode(word, validate=True))
            order[piece] = int(rank)
        except (ValueError, binascii.Error) as e:
            raise DataError(f"{beside.origin} line {number} is no base64 and rank: {e}.") from e
    added = dict(beside.added)
    if len(order) == _LLAMA3_RANKS and not added:
        count = 256 - len(_LLAMA3_SPECIAL)
        more = (f"<|reserved_special_token_{i}|>" for i in range(2, count + 2))
        for i, name in enumerate((*_LLAMA3_SPECIAL, *more), start=_LLAMA3_RANKS):
            added[i] = AddedToken(name)
    elif len(order) != _LLAMA3_RANKS:
        raise DataError(
            f"{beside.origin} is a tiktoken file of {len(order):,} ranks, which says neither how a "
            f"text is cut nor which special tokens there are; only LLaMA-3's {_LLAMA3_RANKS:,} are "
            f"known here. {_REMEDY}"
        )
    merges = [
        (piece[:i], piece[i:])
        for piece in sorted(order, key=order.__getitem__)
        for i in sorted(
            (i for i in range(1, len(piece)) if piece[:i] in order and piece[i:] in order),
            key=lambda i: (order[piece[:i]], order[piece[i:]]),
        )
    ]
    model = bpe(order, merges, ignore_merges=True)
    begin = next((t.content for t in added.values() if t.content == "<|begin_of_text|>"), None)
    ends = None
    if begin is not None:
        ends = template([begin], [], {t.content: i for i, t in added.items()})
    return _file(model, split(LLAMA3), None, {**BYTE_LEVEL}, added, ends)


def bpe(
    vocab: Mapping[str, int], merges: list[tuple[str, str]], ignore_merges: bool = False
) -> dict[str, Any]:
    """The ``model`` of a byte-level tokenizer.json."""
    return {
        "type": "BPE",
        **dict.fromkeys(("dropout", "unk_token"), None),
        **dict.fromkeys(("continuing_subword_prefix", "end_of_word_suffix"), None),
        **dict.fromkeys(("fuse_unk", "byte_fallback"), False),
        "ignore_merges": ignore_merges,
        "vocab": dict(vocab),
        "merges": [list(pair) for pair in merges],
    }


def template(first: list[str], last: list[str], ids: Mapping[str, int]) -> dict[str, Any]:
    """A post-processor that puts tokens before and after a text."""

    def token(name: str, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": kind}}

    def whole(letter: str, kind: int, begin: list[str]) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": letter, "type_id": kind}}
        return [*(token(n, kind) for n in begin), text, *(token(n, kind) for n in last)]

    single = whole("A", 0, first)
    known = {n: {"id": n, "ids": [ids[n]], "tokens": [n]} for n in (*first, *last)}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *whole("B", 1, [] if last else first)],
        "special_tokens": known,
    }


def _roberta(pieces: Mapping[str, int]) -> dict[str, Any] | None:
    if not {"<s>", "</s>"} <= pieces.keys():
        return None
    sep, cls = (["</s>", pieces["</s>"]], ["<s>", pieces["<s>"]])
    marks = {"sep": sep, "cls": cls}
    return {"type": "RobertaProcessing", **marks, "trim_offsets": True, "add_prefix_space": False}


def _begins(pieces: Mapping[str, int], beside: Companions) -> dict[str, Any] | None:
    name = beside.named.get("bos_token")
    return template([name], [], pieces) if name is not None and name in pieces else None


def _special(pieces: Mapping[str, int], beside: Companions) -> dict[int, AddedToken]:
    """Returns the special tokens among ``pieces``, and those that the files add to them."""
    found = {}
    for name in {n for n in beside.named.values() if n} | _usual(beside):
        if name in pieces:
            found[pieces[name]] = AddedToken(name, lstrip=name == "<mask>")
    return dict(sorted((found | beside.added).items()))


def _usual(beside: Companions) -> set[str]:
    """Returns the usual names of special tokens, for files that do not name them."""
    bert = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    return {n for key in KEYS for n in USUAL[key]} | bert | {"<mask>"}


def _merges(data: bytes, pieces: Mapping[str, int], origin: str) -> list[tuple[str, str]]:
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as e:
        raise DataError(f"{origin}: merges.txt is not UTF-8: {e}.") from e
    rules = []
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not right or " " in right:
            raise DataError(f"{origin}: merges.txt line {number} is no pair of pieces: {line!r}.")
        if not {left, right, left + right} <= pieces.keys():
            raise DataError(
                f"{origin}: merges.txt line {number} joins {left!r} and {right!r}, of which "
                "vocab.json lacks one or the result. They belong to different tokenizers."
            )
        rules.append((left, right))
    return rules


def _file(
    model: dict[str, Any],
    cut: list[dict[str, Any]],
    normalizer: dict[str, Any] | None,
    decoder: dict[str, Any],
    added: Mapping[int, AddedToken],
    ends: dict[str, Any] | None,
) -> bytes:
    size = max((*model["vocab"].values(), *added), default=0)
    if size >= MAX_VOCABULARY:
        raise DataError(f"Token ids up to {size:,}: more than {MAX_VOCABULARY:,} is no vocabulary.")
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **dataclasses.asdict(t)} for i, t in sorted(added.items())],
        "normalizer": normalizer,
        "pre_tokenizer": (cut[0] if len(cut) == 1 else {"type": "Sequence", "pretokenizers": cut}),
        "post_processor": ends,
        "decoder": decoder,
        "model": model,
    }
    return json.dumps(content, ensure_ascii=False).encode()
