"""Finds the Hugging Face module that each of our linear maps is, and the layout of its factors.

A weight map's pattern says how a whole kernel is laid out. Its axes are inputs or outputs, so the
same pattern without one side says how a factor lies: what acts on outputs (heads split off, a
fused matrix cut, rows permuted) acts on B, what acts on inputs acts on A.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_llm.core.errors import CheckpointError
from t5x_llm.models.family import Family
from t5x_llm.models.patterns import terms, unnested
from t5x_llm.models.weight_map import (
    PART,
    Entry,
    Piece,
    flatten,
    piece_to_ours,
    pieces,
    pieces_to_hf,
)

RANK = "rank"  # the axis of a factor that is the adapter's own


@dataclasses.dataclass(frozen=True)
class Slot:
    """A part of a Hugging Face module that is one linear map of ours, or a slice of one.

    Attributes:
      piece: the weight map's piece of the kernel.
      path: of the linear map, without ``.kernel``.
      count: of the first axes of a layer's kernel that are inputs, after the expert's.
      transposed: the module keeps its weight as [in, out].
    """

    piece: Piece
    path: str
    count: int
    transposed: bool

    @property
    def leading(self) -> tuple[int, ...]:
        """Index of the repeat and of the expert: what one module is of a stacked array."""
        repeat = () if self.piece.index is None else (self.piece.index,)
        return repeat + tuple(number for _, number in self.piece.counters)

    @property
    def _sides(self) -> tuple[list[str], list[str], list[Any], list[Any]]:
        """Input and output terms of our pattern, and the index into each."""
        axes = terms(self.piece.axes)
        where = [w for w in self.piece.where if isinstance(w, slice)]
        n = self.count
        return axes[:n], axes[n:], where[:n], where[n:]

    def _factor(self, inputs: bool, rank: int) -> tuple[Piece, tuple[Any, ...]]:
        """The piece that a factor is, and its index into our array of one module."""
        entry, shape = self.piece.entry, self._shape
        ins, outs, in_where, out_where = self._sides
        hf = terms(entry.hf_axes)
        if inputs:
            theirs = f"{RANK} {hf[0 if self.transposed else 1]}"
            ours, sizes = " ".join([*ins, RANK]), (*shape[: self.count], rank)
            where = (*in_where, slice(None))
        else:
            theirs = f"{hf[1 if self.transposed else 0]} {RANK}"
            ours, sizes = " ".join([RANK, *outs]), (rank, *shape[self.count :])
            where = (slice(None), *out_where)
        has_part = PART in unnested(theirs).split()
        known = {a for pattern in (theirs, ours) for a in unnested(pattern).split()}
        made = Entry(
            entry.hf,
            entry.ours,
            theirs,
            ours,
            part=entry.part if has_part else None,
            span=entry.span if has_part else 1,
            sizes=tuple((k, v) for k, v in entry.sizes if k in known),
        )
        return Piece(self.piece.hf, self.piece.path, None, (), made, sizes), where

    @property
    def _shape(self) -> tuple[int, ...]:
        """Shape of the kernel of one module, without the expert's axis."""
        counted = {name for name, _ in self.piece.counters}
        named = zip(terms(self.piece.entry.our_axes), self.piece.shape, strict=True)
        return tuple(n for axis, n in named if axis not in counted)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the whole kernel of one module of ours, runs not cut."""
        counted = {name for name, _ in self.piece.counters}
        run = dict(
            [(self.piece.entry.run[0], self.piece.entry.run[2])] if self.piece.entry.run else []
        )
        named = zip(terms(self.piece.entry.our_axes), self.piece.shape, strict=True)
        return tuple(n * run.get(axis, 1) for axis, n in named if axis not in counted)

    @property
    def part_of_inputs(self) -> bool:
        """Returns whether the module is cut along its inputs."""
        return self.piece.entry.part is not None and self._factor(True, 1)[0].entry.part is not None

    def a_to_hf(self, a: np.ndarray) -> np.ndarray:
        """[*inputs, r] of one module of ours to [r, in]."""
        piece, where = self._factor(True, a.shape[-1])
        return pieces_to_hf([piece], [a[where]])

    def a_to_ours(self, a: np.ndarray, out: np.ndarray) -> None:
        """[r, in] to [*inputs, r], written into ``out``, the array of one module."""
        piece, where = self._factor(True, len(a))
        _put(out, where, piece_to_ours(piece, a), piece)

    def b_to_ours(self, b: np.ndarray, out: np.ndarray) -> None:
        """[out, r] to [r, *outputs], as ``a_to_ours``; of a fused module its rows."""
        piece, where = self._factor(False, b.shape[1])
        _put(out, where, piece_to_ours(piece, b), piece)

    def b_piece(self, b: np.ndarray) -> tuple[Piece, np.ndarray]:
        """A part for ``rows``, of [r, *outputs] of one module of ours."""
        piece, where = self._factor(False, len(b))
        return piece, b[where]


def _put(out: np.ndarray, where: tuple[Any, ...], made: np.ndarray, piece: Piece) -> None:
    if made.shape != out[where].shape:
        raise CheckpointError(
            f"{piece.hf}: a factor of shape {list(made.shape)} does not fit {piece.path}, which "
            f"asks for {list(out[where].shape)}."
        )
    out[where] = made


def rows(parts: list[tuple[Piece, np.ndarray]]) -> np.ndarray:
    """[out, r] of a module from the parts that make it up; see ``Slot.b_piece``."""
    return np.asarray(pieces_to_hf([p for p, _ in parts], [a for _, a in parts]))


@dataclasses.dataclass(frozen=True)
class LinearModule:
    """A linear layer of the Hugging Face model.

    Attributes:
      name: without ``.weight``.
      slots: our linear maps in it, in the order of the weight map.
      inputs: columns of its weight matrix, as [out, in].
      outputs: its rows.
      transposed: the file has it as [in, out], as GPT-2's Conv1D does.
    """

    name: str
    slots: tuple[Slot, ...]
    inputs: int
    outputs: int
    transposed: bool

    def paths(self) -> tuple[str, ...]:
        """Our linear maps in it, each once."""
        return tuple(dict.fromkeys(slot.path for slot in self.slots))


@dataclasses.dataclass(frozen=True)
class LinearLayers:
    """The linear layers of a model, by either name.

    Attributes:
      modules: by Hugging Face name.
      names: of every module that has a weight, and of what they lie in.
      shapes: of our parameters, by dotted path.
      tied: Hugging Face names of modules whose weight is another's too.
      model_type: of config.json.
      cached_heads: heads that transformers' cache has keys of, where it is not as many as there
        are; else None.
    """

    modules: Mapping[str, LinearModule]
    names: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    model_type: str = ""
    cached_heads: int | None = None

    def of(self, path: str) -> list[LinearModule]:
        """The modules that one linear map of ours is, or is in; none if it is not linear there."""
        return [m for m in self.modules.values() if path in m.paths()]

    def kernel(self, path: str) -> tuple[int, ...] | None:
        """Shape of the kernel of a linear map, None where there is none."""
        return self.shapes.get(f"{path}.kernel", self.shapes.get(path))


def linear_layers(family: Family) -> LinearLayers:
    """The linear layers of a family's model."""
    from t5x_llm.models.model import Model
    from t5x_llm.models.weight_map import hf_shapes

    abstract = Model(family.decoder()).abstract_params()
    entries = family.weight_map()
    grouped: dict[str, list[Piece]] = {}
    for piece in pieces(entries, abstract):
        grouped.setdefault(piece.hf, []).append(piece)
    shapes = hf_shapes(entries, abstract)
    modules: dict[str, LinearModule] = {}
    for hf, parts in grouped.items():
        slots = tuple(slot for piece in parts if (slot := _slot(piece)) is not None)
        if len(slots) < len(parts) or not hf.endswith(".weight"):
            continue
        name, transposed = hf.removesuffix(".weight"), slots[0].transposed
        first, second = shapes[hf]
        outputs, inputs = (second, first) if transposed else (first, second)
        modules[name] = LinearModule(name, slots, inputs, outputs, transposed)
    names = [hf.rpartition(".")[0] for hf in shapes]
    within = [".".join(n.split(".")[:i]) for n in names for i in range(1, n.count(".") + 2)]
    tied = {
        copy.removesuffix(".weight"): kept.removesuffix(".weight")
        for copy, kept in family.copies().items()
    }
    ours = {path: tuple(leaf.shape) for path, leaf in flatten(abstract).items()}
    names = list(dict.fromkeys([*within, *tied]))
    return LinearLayers(modules, tuple(names), ours, tied, family.hf_type, cached_heads(family))


