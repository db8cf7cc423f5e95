"""Weight maps as data: one Entry ties a Hugging Face tensor to a parameter of ours, both ways.

Our parameters are stacked. A parameter under ``group_i.block_j`` carries a leading axis of the
group's repeats, so model layer number ``first layer of group i + repeat * blocks + j`` lies at
index ``repeat`` of it. That arithmetic is read off the parameter tree itself; families only write
entries. Layouts are einops patterns (https://einops.rocks).
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import einops
import jax
import numpy as np

from t5x_llm.core.errors import CheckpointError
from t5x_llm.models.patterns import terms, unnested, used

PART = "P"  # the pattern axis along which a fused HF tensor is cut
_HOLE = re.compile(r"\{(\w+)\}")
_BLOCK = re.compile(r"(\w+\.)?group_(\d+)\.block_(\d+)\.")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One HF tensor (or one part of it), for every layer, and the parameter it becomes.

    Attributes:
      hf: tensor name. ``{layer}`` stands for the layer number; any other hole, such as
        ``{expert}``, counts up and is an axis of that name in ``our_axes``.
      ours: dotted path. ``{group}`` and ``{block}`` may stand for every block that has the
        parameter; a plain ``group_0.block_0`` names one.
      hf_axes: einops pattern of the HF tensor, e.g. ``(N H) D``.
      our_axes: einops pattern of one layer of our parameter, e.g. ``D N H``.
      part: (first, count) for a fused tensor: this entry is the slice that starts at ``first`` of
        the axis ``P`` in ``hf_axes``, which has ``count`` entries in all.
      span: length of that slice. With 1 the axis is dropped, unless ``our_axes`` names it.
      sizes: lengths of axes that the parameter's shape does not tell, e.g. (('two', 2),).
      run: (axis, number, count): this entry fills run ``number`` of the ``count`` equal ones into
        which ``axis`` of our parameter is cut; () for all of it.
    """

    hf: str
    ours: str
    hf_axes: str
    our_axes: str
    part: tuple[int, int] | None = None
    span: int = 1
    sizes: tuple[tuple[str, int], ...] = ()
    run: tuple[str, int, int] | tuple[()] = ()


@dataclasses.dataclass(frozen=True)
class Piece:
    """An entry with its holes filled: one HF tensor (part) and one slice of one parameter.

    Attributes:
      hf: full tensor name.
      path: dotted path of the parameter.
      index: index of the repeat axis, or None for a parameter outside the groups.
      counters: values of the other holes, by axis name.
      entry: where it comes from.
      shape: shape of one layer of the parameter, of the run that the entry fills.
    """

    hf: str
    path: str
    index: int | None
    counters: tuple[tuple[str, int], ...]
    entry: Entry
    shape: tuple[int, ...]

    @property
    def axes(self) -> str:
        """``our_axes`` without the counted axes: the pattern of this piece."""
        skip = {name for name, _ in self.counters}
        return " ".join(a for a in self.entry.our_axes.split() if a not in skip)

    @property
    def where(self) -> tuple[Any, ...]:
        """Index into the (stacked) parameter."""
        counters = dict(self.counters)
        named = zip(terms(self.entry.our_axes), self.shape, strict=True)
        inner = tuple(counters.get(axis, self._part(axis, size)) for axis, size in named)
        return inner if self.index is None else (self.index, *inner)

    def _part(self, axis: str, size: int) -> slice:
        name, number, _ = self.entry.run or ("", 0, 0)
        return slice(number * size, (number + 1) * size) if axis == name else slice(None)

    @property
    def sizes(self) -> dict[str, int]:
        """Lengths of every axis that ``our_axes`` names on its own, and of the part axis."""
        named = dict(zip(terms(self.entry.our_axes), self.shape, strict=True))
        sizes = {k: v for k, v in named.items() if k.isidentifier()}
        for name, _ in self.counters:
            sizes.pop(name)
        sizes |= dict(self.entry.sizes)
        if self.entry.part is not None:
            sizes[PART] = self.entry.span
        return sizes


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict to {dotted path: leaf}."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of ``flatten``."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return tree


