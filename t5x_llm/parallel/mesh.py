"""The device mesh, and the shardings of parameters and batches on it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.parallel.pipeline import Pipeline, check_pipelined
from t5x_llm.parallel.rules import AXES, Rules, resolve, strategy_rules


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes, and what is laid along them.

    One axis may be -1: all devices that remain.

    Attributes:
      replica: copies connected by the data-centre network; with several TPU slices, a multiple of
        their number.
      data: data parallelism within a slice, parameters whole.
      fsdp: data parallelism with what ``strategy`` says stored in pieces.
      stage: pipeline stages.
      expert: data parallelism with experts apart, to which tokens travel.
      context: sequence parallelism.
      tensor: tensor parallelism.
      strategy: what lies in pieces over ``fsdp``, ``context`` and ``expert``: nothing (``data``),
        the optimizer's state (``zero1``), gradients too (``zero2``), parameters too (``fsdp``).
      sequence_sharded: between layers, activations lie in pieces along the sequence over
        ``tensor`` too (arXiv 2205.05198, section 4.2.2); along the features where ``tensor`` does
        not divide the sequence.
      context_attention: over ``context``, keys and values go round (``ring``, arXiv 2310.01889),
        or heads are exchanged for the sequence (``ulysses``, arXiv 2309.14509).
      pipeline: what goes through ``stage``, such as ``@Pipeline()``, or None without stages.
      optimizer_on_host: the optimizer's state waits in the host's pinned memory between updates
        (arXiv 2101.06840). On CPU devices that is the same memory, and nothing changes.
      overrides: single rules replaced, e.g. ``(('params.vocab', None),)``.
      replication_tolerance: parameters that the mesh does not divide, and that devices therefore
        hold whole, are named at the start when they take more than this share of a device's
        parameter bytes; see ``audit.py``.
    """

    replica: int = 1
    data: int = 1
    fsdp: int = -1
    stage: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1
    strategy: str = "fsdp"
    sequence_sharded: bool = False
    context_attention: str = "ring"
    pipeline: Pipeline | None = None
    optimizer_on_host: bool = False
    overrides: tuple[tuple[str, Any], ...] = ()
    replication_tolerance: float = 0.02

    def __post_init__(self) -> None:
        check_number("MeshConfig.replication_tolerance", self.replication_tolerance, low=0)
        for axis in AXES:
            size = getattr(self, axis)
            check_number(f"MeshConfig.{axis}", size, low=-1, integer=True)
            if size == 0:
                raise ConfigError(f"MeshConfig.{axis}", 0, "a positive integer, or -1 for the rest")
        rest = [axis for axis in AXES if getattr(self, axis) == -1]
        if len(rest) > 1:
            raise ConfigError(
                f"MeshConfig.{rest[1]}", -1, f"at most one axis of -1 ({rest[0]} is -1 already)"
            )
        if self.stage > 1:
            check_pipelined(self.stage, self.pipeline).schedule(self.stage)
        self.rules()

    def rules(self) -> Rules:
        """The rule tables of this mesh."""
        rules = strategy_rules(
            self.strategy,
            self.overrides,
            sequence_sharded=self.sequence_sharded,
            context_attention=self.context_attention,
        )
        return dataclasses.replace(
            rules, pipeline=self.pipeline, optimizer_on_host=self.optimizer_on_host
        )

    def shape(self, device_count: int) -> dict[str, int]:
        """Axis sizes for so many devices.

        Raises:
          ConfigError: if the product cannot be the number of devices.
        """
        sizes = {axis: getattr(self, axis) for axis in AXES}
        known = math.prod(size for size in sizes.values() if size != -1)
        rest = [axis for axis, size in sizes.items() if size == -1]
        written = " x ".join(f"{a}={s}" for a, s in sizes.items() if s not in (1, -1)) or "1"
        if rest and device_count % known == 0:
            sizes[rest[0]] = device_count // known
        elif rest or known != device_count:
            field = next((a for a, s in sizes.items() if s > 1), rest[0] if rest else "fsdp")
            raise ConfigError(
                f"MeshConfig.{field}",
                sizes[field],
                f"axes whose product {'divides' if rest else 'is'} the number of devices: "
                f"{written} = {known}, but there {'is' if device_count == 1 else 'are'} "
                f"{device_count} {'device' if device_count == 1 else 'devices'}",
                "Set one axis to -1 to give it the devices that remain, or choose sizes whose "
                f"product is {device_count}.",
            )
        return sizes


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges devices so that the rightmost axes have the fastest links.

    Args:
      config: axis sizes.
      devices: all of ``jax.devices()`` if None; may be those of a described topology.

    Raises:
      ConfigError: if the sizes do not fit the devices or the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = config.shape(len(devices))
    slices = {getattr(d, "slice_index", None) for d in devices}
    hybrid = None not in slices and len(slices) > 1
    if hybrid and sizes["replica"] % len(slices):
        if devices[0].platform == "tpu":
            raise ConfigError(
                "MeshConfig.replica",
                sizes["replica"],
                f"a multiple of the {len(slices)} TPU slices, which only the data-centre "
                "network connects",
                f"Set MeshConfig.replica = {len(slices)}.",
            )
        hybrid = False
    shape = tuple(sizes.values())

    def arrange(split: bool) -> np.ndarray:
        if not hybrid:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=split)
        dcn = (len(slices),) + (1,) * (len(AXES) - 1)
        ici = (shape[0] // len(slices),) + shape[1:]
        return mesh_utils.create_hybrid_device_mesh(
            ici, dcn, devices, allow_split_physical_axes=split
        )

    try:
        array = arrange(split=False)
    except NotImplementedError:  # e.g. tensor=4 on a 16 x 16 torus: part of a physical axis
        array = arrange(split=True)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
    """Returns the mesh over ``devices`` devices that need not exist: the sizes of its axes alone.

    Raises:
      ConfigError: the product of its axes is another number.
    """
    sizes = config.shape(devices)
    kind = (AxisType.Auto,) * len(sizes)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=kind)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(
    logical_axes: Any, shapes: Any, mesh: Mesh, rules: Rules, table: str = "params"
) -> Any:
    """A tree of NamedSharding for parameters, or for what has their shapes.

    A dimension that its mesh axis does not divide is not sharded (``dump_shardings`` shows it).

    Args:
      logical_axes: tree like ``shapes`` whose leaves are tuples of logical names.
      shapes: tree of arrays or ``jax.ShapeDtypeStruct``.
      mesh: the mesh.
      rules: the rules.
      table: ``params``, ``grads`` or ``optimizer``.
    """
    return jax.tree.map(
        lambda x, axes: NamedSharding(mesh, resolve(getattr(rules, table), axes, mesh, x.shape)),
        shapes,
        logical_axes,
    )


