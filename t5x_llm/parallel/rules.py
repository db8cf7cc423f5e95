"""Logical axis names -> mesh axes. Layers speak logical names; these tables alone know the mesh.

A strategy is tables: where parameters, gradients and optimizer state live, and how activations are
laid out while computing. The difference of the first and the last is FSDP: a kernel stored in
pieces over ``fsdp`` is used whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x_llm.core.errors import ConfigError, check_choice
from t5x_llm.parallel.pipeline import Pipeline

AXES = ("replica", "data", "fsdp", "stage", "expert", "context", "tensor")
MeshAxes = str | tuple[str, ...] | None
LogicalAxes = Sequence[str | None]

_TENSOR_PARAMS: dict[str, MeshAxes] = {
    "layers": "stage",
    "layers.embed": "stage",
    "vocab": ("tensor", "stage"),
    "positions": None,
    "embed": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "head": None,
    "mlp": "tensor",
    "norm": None,
    "experts": "expert",
    "inner": "tensor",
    "state": None,
    "conv": None,
    "rank": None,
    "adapter_rank": None,
}
# What has no ``embed`` beside its rank lies in pieces along that.
_PIECES = {
    **_TENSOR_PARAMS,
    "embed": ("fsdp", "context", "expert"),
    "adapter_rank": ("fsdp", "context", "expert"),
}
_COMPUTE: dict[str, MeshAxes] = {
    "batch": ("replica", "data", "fsdp", "expert"),
    "rows": ("replica", "data", "fsdp"),
    "pieces": ("context", "replica", "data", "fsdp", "expert"),
    "length": "context",
    "stream": "context",
    "residual": None,
    "embed": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "head": None,
    "mlp": "tensor",
    "vocab": ("tensor", "stage"),
    "positions": None,
    "experts": "expert",
    "inner": "tensor",
    "state": None,
    "conv": None,
    "rank": None,
    "adapter_rank": None,
    "scan_inner": ("tensor", "context"),
    "scan_heads": ("tensor", "context"),
}
# Tables of parameters, of gradients, of optimizer state (arXiv 1910.02054, section 5).
STRATEGIES: dict[str, tuple[dict[str, MeshAxes], ...]] = {
    "data": (_TENSOR_PARAMS, _TENSOR_PARAMS, _TENSOR_PARAMS),
    "zero1": (_TENSOR_PARAMS, _TENSOR_PARAMS, _PIECES),
    "zero2": (_TENSOR_PARAMS, _PIECES, _PIECES),
    "fsdp": (_PIECES, _PIECES, _PIECES),
}
CONTEXT_ATTENTION = ("ring", "ulysses")


@dataclasses.dataclass(frozen=True)
class Rules:
    """Tables from logical axis name to mesh axis, tuple of mesh axes, or None (not sharded).

    Attributes:
      params: how parameters are stored.
      grads: how gradients are added up.
      optimizer: how optimizer state is stored.
      compute: how activations are laid out.
      context_attention: see ``MeshConfig``.
      pipeline: what goes through ``stage``, or None.
      optimizer_on_host: see ``MeshConfig``.
    """

    params: Mapping[str, MeshAxes]
    grads: Mapping[str, MeshAxes]
    optimizer: Mapping[str, MeshAxes]
    compute: Mapping[str, MeshAxes]
    context_attention: str = "ring"
    pipeline: Pipeline | None = None
    optimizer_on_host: bool = False

    def __post_init__(self) -> None:
        for table in ("params", "grads", "optimizer", "compute"):
            for name, target in getattr(self, table).items():
                for axis in mesh_axes(target):
                    check_choice(f"Rules.{table}.{name}", axis, AXES)


def strategy_rules(
    strategy: str,
    overrides: Sequence[tuple[str, Any]] = (),
    *,
    sequence_sharded: bool = False,
    context_attention: str = "ring",
) -> Rules:
    """The tables of a named strategy, with single rules replaced.

    Args:
      strategy: one of ``STRATEGIES``.
      overrides: pairs such as ``('params.vocab', None)``, which holds for gradients and optimizer
        state too, or ``('compute.length', 'tensor')``.
      sequence_sharded: see ``MeshConfig``.
      context_attention: likewise.

    Raises:
      ConfigError: for an unknown strategy, table or mesh axis, or a pair of another form.
    """
    check_choice("MeshConfig.strategy", strategy, STRATEGIES)
    check_choice("MeshConfig.context_attention", context_attention, CONTEXT_ATTENTION)
    params, grads, optimizer = (dict(table) for table in STRATEGIES[strategy])
    compute = dict(_COMPUTE)
    if sequence_sharded:
        compute["stream"] = ("context", "tensor")
        compute["residual"] = "tensor"  # where it does not divide the sequence
    tables = {"params": (params, grads, optimizer), "compute": (compute,)}
    for rule in overrides:
        pair = isinstance(rule, (tuple, list)) and len(rule) == 2 and isinstance(rule[0], str)
        if not pair or rule[0].count(".") != 1 or rule[0].split(".")[0] not in tables:
            raise ConfigError(
                "MeshConfig.overrides",
                rule,
                "pairs ('params.NAME' or 'compute.NAME', mesh axis or tuple of them or None)",
                "Example: MeshConfig.overrides = (('params.vocab', None),)",
            )
        table, name = rule[0].split(".")
        target = tuple(rule[1]) if isinstance(rule[1], list) else rule[1]
        if target is not None:
            for axis in mesh_axes(target):
                check_choice(f"MeshConfig.overrides[{rule[0]}]", axis, AXES)
        for each in tables[table]:
            each[name] = target
    return Rules(params, grads, optimizer, compute, context_attention)


def mesh_axes(target: MeshAxes) -> tuple[str, ...]:
    """A rule's target, or an entry of a PartitionSpec, as a tuple."""
    if target is None:
        return ()
    return (target,) if isinstance(target, str) else tuple(target)