def pieces(
    entries: list[Entry], abstract: Mapping[str, Any], limit: int | None = None
) -> list[Piece]:
    """Every (HF tensor, parameter slice) pair of a model, checked to cover each parameter once.

    Args:
      entries: the family's weight map.
      abstract: parameter tree; leaves have ``shape``.
      limit: more pairs than that are refused: sizes that come from a file may be absurd.

    Raises:
      CheckpointError: naming parameters that no entry fills, or not wholly, or more than one.
    """
    flat = flatten(abstract)
    layers = _layers(flat)
    found: list[Piece] = []
    planned = 0
    covered: dict[str, list[tuple[Any, ...]]] = {}
    filled: collections.Counter[str] = collections.Counter()
    for entry in entries:
        for path in _paths(entry.ours, layers):
            if path not in flat:
                continue
            shape = tuple(flat[path].shape)
            numbers: Sequence[int | None] = [None]
            if match := _BLOCK.match(path):
                numbers = layers[_stack(match)]
                shape = shape[1:]
            axes = terms(entry.our_axes)
            if len(axes) != len(shape):
                raise CheckpointError(
                    f"weight map: {entry.hf} says {path} has axes {entry.our_axes!r}, "
                    f"but its shape is {shape}."
                )
            if entry.run:
                name, _, count = entry.run
                pairs = zip(axes, shape, strict=True)
                shape = tuple(n // count if axis == name else n for axis, n in pairs)
            holes = [h for h in dict.fromkeys(_HOLE.findall(entry.hf)) if h != "layer"]
            ranges = [range(shape[axes.index(h)]) for h in holes]
            size = math.prod(n for a, n in zip(axes, shape, strict=True) if a not in holes)
            planned += len(numbers) * math.prod(map(len, ranges))
            if limit is not None and planned > limit:
                raise CheckpointError(
                    f"The config asks for far more tensors than there are: {entry.hf} makes "
                    f"{path} of shape {tuple(flat[path].shape)}."
                )
            for (index, number), values in itertools.product(
                enumerate(numbers), itertools.product(*ranges)
            ):
                counters = tuple(zip(holes, values, strict=True))
                name = entry.hf.format(layer=number, **dict(counters))
                piece = Piece(name, path, None if number is None else index, counters, entry, shape)
                covered.setdefault(path, []).append(_key(piece.where))
                filled[path] += size
                found.append(piece)
    missing = sorted(path for path in flat if filled[path] < math.prod(flat[path].shape))
    twice = sorted(path for path, keys in covered.items() if len(keys) != len(set(keys)))
    if missing or twice:
        raise CheckpointError(
            f"weight map: parameters without an entry {missing}, with more than one {twice}."
        )
    return found


def hf_shapes(
    entries: list[Entry], abstract: Mapping[str, Any], limit: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Shape of every HF tensor, in the order of its entries, without any array; see ``pieces``."""
    known: dict[Any, tuple[int, ...]] = {}
    shapes = {}
    for name, parts in _by_name(entries, abstract, limit).items():
        kind = tuple((piece.entry, piece.shape) for piece in parts)
        if kind not in known:
            slices = []
            for piece in parts:
                counted = {axis for axis, _ in piece.counters}
                axes = zip(terms(piece.entry.our_axes), piece.shape, strict=True)
                shape = tuple(n for axis, n in axes if axis not in counted)
                slices.append(jax.ShapeDtypeStruct(shape, np.float32))
            made = jax.eval_shape(lambda arrays, parts=parts: pieces_to_hf(parts, arrays), slices)
            known[kind] = made.shape
        shapes[name] = known[kind]
    return shapes


class Assembly:
    """Parameters of ours made from HF tensors on demand, so that a slice exists at a time.

    Args:
      entries: the family's weight map.
      abstract: parameter tree; leaves have ``shape`` and ``dtype``.
      read: HF name to array; called once per (tensor, slice) pair.
    """

    def __init__(
        self,
        entries: list[Entry],
        abstract: Mapping[str, Any],
        read: Callable[[str], np.ndarray],
    ):
        self.leaves = flatten(abstract)
        self._read = read
        self._pieces: dict[str, list[Piece]] = {}
        for piece in pieces(entries, abstract):
            self._pieces.setdefault(piece.path, []).append(piece)

    def make(self, path: str, repeat: int | None = None) -> np.ndarray:
        """A parameter, or one repeat of a stacked one, without its leading axis.

        Raises:
          CheckpointError: naming a tensor whose shape does not fit.
        """
        leaf, skip = self.leaves[path], int(repeat is not None)
        out = np.empty(leaf.shape[skip:], leaf.dtype)
        for piece in self._pieces[path]:
            if repeat is not None and piece.index != repeat:
                continue
            where = piece.where[skip:]
            array = piece_to_ours(piece, self._read(piece.hf))
            if array.shape != out[where].shape:  # assignment would broadcast
                raise _misfit(piece, array.shape, ValueError("wrong shape"))
            out[where] = array
        return out


def from_hf(
    entries: list[Entry],
    abstract: Mapping[str, Any],
    read: Callable[[str], np.ndarray],
    place: Callable[[str, np.ndarray], Any] = lambda path, array: array,
) -> dict[str, Any]:
    """Parameters of ours from HF tensors, one parameter at a time.

    Args:
      entries: the family's weight map.
      abstract: parameter tree; leaves have ``shape`` and ``dtype``.
      read: HF name to array; called once per (tensor, parameter) pair.
      place: called with each finished parameter (its dotted path, array); its result is kept. Put
        the array on devices here to keep host memory at one parameter.

    Raises:
      CheckpointError: naming a tensor whose shape does not fit.
    """
    assembly = Assembly(entries, abstract, read)
    return unflatten({path: place(path, assembly.make(path)) for path in assembly.leaves})


def to_hf(
    entries: list[Entry], params: Mapping[str, Any]
) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """(HF name, thunk that makes the array) for every tensor, so that one exists at a time.

    Args:
      entries: the family's weight map.
      params: parameter tree of NumPy or JAX arrays, or of anything with a ``shape`` whose slices
        become arrays, such as TensorStore's.
    """
    flat = flatten(params)
    for name, parts in _by_name(entries, params).items():

        def make(parts: list[Piece] = parts) -> np.ndarray:
            return pieces_to_hf(parts, [np.asarray(flat[p.path][p.where]) for p in parts])

        yield name, make


def _by_name(
    entries: list[Entry], params: Mapping[str, Any], limit: int | None = None
) -> dict[str, list[Piece]]:
    """The pieces that make up each HF tensor."""
    by_name: dict[str, list[Piece]] = {}
    for piece in pieces(entries, params, limit):
        by_name.setdefault(piece.hf, []).append(piece)
    return by_name


def _key(where: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(w if isinstance(w, int) else (w.start, w.stop) for w in where)


def _stack(match: re.Match[str]) -> tuple[str, int, int]:
    """(what precedes the group in the path, group, block)."""
    return match[1] or "", int(match[2]), int(match[3])


def _layers(flat: Mapping[str, Any]) -> dict[tuple[str, int, int], range]:
    """Maps what ``_stack`` gives to the layer numbers stacked there, in order of repeats."""
    repeats: dict[tuple[str, int, int], int] = {}
    for path, leaf in flat.items():
        if match := _BLOCK.match(path):
            repeats[_stack(match)] = leaf.shape[0]
    layers: dict[tuple[str, int, int], range] = {}
    first: dict[str, int] = {}
    for (where, _), members in itertools.groupby(sorted(repeats), key=lambda key: key[:2]):
        blocks, start = list(members), first.get(where, 0)
        count = repeats[blocks[0]] * len(blocks)
        for i, key in enumerate(blocks):
            layers[key] = range(start + i, start + count, len(blocks))
        first[where] = start + count
    return layers


def stacked(path: str) -> bool:
    """Returns whether a parameter carries a leading axis of its group's repeats."""
    return _BLOCK.match(path) is not None


def _paths(ours: str, layers: Mapping[tuple[str, int, int], range]) -> list[str]:
    if "{group}" not in ours and "{block}" not in ours:
        return [ours]
    filled = (ours.format(group=group, block=block) for _, group, block in layers)
    return list(dict.fromkeys(filled))


def _misfit(piece: Piece, shape: tuple[int, ...], reason: Exception) -> CheckpointError:
    return CheckpointError(
        f"Tensor {piece.hf} of shape {list(shape)} does not fit {piece.path} of shape "
        f"{list(piece.shape)} ({piece.entry.hf_axes} -> {piece.entry.our_axes}): {reason}"
    )


def piece_to_ours(piece: Piece, array: np.ndarray) -> np.ndarray:
    """Returns the slice of our parameter that a piece makes of its HF tensor."""
    entry, sizes, axes = piece.entry, piece.sizes, piece.axes
    atoms = unnested(entry.hf_axes)
    try:
        if entry.part is not None:
            first, count = entry.part
            whole = used(sizes | {PART: count}, atoms)
            array = einops.rearrange(array, f"{entry.hf_axes} -> {atoms}", **whole)
            run = [slice(None)] * array.ndim
            run[atoms.split().index(PART)] = slice(first, first + entry.span)
            array = array[tuple(run)]
            if PART not in unnested(axes).split():
                array = array.squeeze(atoms.split().index(PART))
                atoms = " ".join(a for a in atoms.split() if a != PART)
                sizes.pop(PART)
            return einops.rearrange(array, f"{atoms} -> {axes}", **used(sizes, atoms))
        return einops.rearrange(array, f"{entry.hf_axes} -> {axes}", **used(sizes, atoms))
    except (einops.EinopsError, ValueError) as e:
        raise _misfit(piece, array.shape, e) from e


def pieces_to_hf(parts: list[Piece], arrays: list[Any]) -> Any:
    """Returns the HF tensor that parts make up, each with its slice of our parameter."""
    entry = parts[0].entry
    xp = arrays[0].__array_namespace__()  # NumPy, or JAX where only shapes are asked for
    if entry.part is None:
        sizes = used(parts[0].sizes, unnested(parts[0].axes))
        return einops.rearrange(arrays[0], f"{parts[0].axes} -> {entry.hf_axes}", **sizes)
    order = sorted(zip(parts, arrays, strict=True), key=lambda pair: pair[0].entry.part or (0, 0))
    axis = (atoms := unnested(entry.hf_axes)).split().index(PART)
    rest = " ".join(a for a in atoms.split() if a != PART)
    runs, reached = [], 0
    for piece, array in order:
        first, count = piece.entry.part or (0, 0)
        if first != reached:
            break
        reached += piece.entry.span
        keeps = PART in unnested(piece.axes).split()
        sizes = used(piece.sizes, unnested(piece.axes))
        run = einops.rearrange(array, f"{piece.axes} -> {atoms if keeps else rest}", **sizes)
        runs.append(run if keeps else xp.expand_dims(run, axis=axis))
    if reached != count:
        raise CheckpointError(f"weight map: the parts of {parts[0].hf} do not make up the whole.")
    return einops.rearrange(xp.concat(runs, axis=axis), f"{atoms} -> {entry.hf_axes}")
