"""Configuration of the objective, and the special ids that it needs of a tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.core.fields import later, unset
from t5x_llm.text import Tokenizer

OBJECTIVES = ("lm", "mlm", "span_corruption", "prefix_lm", "ul2", "blank_filling", "fim")
FORMS = ("auto", "decoder", "encoder_decoder")
MODES = ("R", "X", "S")

# arXiv 2205.05131, table 1: (mode, mean span, density). All at the same rate, as there.
UL2_SPANS = (
    ("R", 3.0, 0.15), ("R", 8.0, 0.15),
    ("X", 3.0, 0.5), ("X", 8.0, 0.5), ("X", 64.0, 0.15), ("X", 64.0, 0.5),
)  # fmt: skip

# Pieces that published tokenizers give these roles; the first one found is taken.
_USUAL = {
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
    "gmask": ("[gMASK]", "<gmask>"),
    "start_of_piece": ("<sop>", "<|startofpiece|>"),
    "end_of_piece": ("<eop>", "<|endofpiece|>"),
    "R": ("[R]", "[NLU]"),
    "X": ("[X]", "[NLG]"),
    "S": ("[S]", "[S2S]"),
}
# Prefix, suffix and middle marks of StarCoder, Qwen and CodeGemma, DeepSeek, and Code Llama.
_FIM = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
)
_RESERVE = "Train the tokenizer with TokenizerTraining.extra_ids, or name ids in the field."


@dataclasses.dataclass(frozen=True)
class Denoising:
    """Objective of the training stream; ``Batch`` describes its rows.

    Documents are read in pieces that fill a row when corrupted. With ``Data.packing = 'whole'`` a
    segment is a document or a piece of one, without its begin and end tokens (``mlm`` and
    ``prefix_lm`` of a decoder keep them). With ``concat`` documents are joined, begin and end
    tokens between them, and cut into blocks; a block is one segment, as T5, UL2 and GLM were
    trained (``mlm`` and ``prefix_lm`` of a decoder keep documents apart as ``lm`` does).

    Attributes:
      objective: ``lm``; ``mlm`` (BERT, arXiv 1810.04805, masked anew in each epoch as RoBERTa's,
        1907.11692); ``span_corruption`` (T5, 1910.10683); ``prefix_lm`` (ibid., 3.2.1: split
        anywhere, the rest is predicted); ``ul2`` (2205.05131, table 1, and S-denoisers);
        ``blank_filling`` (GLM, 2103.10360 and 2210.02414); ``fim`` (fill in the middle,
        2207.14255: the middle of a piece is moved to its end, and all of it is predicted).
      form: ``decoder`` or ``encoder_decoder`` for span_corruption, prefix_lm and ul2; auto is
        encoder_decoder for span_corruption.
      density: share of tokens that is noise; not ul2's, which come from ``ul2``.
      mean_span: tokens of a noise span, on average; likewise.
      target_length: T of an encoder-decoder's decoder. By default what ``Loop.sequence_length``
        tokens on the encoder's side leave of a text (t5's ``random_spans_helper``) for
        span_corruption, else ``Loop.sequence_length``.
      mask_share, random_share: of the tokens mlm chooses, those that become a mask and those that
        become a random token.
      ul2: (R or X, mean span, density) of the denoisers.
      suffix_rate: share of the rows that get the S-denoiser; the others share the rest alike.
      suffix_share: the S-denoiser predicts at most this share of a text, at least one token, all
        lengths alike: 25% on average.
      long_rate: share of blank_filling's rows in which a gMASK stands for the end of the text, any
        length of it; in the others masks stand for spans. GLM-130B's.
      sentinels: ids of the spans' sentinels, first to last; a number n means the last n ids of the
        vocabulary from the top down, auto the pieces <extra_id_0>, <extra_id_1>, ...
      mask: of mlm and blank_filling. Here and below: an id, the name of a piece, or auto: a piece
        with a usual name, else one of the <extra_id_i>, the last one that is not taken.
      gmask, start_of_piece, end_of_piece: of blank_filling.
      fim_rate: share of the rows whose pieces are rearranged for fim; the others are as for lm.
      suffix_first: share of the pieces that are rearranged in which the suffix comes first and the
        prefix right before the middle (SPM), not the prefix first (PSM).
      fim: ids or pieces of the marks before prefix, suffix and middle; auto: those of StarCoder,
        Qwen, CodeGemma, DeepSeek or Code Llama, else three of the <extra_id_i>.
      modes: of ul2, put before the inputs, in the order R, X, S; None puts none.
      start: what the decoder of an encoder-decoder reads first; auto is the pad token.
      end: what ends inputs and targets; auto is the end token.
    """

    objective: str = "lm"
    form: str = "auto"
    density: float = 0.15
    mean_span: float = 3.0
    target_length: int | None = None
    mask_share: float = 0.8
    random_share: float = 0.1
    ul2: tuple[tuple[str, float, float], ...] = UL2_SPANS
    suffix_rate: float = 1 / 7
    suffix_share: float = 0.5
    long_rate: float = 0.7
    sentinels: str | int | tuple[int, ...] = "auto"
    mask: str | int = "auto"
    gmask: str | int = "auto"
    start_of_piece: str | int = "auto"
    end_of_piece: str | int = "auto"
    modes: str | tuple[str | int, ...] | None = "auto"
    start: str | int = "auto"
    end: str | int = "auto"
    fim_rate: float = later(0.5)
    suffix_first: float = later(0.5)
    fim: str | tuple[str | int, ...] = later("auto")

    def __post_init__(self) -> None:
        check_choice("Denoising.objective", self.objective, OBJECTIVES)
        check_choice("Denoising.form", self.form, FORMS)
        free = ("span_corruption", "prefix_lm", "ul2")
        if self.form != "auto" and self.objective not in free:
            raise ConfigError(
                "Denoising.form", self.form, f"auto: {self.objective} has one form only"
            )
        _check_share("density", self.density)
        check_number("Denoising.mean_span", self.mean_span, low=1)
        if self.target_length is not None:
            check_number("Denoising.target_length", self.target_length, low=2, integer=True)
            if not self.encoder_decoder:
                raise ConfigError(
                    "Denoising.target_length", self.target_length, "None: there is no encoder"
                )
        for name in (
            *("mask_share", "random_share", "suffix_rate", "long_rate"),
            *("fim_rate", "suffix_first"),
        ):
            check_number(f"Denoising.{name}", getattr(self, name), low=0, high=1)
        check_number("Denoising.suffix_share", self.suffix_share, above=0, high=1)
        if self.mask_share + self.random_share > 1:
            raise ConfigError(
                "Denoising.random_share", self.random_share,
                f"at most 1 - Denoising.mask_share = {1 - self.mask_share:g}",
            )  # fmt: skip
        self._check_ul2()
        if isinstance(self.fim, (list, tuple)):
            object.__setattr__(self, "fim", tuple(self.fim))
        if self.fim != "auto" and not (_is_tuple(self.fim) and len(self.fim) == 3):
            raise ConfigError(
                "Denoising.fim", self.fim, "auto, or three ids or pieces: prefix, suffix, middle"
            )
        if isinstance(self.modes, (list, tuple)):
            object.__setattr__(self, "modes", tuple(self.modes))
        if not (self.modes in (None, "auto") or (_is_tuple(self.modes) and len(self.modes) == 3)):
            raise ConfigError(
                "Denoising.modes", self.modes, "auto, None, or three ids or pieces for R, X and S"
            )
        if isinstance(self.sentinels, (list, tuple)):
            object.__setattr__(self, "sentinels", tuple(self.sentinels))
        elif not isinstance(self.sentinels, int) and self.sentinels != "auto":
            raise ConfigError(
                "Denoising.sentinels", self.sentinels, "auto, a number of ids, or a tuple of ids"
            )

    def _check_ul2(self) -> None:
        spans = tuple(tuple(entry) for entry in self.ul2)
        object.__setattr__(self, "ul2", spans)
        for entry in spans:
            if len(entry) != 3 or entry[0] not in ("R", "X"):
                raise ConfigError("Denoising.ul2", entry, "('R' or 'X', mean span, density)")
            check_number("Denoising.ul2 mean span", entry[1], low=1)
            _check_share("ul2 density", entry[2])
        if not spans and self.suffix_rate == 0:
            raise ConfigError("Denoising.ul2", spans, "a denoiser, or a suffix_rate above 0")

    @property
    def encoder_decoder(self) -> bool:
        """True if rows have an encoder's side."""
        if self.form == "auto":
            return self.objective == "span_corruption"
        return self.form == "encoder_decoder"

    def text(self) -> str:
        """Returns the fields and their values, without those that came later and are at rest."""
        held = ((f, getattr(self, f.name)) for f in dataclasses.fields(self))
        given = ", ".join(f"{f.name}={value!r}" for f, value in held if not unset(f, value))
        return f"Denoising({given})"


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Special ids that an objective uses; None where it uses none.

    Attributes:
      sentinels: of spans, first to last.
      modes: by mode; empty for none.
      specials: ids that are never masked and never put in at random.
      vocab_size: V.
      lead: begin tokens of a stored document.
      trail: its end tokens.
      fim: marks before prefix, suffix and middle; empty for other objectives than fim.
    """

    sentinels: tuple[int, ...]
    mask: int | None
    gmask: int | None
    start_of_piece: int | None
    end_of_piece: int | None
    modes: dict[str, int]
    start: int | None
    end: int | None
    specials: frozenset[int]
    vocab_size: int
    lead: int
    trail: int
    fim: tuple[int, ...] = dataclasses.field(default=(), repr=False)


def special_ids(config: Denoising, tokenizer: Tokenizer) -> SpecialIds:
    """Finds the special ids of a configuration in a tokenizer.

    Raises:
      ConfigError: the tokenizer lacks one, or one id would have two roles.
    """
    find = _Finder(tokenizer)
    goal = config.objective
    spans = goal in ("span_corruption", "ul2")
    glm = goal == "blank_filling"
    need = lambda when, field: find(field, getattr(config, field)) if when else None  # noqa: E731
    mask = need(goal == "mlm" or glm, "mask")
    gmask, sop, eop = (need(glm, name) for name in ("gmask", "start_of_piece", "end_of_piece"))
    modes: dict[str, int] = {}
    if goal == "ul2" and config.modes is not None:
        names = ("auto",) * 3 if config.modes == "auto" else config.modes
        modes = {m: find(m, n, "modes") for m, n in zip(MODES, names, strict=True)}
    start = end = None
    if config.encoder_decoder:
        start = find.known("start", config.start, tokenizer.pad_id)
    if spans or goal == "prefix_lm":
        end = find.known("end", config.end, tokenizer.eos_id)
    sentinels = find.sentinels(config.sentinels) if spans else ()
    fim = find.fim(config.fim) if goal == "fim" else ()
    if goal == "fim":
        start, end = tokenizer.bos_id, tokenizer.eos_id
    framing = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id)
    own = (mask, gmask, sop, eop, start, end, *modes.values(), *sentinels, *fim, *find.extras)
    return SpecialIds(
        sentinels, mask, gmask, sop, eop, modes, start, end,
        frozenset(i for i in (*framing, *own) if i is not None),
        tokenizer.vocab_size, int(tokenizer.bos_id is not None), int(tokenizer.eos_id is not None),
        fim,
    )  # fmt: skip


def planned_ids(config: Denoising, length: int) -> SpecialIds:
    """Ids that stand for those of a tokenizer to come: each part that has one has one here.

    Args:
      config: the objective.
      length: of a row; there are as many sentinels.
    """
    modes = dict.fromkeys(MODES, 0) if config.objective == "ul2" and config.modes else {}
    framed = config.objective in ("span_corruption", "ul2", "prefix_lm")
    return SpecialIds(
        tuple(range(length)), 0, 0, 0, 0, modes, 0 if config.encoder_decoder else None,
        0 if framed else None, frozenset(), 1, 1, 1, (0, 0, 0) if config.objective == "fim" else (),
    )  # fmt: skip


class _Finder:
    """Finds ids by their role and gives no id twice."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._taken: dict[int, str] = {}
        self.extras: list[int] = []
        while (found := tokenizer.id_of(f"<extra_id_{len(self.extras)}>")) is not None:
            self.extras.append(found)

    def __call__(self, part: str, value: str | int, field: str = "") -> int:
        """Returns the id of a role that has a piece of its own."""
        name = f"Denoising.{field or part}"
        if value == "auto":
            usual = _USUAL[part]
            found = next((i for n in usual if (i := self._tokenizer.id_of(n)) is not None), None)
            if found is None:
                free = [i for i in self.extras if i not in self._taken]
                if not free:
                    raise ConfigError(
                        name, "auto", f"a tokenizer with {' or '.join(usual)} or <extra_id_0>",
                        _RESERVE,
                    )  # fmt: skip
                found = free[-1]
            return self._take(name, found)
        return self._take(name, self._given(name, value))

    def known(self, part: str, value: str | int, usual: int | None) -> int:
        """Returns the id of a role that may be played by a token of the tokenizer's own."""
        name = f"Denoising.{part}"
        if value != "auto":
            return self._given(name, value)
        if usual is None:
            token = {"start": "pad", "end": "end"}[part]
            raise ConfigError(name, "auto", f"a tokenizer with a {token} token", "Give an id.")
        return usual

    def sentinels(self, value: str | int | tuple[int, ...]) -> tuple[int, ...]:
        """Returns the sentinels, first to last."""
        name, size = "Denoising.sentinels", self._tokenizer.vocab_size
        ids: Iterable[int]
        if value == "auto":
            ids = [i for i in self.extras if i not in self._taken]
            if not self.extras:
                raise ConfigError(
                    name, "auto", "a tokenizer with pieces <extra_id_0>, <extra_id_1>, ...",
                    "Train the tokenizer with TokenizerTraining.extra_ids = 100, or give a number: "
                    "so many ids at the end of the vocabulary.",
                )  # fmt: skip
        elif isinstance(value, int):
            check_number(name, value, low=1, high=size, integer=True)
            ids = range(size - 1, size - 1 - value, -1)
        else:
            assert not isinstance(value, str)
            ids = value
        return tuple(self._take(name, self._given(name, i)) for i in ids)

    def fim(self, value: str | tuple[str | int, ...]) -> tuple[int, ...]:
        """Returns the marks before prefix, suffix and middle."""
        name, id_of = "Denoising.fim", self._tokenizer.id_of
        if value == "auto":
            usual = [tuple(id_of(piece) for piece in pieces) for pieces in _FIM]
            found = next((ids for ids in usual if None not in ids), None)
            if found is None and len(self.extras) < 3:
                expected = "a tokenizer with <fim_prefix>, <fim_suffix> and <fim_middle>, or three "
                raise ConfigError(name, "auto", expected + "pieces <extra_id_0> to 2", _RESERVE)
            value = tuple(self.extras[-3:]) if found is None else found  # type: ignore[assignment]
        assert not isinstance(value, str)
        return tuple(self._take(name, self._given(name, i)) for i in value)

    def _given(self, name: str, value: str | int) -> int:
        if isinstance(value, str):
            found = self._tokenizer.id_of(value)
            if found is None:
                raise ConfigError(name, value, "a piece of the tokenizer, an id, or auto", _RESERVE)
            return found
        check_number(name, value, low=0, high=self._tokenizer.vocab_size - 1, integer=True)
        return value

    def _take(self, name: str, found: int) -> int:
        if found in self._taken:
            raise ConfigError(name, found, f"an id that {self._taken[found]} does not use")
        self._taken[found] = name
        return found


def _check_share(name: str, value: Any) -> None:
    check_number(f"Denoising.{name}", value, above=0)
    if value >= 1:
        raise ConfigError(f"Denoising.{name}", value, "below 1")


def _is_tuple(value: object) -> bool:
    return isinstance(value, tuple)