def resolve(
    table: Mapping[str, MeshAxes],
    logical_axes: LogicalAxes,
    mesh: Mesh,
    shape: Sequence[int] | None = None,
) -> PartitionSpec:
    """The PartitionSpec of an array, one entry a dimension.

    A mesh axis is used by the first dimension that asks for it. An axis of size one is left out.
    With ``shape``, an axis that does not divide its dimension is left out too (kv_heads under MQA).
    In a stack of layers, what the table has for ``layers.NAME`` is added to what it has for NAME.

    Args:
      table: one of the tables of ``Rules``.
      logical_axes: a logical name, or None, for every dimension.
      mesh: the mesh.
      shape: the array's shape.

    Raises:
      ValueError: for a logical name the table does not have, or a wrong number of names.
    """
    if shape is not None and len(shape) != len(logical_axes):
        raise ValueError(f"axes {tuple(logical_axes)} do not name the dimensions of {tuple(shape)}")
    used: set[str] = set()
    entries: list[MeshAxes] = []
    for i, name in enumerate(logical_axes):
        if name is not None and name not in table:
            near = difflib.get_close_matches(name, list(table), 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(table)}"
            raise ValueError(f"no sharding rule for the logical axis {name!r}{hint}")
        kept: list[str] = []
        size = 1
        targets = mesh_axes(table[name]) if name is not None else ()
        if "layers" in logical_axes:
            targets += mesh_axes(table.get(f"layers.{name}"))
        for axis in targets:
            ways = mesh.shape.get(axis, 1)
            divides = shape is None or shape[i] % (size * ways) == 0
            if ways > 1 and axis not in used and divides:
                kept.append(axis)
                used.add(axis)
                size *= ways
        entries.append(None if not kept else kept[0] if len(kept) == 1 else tuple(kept))
    return PartitionSpec(*entries)


@dataclasses.dataclass(frozen=True)
class RulesScope:
    """The mesh and rules that ``constrain`` and ``platform`` see.

    Attributes:
      mesh: the devices.
      rules: how logical axes lie on them.
      local: what is traced is for each device by itself: layouts are settled.
    """

    mesh: Mesh
    rules: Rules
    local: bool = False


_CONTEXT: ContextVar[RulesScope | None] = ContextVar("t5x_llm_mesh", default=None)


@contextlib.contextmanager
def use(mesh: Mesh, rules: Rules) -> Iterator[RulesScope]:
    """Makes ``mesh`` and ``rules`` current.

    The scope is read while a function is traced and JAX caches traces without it, so enter it
    inside the function given to ``jax.jit`` (or build one jitted function for each mesh). A new
    thread starts without it.
    """
    scope = RulesScope(mesh, rules)
    token = _CONTEXT.set(scope)
    try:
        yield scope
    finally:
        _CONTEXT.reset(token)


