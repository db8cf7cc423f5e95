"""A SentencePiece model as a Hugging Face tokenizer.json with the same ids and the same text.

Hugging Face's own converters keep U+2581 for the space and so lose a U+2581 that stands in the
text; here the vocabulary holds real spaces, and a character outside it falls back to its bytes.
One difference cannot be written in a tokenizer.json: a unigram model from elsewhere that lacks a
character of, say, "<0x41>" will there match that text as the byte token. Ours has them all.
"""

from __future__ import annotations

from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, processors

# A score no path through the text can prefer: byte and special pieces are never matched as text.
NEVER = -1e6


def tokenizer_json(
    proto: Any, dummy_prefix: bool, bos: int | None = None, eos: int | None = None
) -> str:
    """The tokenizer.json of a ModelProto whose pieces hold real spaces.

    Args:
      proto: sentencepiece ModelProto, U+2581 already replaced by spaces.
      dummy_prefix: whether a space goes before every text.
      bos: id put before every text; None for none.
      eos: id put after every text; None for none.
    """
    spec, trainer, pieces = proto.normalizer_spec, proto.trainer_spec, proto.pieces
    unk = next((i for i, p in enumerate(pieces) if p.type == p.UNKNOWN), None)
    if trainer.model_type == trainer.BPE:
        tokenizer = tokenizers.Tokenizer(
            models.BPE(
                vocab={p.piece: i for i, p in enumerate(pieces)},
                merges=_merges(pieces),
                unk_token=None if unk is None else pieces[unk].piece,
                fuse_unk=True,
                byte_fallback=trainer.byte_fallback,
            )
        )
    else:
        text = (pieces[0].NORMAL, pieces[0].USER_DEFINED)
        scores = [(p.piece, p.score if p.type in text else NEVER) for p in pieces]
        tokenizer = tokenizers.Tokenizer(
            models.Unigram(scores, unk_id=unk, byte_fallback=trainer.byte_fallback)
        )

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    if dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    strip = [decoders.Strip(content=" ", left=1, right=0)] if dummy_prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), *strip])

    for piece in pieces:
        if piece.type in (piece.UNKNOWN, piece.CONTROL):
            tokenizer.add_special_tokens([_added(piece.piece, True)])
        elif piece.type == piece.USER_DEFINED:
            tokenizer.add_tokens([_added(piece.piece, False)])
    first, last = (
        [] if i is None or pieces[i].type != pieces[i].CONTROL else [(pieces[i].piece, i)]
        for i in (bos, eos)
    )
    if first or last:
        one = [[*(n for n, _ in first), f"${k}", *(n for n, _ in last)] for k in "AB"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=one[0],
            pair=[*one[0], *(f"{part}:1" for part in one[1])],
            special_tokens=list(dict.fromkeys(first + last)),
        )
    return tokenizer.to_str(pretty=False)


def companions(names: dict[str, str], specials: dict[int, str]) -> dict[str, dict[str, Any]]:
    """tokenizer_config.json and special_tokens_map.json.

    Args:
      names: ``bos_token`` and so on to the token's text, for those that exist.
      specials: id to text of every special token.
    """
    decoder = {
        str(i): {
            "content": text, "lstrip": False, "normalized": False, "rstrip": False,
            "single_word": False, "special": True,
        }
        for i, text in specials.items()
    }  # fmt: skip
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": "bos_token" in names,
        "add_eos_token": False,
        "added_tokens_decoder": decoder,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
        **names,
    }
    return {"tokenizer_config.json": config, "special_tokens_map.json": names}


def _added(text: str, special: bool) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(text, special=special, normalized=False)


def _merges(pieces: Any) -> list[tuple[str, str]]:
    """Merge rules in the order in which SentencePiece prefers them: by score, then by id.

    SentencePiece joins the adjacent pair whose union has the best score, however it is split;
    so every split of a piece into two pieces is a rule.
    """
    text = (pieces[0].NORMAL, pieces[0].USER_DEFINED) if pieces else ()
    known = {p.piece for p in pieces if p.type in text}
    ranked = sorted((p for p in pieces if p.type in text), key=lambda p: -p.score)
    return [
        (p.piece[:i], p.piece[i:])
        for p in ranked
        for i in range(1, len(p.piece))
        if p.piece[:i] in known and p.piece[i:] in known
    ]
