"""A tokenizer with pieces of another language added; every old id keeps its meaning.

New pieces come after the old ones. With ``order`` 'after' they also merge after them: what the old
tokenizer makes of a text is made first, and then neighbours are joined. A token of the grown
tokenizer is therefore always a run of whole tokens of the old one, and a text in which no new piece
occurs keeps its ids.

Growth is nested: pieces are ordered by the tokens they save, and any first k of them will do.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Iterable, Sequence

import numpy as np
from tqdm import tqdm

from t5x_llm.core.errors import ConfigError, DataError, check_choice, check_number
from t5x_llm.text.companions import CONFIG, Companions, dumped
from t5x_llm.text.grow_json import admissible, grown_json, learn_merges
from t5x_llm.text.hf_json import HFTokenizer
from t5x_llm.text.load import JSON, SENTENCEPIECE_FILES
from t5x_llm.text.sentencepiece import SPACE, SentencePieceTokenizer, parse
from t5x_llm.text.tokenizer import MAX_VOCABULARY, Tokenizer
from t5x_llm.text.training import SCORE_STEPS, TokenizerTraining, draw, fit

ORDERS = ("after", "first")


@dataclasses.dataclass(frozen=True)
class Growing:
    """Settings for growing a tokenizer.

    Attributes:
      most: new pieces at most.
      order: of merges. 'after' the old ones; or 'first', as Colossal-LLaMA-2 has it, whose pieces
        of score 0 come before all others. (Among themselves ours keep the order in which they were
        learned: equal scores cannot be written in a tokenizer.json.)
      ascii: whether new pieces may hold ASCII letters and digits, or nothing but marks that English
        has too, such as a dash. Without them English keeps its ids; with them 'linux' may become a
        token of its own, of which the model knows nothing.
      character_coverage: share of the characters in the new text that get a piece of their own.
      max_piece_length: characters of a new piece at most.
      sample_bytes: how much of the new text to learn from at most.
      seed: of that draw.
    """

    most: int = 32_000
    order: str = "after"
    ascii: bool = False
    character_coverage: float = 0.9995
    max_piece_length: int = 16
    sample_bytes: int = 10_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("Growing.most", self.most, low=1, high=MAX_VOCABULARY, integer=True)
        check_choice("Growing.order", self.order, ORDERS)
        self.training(400, "bpe")

    def training(self, vocab_size: int, kind: str) -> TokenizerTraining:
        """Returns the settings with which a tokenizer of the new text alone is trained."""
        return TokenizerTraining(
            vocab_size,
            kind,
            self.character_coverage,
            max_piece_length=self.max_piece_length,
            sample_bytes=self.sample_bytes,
            seed=self.seed,
        )


@dataclasses.dataclass(frozen=True)
class Additions:
    """Pieces learned from the new text, to be added to a tokenizer in part or whole.

    Attributes:
      base: the old tokenizer.
      order: of merges.
      pieces: as the model file writes them, by the tokens they save, the most first.
      ranks: of each, its place in the order in which pieces merge; its score, if unigram.
      merges: rules of a tokenizer.json, (left, right), in order; none for SentencePiece.
    """

    base: Tokenizer
    order: str
    pieces: tuple[str, ...]
    ranks: tuple[float, ...] = ()
    merges: tuple[tuple[str, str], ...] = ()

    def grown(self, size: int) -> Tokenizer:
        """The old tokenizer with the first ``size`` pieces.

        Raises:
          ConfigError: there are not so many.
        """
        check_number("size", size, low=0, high=len(self.pieces), integer=True)
        if isinstance(self.base, HFTokenizer):
            return grown_json(self.base, self.pieces[:size], self.merges)
        assert isinstance(self.base, SentencePieceTokenizer)
        return _grown_model(self.base, self.pieces[:size], self.ranks[:size], self.order)


def learn(base: Tokenizer, texts: Iterable[str], how: Growing, progress: bool = True) -> Additions:
    """Learns new pieces for ``base`` from texts of the new language.

    Args:
      base: a SentencePiece model, or a byte-level BPE tokenizer.json.
      texts: documents.
      how: see ``Growing``.
      progress: show a bar while reading, and what is done.

    Raises:
      ConfigError: a tokenizer of another kind.
      DataError: there is no text in which pieces could be found.
    """
    config = how.training(400, "bpe")
    sample = draw(config, tqdm(texts, "new text", unit=" docs", disable=None if progress else True))
    if progress:
        size = sum(len(s.encode()) for s in sample) / 1e6
        tqdm.write(f"learning up to {how.most:,} pieces from {size:.1f} MB of new text")
    base = growable(base)
    if isinstance(base, HFTokenizer):
        if how.order != "after":
            raise ConfigError("order", how.order, "'after': merges of a tokenizer.json are a list")
        pieces, merges = learn_merges(base, sample, how.most, how.ascii, how.max_piece_length)
        return _found(Additions(base, how.order, tuple(pieces), merges=tuple(merges)))
    assert isinstance(base, SentencePieceTokenizer)
    return _found(_learn_pieces(base, sample, how))


def growable(base: Tokenizer) -> Tokenizer:
    """Returns the SentencePiece model that lies beside a tokenizer.json of its kind, else ``base``.

    Tokens that tokenizer.json adds to the model become pieces of it, with the ids they have.
    """
    model = next((n for n in SENTENCEPIECE_FILES if n in base.companions), None)
    if not isinstance(base, HFTokenizer) or model is None:
        return base
    files = {n: raw for n, raw in base.companions.items() if n not in (*SENTENCEPIECE_FILES, JSON)}
    added = json.loads(base.data).get("added_tokens") or ()
    decoder = {str(token["id"]): token for token in added}
    files[CONFIG] = dumped({**Companions(files).config, "added_tokens_decoder": decoder})
    grown = SentencePieceTokenizer(base.companions[model], model, files)
    return grown if grown.vocab_size == base.vocab_size else base


def _found(found: Additions) -> Additions:
    if not found.pieces:
        raise DataError(
            "No new piece was found in the new text: the old tokenizer has all of its characters, "
            "or the text is too short."
        )
    return found


def _learn_pieces(base: SentencePieceTokenizer, sample: list[str], how: Growing) -> Additions:
    old = base.proto
    trainer = old.trainer_spec
    unigram = trainer.model_type == trainer.UNIGRAM
    if unigram and how.order != "after":
        raise ConfigError("order", how.order, "'after': pieces of a unigram model have no order")
    if not how.ascii:
        # What may be in no new piece is not worth learning from.
        parts = (part for text in sample for part in re.split("[A-Za-z0-9]+", text))
        sample = [part for part in parts if not part.isascii()]
    if not sample:
        raise DataError("The new text holds nothing but ASCII; allow ASCII in new pieces (ascii).")
    known = {p.piece for p in old.pieces}
    have = sum(admissible(p.encode(), how.ascii) for p in known) if not how.ascii else len(known)
    letters = {c for text in sample for c in text}
    # Bytes, special tokens, rare characters and what the old one has come off what is trained.
    size = 261 + how.most + len(letters) + min(have, 10 * len(letters))
    data = fit(how.training(size, "unigram" if unigram else "bpe"), sample, fewer=True)
    trained = parse(data, "the trained model")
    tokenizer = SentencePieceTokenizer(data)
    counts: collections.Counter[int] = collections.Counter()
    for ids in tokenizer.encode_batch(sample, threads=2):
        counts.update(ids)
    rank = {p.piece: i for i, p in enumerate(trained.pieces) if p.type == p.NORMAL}
    times = {piece: counts[i] for piece, i in rank.items()}
    if not unigram:
        _count_parts(rank, times)
    saved: dict[str, tuple[float, int, int]] = {}
    for piece, at in rank.items():
        if piece in known or not admissible(piece.replace(SPACE, " ").encode(), how.ascii):
            continue
        if len(piece) == 1:
            # Unknown, it was its bytes; or was lost.
            gain = len(piece.encode()) - 1 if trainer.byte_fallback else 1
        else:
            gain = len(base.spell(piece.replace(SPACE, " "))) - 1 if unigram else 1
        saved[piece] = (-times[piece] * gain, len(piece) > 1, at)
    pieces, reached = [], set(known)
    for piece in sorted(saved, key=saved.__getitem__):
        halves = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        if not times[piece]:
            continue
        if unigram or len(piece) == 1 or any(a in reached and b in reached for a, b in halves):
            pieces.append(piece)
            reached.add(piece)
    pieces = pieces[: how.most]
    scores = [trained.pieces[rank[p]].score if unigram else float(rank[p]) for p in pieces]
    return Additions(base, how.order, tuple(pieces), tuple(scores))


def _count_parts(rank: dict[str, int], times: dict[str, int]) -> None:
    """Adds to each piece how often it was a part of a longer one on the way."""
    last = max(rank.values(), default=0) + 1
    # SentencePiece puts single characters after the merges; they were there before.
    order = {p: (i if len(p) > 1 else -1) for p, i in rank.items()}
    for piece in sorted(order, key=order.__getitem__, reverse=True):
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        splits = [s for s in splits if s[0] in order and s[1] in order]
        if splits:
            for part in min(splits, key=lambda s: max(order.get(p, last) for p in s)):
                times[part] += times[piece]


def _grown_model(
    base: SentencePieceTokenizer, pieces: Sequence[str], ranks: Sequence[float], order: str
) -> SentencePieceTokenizer:
    proto = type(base.proto)()
    proto.CopyFrom(base.proto)
    trainer, kind = proto.trainer_spec, proto.pieces[0].NORMAL
    scores = [p.score for p in proto.pieces if p.type == kind]
    if trainer.model_type == trainer.UNIGRAM:
        given = dict(
            zip(pieces, (round(s * SCORE_STEPS) / SCORE_STEPS for s in ranks), strict=True)
        )
    else:
        by_rank = [p for _, p in sorted(zip(ranks, pieces, strict=True))]
        given = dict(zip(by_rank, _scores(scores, len(pieces), order), strict=True))
    for piece in pieces:
        proto.pieces.add(piece=piece, score=given[piece], type=kind)
    trainer.vocab_size = len(proto.pieces)
    # A tokenizer.json beside the old model has its pieces alone.
    kept = {name: raw for name, raw in base.companions.items() if name != JSON}
    data = proto.SerializeToString(deterministic=True)
    return SentencePieceTokenizer(data, "the grown model", kept)


def _scores(old: Sequence[float], count: int, order: str) -> list[float]:
    """Falling scores below all old ones, or above; neighbours among float32 numbers if below."""
    if order == "first":
        top = max(old, default=0.0)
        return [float(np.float32(top + count - i)) for i in range(count)]
    out, score = [], np.float32(min(old, default=0.0))
    for _ in range(count):
        score = np.nextafter(score, np.float32(-np.inf))
        out.append(float(score))
    return out