def batch_sharding(mesh: Mesh, rules: Rules, ndim: int) -> NamedSharding:
    """The sharding of an array of a batch: rows, then positions, then nothing.

    Check the sizes with ``check_divisible`` first: here nothing falls back.
    """
    return axes_sharding(mesh, rules, (("batch", "length") + (None,) * ndim)[:ndim])


def axes_sharding(mesh: Mesh, rules: Rules, axes: Sequence[str | None]) -> NamedSharding:
    """The sharding of an activation with these logical axis names; nothing falls back."""
    return NamedSharding(mesh, resolve(rules.compute, axes, mesh))


def local_rows(
    batch_size: int, mesh: Mesh, rules: Rules, process_index: int | None = None
) -> tuple[slice, ...]:
    """The rows of a global batch that a process must load, as ascending runs (mostly one).

    Args:
      batch_size: rows of the global batch; the mesh must divide it.
      mesh: the mesh.
      rules: the rules.
      process_index: this process if None.
    """
    if process_index is None:
        process_index = jax.process_index()
    indices: dict[Any, Any] = dict(
        batch_sharding(mesh, rules, 1).devices_indices_map((batch_size,))
    )
    runs = sorted(
        {
            index[0].indices(batch_size)[:2]
            for device, index in indices.items()
            if device.process_index == process_index
        }
    )
    merged: list[tuple[int, int]] = []
    for start, stop in runs:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(slice(start, stop) for start, stop in merged)


