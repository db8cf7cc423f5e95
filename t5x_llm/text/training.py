"""Training a SentencePiece tokenizer from text, the same model bytes from the same text."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import io
import os
import re
import time
from collections.abc import Iterable
from typing import Any

import sentencepiece
from tqdm import tqdm

from t5x_llm.core.errors import ConfigError, DataError, check_choice, check_count, check_number
from t5x_llm.core.paths import check_writable
from t5x_llm.text.sentencepiece import SentencePieceTokenizer, parse
from t5x_llm.text.tokenizer import MAX_VOCABULARY, Tokenizer, cut

SENTENCE_CHARS = 1000
# Unigram scores are rounded to this fraction: sums over a text are then exact in float32, and
# SentencePiece and Hugging Face, which adds in float64, choose the same path.
SCORE_STEPS = 256
# What SentencePiece says where a text does not support a vocabulary.
_MOST = re.compile(r"set it to a value <= (\d+)")


@dataclasses.dataclass(frozen=True)
class TokenizerTraining:
    """Settings for training a tokenizer.

    Attributes:
      vocab_size: pieces, among them 4 special tokens and 256 bytes (if ``byte_fallback``).
      kind: ``bpe`` or ``unigram``. llama.cpp's converter reads the tokenizer.model of a LLaMA as
        BPE whatever it is, so a model that is to run there needs ``bpe``.
      character_coverage: share of the characters in the text that get a piece of their own; the
        others are written in bytes. 0.9995 suits Chinese with its thousands of characters
        (SentencePiece's own advice), 1.0 a small alphabet.
      byte_fallback: write unknown characters in bytes; without it they are lost.
      split_digits: a piece holds at most one digit.
      max_piece_length: characters in a piece at most.
      sample_bytes: how much text to train on at most, drawn evenly from all of it; None for 10 MB
        (BPE, seconds) or 4 MB (unigram, whose time grows faster than the text).
      extra_ids: pieces <extra_id_0>, <extra_id_1>, ... at the end of the vocabulary, from the top
        down as T5's, for objectives that need sentinels and masks. Like other special tokens they
        are never matched in a text.
      seed: of that draw.
      num_threads: a number and not "all cores", so that every machine gives the same model.
    """

    vocab_size: int = 8192
    kind: str = "bpe"
    character_coverage: float = 0.9995
    byte_fallback: bool = True
    split_digits: bool = True
    max_piece_length: int = 16
    sample_bytes: int | None = None
    seed: int = 0
    num_threads: int = 4
    extra_ids: int = 0

    def __post_init__(self) -> None:
        name = "TokenizerTraining"
        check_choice(f"{name}.kind", self.kind, ("bpe", "unigram"))
        check_number(f"{name}.extra_ids", self.extra_ids, low=0, high=10_000, integer=True)
        low = (261 if self.byte_fallback else 5) + self.extra_ids
        first = "4 special tokens" + (" and 256 bytes" if self.byte_fallback else "")
        first += f" and {self.extra_ids} extra_ids" if self.extra_ids else ""
        check_number(
            f"{name}.vocab_size", self.vocab_size, low=low, high=MAX_VOCABULARY, integer=True,
            remedy=f"{first} come first.",
        )  # fmt: skip
        check_number(f"{name}.character_coverage", self.character_coverage, low=0.98, high=1)
        check_number(f"{name}.max_piece_length", self.max_piece_length, low=1, high=512,
                     integer=True)  # fmt: skip
        if self.sample_bytes is not None:
            check_count(f"{name}.sample_bytes", self.sample_bytes, low=1000)
        check_number(f"{name}.seed", self.seed, low=0, integer=True)
        check_number(f"{name}.num_threads", self.num_threads, low=1, high=128, integer=True)


def train_tokenizer(
    config: TokenizerTraining,
    texts: Iterable[str],
    out: str | os.PathLike[str],
    progress: bool = True,
) -> Tokenizer:
    """Trains a tokenizer and saves it.

    Whitespace is kept as it is: no normalisation, no space put in front, runs of spaces and line
    ends are pieces like others. Ids 0 to 3 are ``<unk>``, ``<s>``, ``</s>``, ``<pad>``.

    Args:
      config: what to train.
      texts: the documents.
      out: directory for the files (see ``Tokenizer.save``).
      progress: show a bar while reading and a line for the training.

    Raises:
      ConfigError: the text does not support the vocabulary, or ``out`` cannot be written.
      DataError: there is no text.
    """
    check_writable("TokenizerTraining.out", out)
    sample = draw(config, tqdm(texts, "tokenizer: reading", unit=" docs", disable=not progress))
    if not sample:
        raise DataError("No text to train a tokenizer on: every document is empty.")
    size = sum(len(s.encode()) for s in sample)
    start = time.monotonic()
    if progress:
        tqdm.write(
            f"tokenizer: fitting {config.vocab_size:,} {config.kind} pieces to "
            f"{size / 1e6:.1f} MB of text"
        )
    data = fit(config, sample)
    tokenizer = SentencePieceTokenizer(data)
    tokenizer.save(out)
    if progress:
        tqdm.write(f"tokenizer: {time.monotonic() - start:.1f} s, written to {out}")
    return tokenizer


def draw(config: TokenizerTraining, texts: Iterable[str]) -> list[str]:
    """Stretches of text with the smallest keyed hashes, ``sample_bytes`` of them.

    Independent of the order of the documents and of how many there are.
    """
    key = config.seed.to_bytes(16, "big")
    heap: list[tuple[bytes, str, int]] = []
    total = 0
    limit = config.sample_bytes or (10_000_000 if config.kind == "bpe" else 4_000_000)
    for text in texts:
        for stretch in cut(text, SENTENCE_CHARS):
            try:
                raw = stretch.encode()
            except UnicodeEncodeError as e:
                raise DataError(f"A document is not valid Unicode: {e}.") from e
            if not raw:
                continue
            # Inverted, so that the heap's smallest is the one to drop.
            rank = hashlib.blake2b(raw, digest_size=16, key=key).digest()
            item = (bytes(255 - b for b in rank), stretch, len(raw))
            heapq.heappush(heap, item)
            total += len(raw)
            while total > limit and len(heap) > 1:
                total -= heapq.heappop(heap)[2]
    return [item[1] for item in sorted(heap, reverse=True)]


def fit(config: TokenizerTraining, sample: list[str], fewer: bool = False) -> bytes:
    """The model file of a tokenizer trained on ``sample``.

    Args:
      config: what to train.
      sample: texts of at most ``SENTENCE_CHARS`` characters.
      fewer: take fewer pieces where the text does not support as many as asked for.
    """
    written = io.BytesIO()
    required = "<>/0123456789ABCDEFxsunkpad" + ("_etrai" if config.extra_ids else "")
    options: dict[str, Any] = dict(
        model_type=config.kind,
        vocab_size=config.vocab_size - config.extra_ids,
        character_coverage=config.character_coverage,
        byte_fallback=config.byte_fallback,
        split_digits=config.split_digits,
        max_sentencepiece_length=config.max_piece_length,
        num_threads=config.num_threads,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        # Hugging Face's unigram can match "</s>" or "<0x41>" in the text as the token of that name,
        # but prefers the characters where they are pieces. (BPE has no such path, and its trainer
        # aborts the process over a required character of frequency 0.)
        required_chars=required if config.kind == "unigram" else "",
        unk_id=0, bos_id=1, eos_id=2, pad_id=3,
        max_sentence_length=8 * SENTENCE_CHARS,
        shuffle_input_sentence=False,
        # A million candidates is the default: minutes for a small vocabulary, and no better.
        seed_sentencepiece_size=max(60_000, 8 * config.vocab_size),
        minloglevel=2,
    )  # fmt: skip
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample), model_writer=written, **options
        )
    except RuntimeError as e:
        found = _MOST.search(str(e))
        most = int(found[1]) + config.extra_ids if found else config.vocab_size
        if fewer and most < config.vocab_size:
            return fit(dataclasses.replace(config, vocab_size=most), sample)
        raise _explain(config, str(e)) from e
    proto = parse(written.getvalue(), "the trained model")
    if config.kind == "unigram":
        for piece in proto.pieces:
            piece.score = round(piece.score * SCORE_STEPS) / SCORE_STEPS
    for i in reversed(range(config.extra_ids)):
        proto.pieces.add(piece=f"<extra_id_{i}>", score=0.0, type=proto.pieces[1].CONTROL)
    if config.extra_ids:
        proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString(deterministic=True)


def _explain(config: TokenizerTraining, message: str) -> Exception:
    """SentencePiece's complaint as something the user can act on."""
    field, extra = "TokenizerTraining.vocab_size", config.extra_ids
    counted = f" and {extra} extra_ids" if extra else ""  # of which SentencePiece does not know
    if found := _MOST.search(message):
        return ConfigError(
            field, config.vocab_size, f"at most {int(found[1]) + extra} for this text{counted}",
            "Lower it, or train on more text.",
        )  # fmt: skip
    if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return ConfigError(
            field, config.vocab_size, 
            f"at least {int(found[1]) + extra} for the characters of this text{counted}",
            "Raise it, or lower TokenizerTraining.character_coverage.",
        )  # fmt: skip
    if re.search(r"(sentences_|required_chars_)\.empty", message):
        return DataError(
            "No text to train a tokenizer on: only line ends, tabs or control characters."
        )
    return DataError(f"SentencePiece could not train on this text: {message}")