def cached_heads(family: Family) -> int | None:
    """Returns how many heads transformers caches keys of, where it repeats them before that."""
    config = family.to_hf_config()
    # Falcon 40B and 180B: as many as there are queries.
    repeated = config.get("new_decoder_architecture", False)
    return config["num_attention_heads"] if repeated else None


def _slot(piece: Piece) -> Slot | None:
    """The linear map that a piece is of; None for norms, tables, convolutions and biases."""
    counted = {name for name, _ in piece.counters}
    path = piece.path
    if not path.endswith(".kernel") and not counted:
        return None
    hf, ours = terms(piece.entry.hf_axes), terms(piece.axes)
    if len(hf) != 2 or len(ours) < 2:
        return None
    sides = [set(unnested(term).split()) for term in hf]
    # Axes of one head or group, written 1, belong to what follows them.
    held = [set(unnested(term).split()) - {"1"} for term in ours]
    first = next((axes for axes in held if axes), set[str]())
    side = next((i for i in (0, 1) if first and first <= sides[i]), None)
    if side is None:
        return None
    count = next((i for i, axes in enumerate(held) if axes and not axes <= sides[side]), None)
    if count is None:
        return None
    while count > 1 and not held[count - 1]:
        count -= 1
    if any(axes and not axes <= sides[1 - side] for axes in held[count:]):
        return None
    return Slot(piece, path.removesuffix(".kernel"), count, transposed=side == 0)
