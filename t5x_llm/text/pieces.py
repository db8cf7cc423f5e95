"""A SentencePiece model with the ids that Hugging Face gives its pieces.

Hugging Face's tokenizers number some tokens that the model file does not have: tokens added to the
vocabulary, T5's sentinels after the pieces, and XLM-R's special tokens, which stand before them in
fairseq's order. Here they become pieces of the model, so that an id means one thing everywhere.
"""

from __future__ import annotations

import collections
from typing import Any

from t5x_llm.core.errors import DataError
from t5x_llm.text.companions import Companions

# Classes that number pieces in ways of their own.
_FOREIGN = {
    *("Albert", "Barthez", "BigBird", "Camembert", "CPM", "DebertaV2", "Fnet", "M2M100", "Marian"),
    *("MBart", "MBart50", "Nllb", "Pegasus", "PLBart", "Reformer", "RemBert"),
    *("SeamlessM4T", "Speech2Text", "XGLM", "XLMProphetNet", "XLNet"),
}
# Ids between the model's pieces and the tokens added to them are filled with pieces nobody uses.
_MAX_GAP = 1000
_SPACE = "\u2581"


def kind_of(companions: Companions) -> str:
    """Returns 'xlm-roberta', 't5' or '' for every other numbering of pieces."""
    kind, model = companions.kind, companions.model_type
    if kind == "XLMRobertaTokenizer" or model in ("xlm-roberta", "xlm-roberta-xl"):
        return "xlm-roberta"
    return "t5" if kind in ("T5Tokenizer", "MT5Tokenizer") or model in ("t5", "mt5") else ""


def appends_eos(companions: Companions) -> bool:
    """Returns True where encoding with special tokens ends with the end of a text."""
    said = companions.config.get("add_eos_token")
    return said if isinstance(said, bool) else bool(kind_of(companions))


def fitted(proto: Any, companions: Companions, origin: str) -> bool:
    """Changes a ModelProto to what the files beside it make of it.

    Args:
      proto: as its file has it; changed in place. Doing so twice changes nothing more.
      companions: the files.
      origin: the model file, for messages.

    Returns:
      Whether anything changed.

    Raises:
      DataError: pieces are numbered in a way that is not known here.
    """
    kind = companions.kind
    if kind.removesuffix("Tokenizer") in _FOREIGN:
        raise DataError(
            f"{origin} belongs to a {kind}, which numbers pieces in its own way. Write a "
            "tokenizer.json with transformers (AutoTokenizer.from_pretrained, save_pretrained)."
        )
    changed = False
    if kind_of(companions) == "xlm-roberta":
        changed |= _fairseq(proto)
    if kind_of(companions) == "t5":
        changed |= _sentinels(proto, companions)
    changed |= _added(proto, companions, origin)
    if companions.config.get("add_prefix_space") is False:
        changed |= proto.normalizer_spec.add_dummy_prefix
        proto.normalizer_spec.add_dummy_prefix = False
    if changed:
        proto.trainer_spec.vocab_size = len(proto.pieces)
    return bool(changed)


def _fairseq(proto: Any) -> bool:
    """Numbers pieces as XLM-R: ``<s> <pad> </s> <unk>``, the pieces, ``<mask>`` (Conneau et al.
    2020).
    """
    old = list(proto.pieces)
    if [p.piece for p in old[:3]] != ["<unk>", "<s>", "</s>"]:
        return False
    new = type(proto)()
    control, unknown = old[0].CONTROL, old[0].UNKNOWN
    for name, kind in (("<s>", control), ("<pad>", control), ("</s>", control), ("<unk>", unknown)):
        new.pieces.add(piece=name, score=0.0, type=kind)
    new.pieces.extend(p for p in old[3:] if p.piece not in ("<pad>", "<mask>"))
    new.pieces.add(piece="<mask>", score=0.0, type=control)
    del proto.pieces[:]
    proto.pieces.extend(new.pieces)
    spec = proto.trainer_spec
    spec.bos_id, spec.pad_id, spec.eos_id, spec.unk_id = range(4)
    spec.pad_piece = "<pad>"
    return True


def _sentinels(proto: Any, companions: Companions) -> bool:
    """Adds T5's ``<extra_id_99>`` to ``<extra_id_0>`` (Raffel et al. 2020) if they are absent."""
    count = companions.config.get("extra_ids", 100)
    have = {p.piece.lstrip(_SPACE) for p in proto.pieces}
    rows = companions.parsed("config.json").get("vocab_size")
    fits = not isinstance(rows, int) or len(proto.pieces) + count <= rows
    if not isinstance(count, int) or not 0 < count <= _MAX_GAP or "<extra_id_0>" in have:
        return False
    if not fits:
        return False
    for i in reversed(range(count)):
        proto.pieces.add(piece=f"<extra_id_{i}>", score=0.0, type=proto.pieces[0].CONTROL)
    return True


def _added(proto: Any, companions: Companions, origin: str) -> bool:
    """Adds the tokens of the files, and marks as special those pieces that they call so."""
    changed = False
    pieces = proto.pieces
    schema = pieces[0]
    for i, token in sorted(companions.added.items()):
        kind = schema.CONTROL if token.special else schema.USER_DEFINED
        if i - len(pieces) > _MAX_GAP:
            raise DataError(
                f"The files beside {origin} add {token.content!r} with id {i}, far from its "
                f"{len(pieces)} pieces. They belong to another tokenizer."
            )
        while len(pieces) <= i:
            pieces.add(piece=f"<unused_id_{len(pieces)}>", score=0.0, type=schema.CONTROL)
            changed = True
        piece = pieces[i]
        if piece.piece != token.content and piece.piece.replace(_SPACE, " ") != token.content:
            # A row that was reserved, and got its use later.
            piece.piece, piece.type = token.content, kind
            changed = True
        elif token.special and piece.type not in (schema.CONTROL, schema.UNKNOWN):
            piece.type = kind
            changed = True
        elif piece.type == schema.NORMAL:
            piece.type = kind
            changed = True
    double, times = collections.Counter(p.piece for p in pieces).most_common(1)[0]
    if changed and times > 1:
        raise DataError(f"The files beside {origin} add {double!r}, which is a piece already.")
    return changed