def global_batch(
    load: Callable[[slice], Any],
    batch_size: int,
    mesh: Mesh,
    rules: Rules,
    shardings: Any = None,
) -> Any:
    """A global batch on the mesh, of which each process loads only its own rows.

    Args:
      load: gives the rows of a slice of the global batch as a pytree of NumPy arrays [rows, ...];
        called once for each run of ``local_rows``.
      batch_size: rows of the global batch.
      mesh: the mesh.
      rules: the rules.
      shardings: the same pytree of shardings; by default those of ``batch_sharding``.

    Returns:
      The same pytree of ``jax.Array`` [batch_size, ...].
    """
    runs = local_rows(batch_size, mesh, rules)
    loaded = [load(run) for run in runs]
    starts = np.cumsum([0] + [run.stop - run.start for run in runs])

    def place(sharding: NamedSharding, *pieces: Any) -> jax.Array:
        arrays = [np.asarray(piece) for piece in pieces]
        shape = (batch_size,) + arrays[0].shape[1:]
        if sum(len(a) for a in arrays) != starts[-1]:
            raise ValueError(f"load gave {[len(a) for a in arrays]} rows for {runs}")

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            for run, array in zip(runs, arrays, strict=True):
                if run.start <= start and stop <= run.stop:
                    return array[(slice(start - run.start, stop - run.start), *index[1:])]
            raise ValueError(f"rows {start}:{stop} are not among this process's rows {runs}")

        return jax.make_array_from_callback(shape, sharding, part)

    if shardings is None:
        shardings = jax.tree.map(lambda x: batch_sharding(mesh, rules, np.ndim(x)), loaded[0])
    return jax.tree.map(place, shardings, *loaded)


def dump_shardings(logical_axes: Any, shapes: Any, mesh: Mesh, rules: Rules) -> str:
    """A stable table of how parameters are stored, for dry runs and tests.

    One line a parameter in path order: path, dtype and shape, logical axes, spec, bytes a device,
    and the rules that did not divide; then a line of totals. Arguments as in ``param_shardings``.
    """
    shardings = param_shardings(logical_axes, shapes, mesh, rules)
    rows = [("parameter", "shape", "axes", "spec", "bytes/device", "not divided")]
    whole = held = 0
    treedef: Any
    flat, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    parts = zip(
        flat, treedef.flatten_up_to(logical_axes), treedef.flatten_up_to(shardings), strict=True
    )
    for (path, x), axes, sharding in sorted(parts, key=lambda part: dotted(part[0][0])):
        size = math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
        whole += math.prod(x.shape) * x.dtype.itemsize
        held += size
        asked = resolve(rules.params, axes, mesh)
        lost = [
            f"{n}={d}"
            for n, d, a, s in zip(axes, x.shape, asked, sharding.spec, strict=True)
            if a != s
        ]
        shape = f"{x.dtype.name}[{','.join(map(str, x.shape))}]"
        rows.append(
            (dotted(path), shape, _names(axes), _names(sharding.spec), f"{size:,}", " ".join(lost))
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    shape = " x ".join(f"{a}={s}" for a, s in mesh.shape.items() if s > 1) or "one device"
    lines.append(f"total {whole:,} bytes, {held:,} on each of {mesh.size} (mesh {shape})")
    return "\n".join(lines) + "\n"


def dotted(path: tuple[Any, ...]) -> str:
    """A path of ``jax.tree_util`` as users read it: ``group_0.mlp.kernel``."""
    return ".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)


def _names(entries: Sequence[Any]) -> str:
    return "(" + ", ".join("+".join(e) if isinstance(e, tuple) else e or "-" for e in entries) + ")"