@contextlib.contextmanager
def per_device() -> Iterator[None]:
    """Inside a function given to ``jax.shard_map``: what is called there lays nothing out."""
    scope = _CONTEXT.get()
    token = _CONTEXT.set(scope and dataclasses.replace(scope, local=True))
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def current() -> RulesScope | None:
    """The innermost ``use`` of this thread, or None."""
    return _CONTEXT.get()


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``: of the current mesh's devices, else JAX's default.

    A mesh of an ahead-of-time TPU topology says ``tpu`` on a host that has none.
    """
    scope = current()
    name = jax.default_backend() if scope is None else scope.mesh.devices.flat[0].platform
    return "gpu" if name in ("cuda", "rocm") else name


def compute_spec(
    logical_axes: LogicalAxes, shape: Sequence[int], table: str = "compute"
) -> PartitionSpec | None:
    """The layout of an activation on the current mesh; None outside ``use`` or on one device.

    None too within ``per_device``. With another ``table``, that of a parameter.
    """
    scope = current()
    if scope is None or scope.mesh.size == 1 or scope.local:
        return None
    return resolve(getattr(scope.rules, table), logical_axes, scope.mesh, shape)


def constrain(x: jax.Array, logical_axes: LogicalAxes, table: str = "compute") -> jax.Array:
    """Lays out activation ``x`` as the current rules say; the identity outside ``use``.

    Args:
      x: any array.
      logical_axes: a name of the table, or None, for every dimension of ``x``.
      table: ``compute``, or ``params`` for the layout in which a parameter is stored, or ``grads``
        for that in which its gradient is added up.

    Raises:
      ValueError: for an unknown name or a wrong number of names.
    """
    spec = compute_spec(logical_axes, x.shape, table)
    scope = current()
    if spec is None or scope is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(scope.mesh, spec))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def constrain_parameter(x: jax.Array, logical_axes: LogicalAxes) -> jax.Array:
    """``constrain`` of a parameter for use, whose gradient lies as gradients are added up.

    The gradient of ``constrain`` itself is laid out as the parameter in use, whole on every device
    under FSDP, and cut only then.

    Args:
      x: a parameter.
      logical_axes: a tuple with a name of the table, or None, for every dimension of ``x``.
    """
    return constrain(x, logical_axes)


def _parameter_fwd(x: jax.Array, logical_axes: LogicalAxes) -> tuple[jax.Array, None]:
    return constrain(x, logical_axes), None


def _parameter_bwd(logical_axes: LogicalAxes, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (constrain(gradient, logical_axes, "grads"),)


constrain_parameter.defvjp(_parameter_fwd, _parameter_bwd)


def pieces(logical_axis: str, size: int) -> int:
    """Counts the pieces that the current mesh cuts a dimension of an activation into."""
    scope, spec = current(), compute_spec((logical_axis,), (size,))
    if scope is None or spec is None:
        return 1
    return math.prod(scope.mesh.shape[axis] for axis in mesh_axes(spec[0]))


def ways(mesh: Mesh, rules: Rules, logical_axis: str) -> int:
    """Counts the pieces that the compute table cuts a logical axis into."""
    return math.prod(mesh.shape.get(a, 1) for a in mesh_axes(rules.compute[logical_axis]))


def padded_size(logical_axis: str, size: int) -> int:
    """``size``, or the next one that the current mesh cuts evenly."""
    scope = current()
    if scope is None or scope.local:
        return size
    count = ways(scope.mesh, scope.rules, logical_axis)
    return -(-size // count) * count


def check_divisible(mesh: Mesh, rules: Rules, logical_axis: str, field: str, size: int) -> None:
    """Raises ConfigError unless the mesh divides a dimension.

    Args:
      mesh: the mesh.
      rules: the rules.
      logical_axis: name in the compute table, e.g. ``batch`` or ``heads``.
      field: what the user wrote, e.g. ``Loop.batch_size``.
      size: its value.
    """
    pieces = ways(mesh, rules, logical_axis)
    if size > 0 and size % pieces == 0:
        return
    axes = [a for a in mesh_axes(rules.compute[logical_axis]) if mesh.shape.get(a, 1) > 1]
    arithmetic = " x ".join(f"{a}={mesh.shape[a]}" for a in axes)
    lower = max(size, 0) // pieces * pieces
    near = f"{lower} or {lower + pieces}" if lower else f"{pieces}"
    raise ConfigError(
        field,
        size,
        f"a positive multiple of {pieces}, as the mesh cuts '{logical_axis}' by {arithmetic or 1}",
        f"Set {field} to {near}, or make these MeshConfig axes smaller.",
    )
