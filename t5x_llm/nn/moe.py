"""Mixture-of-experts feed-forward layers (arXiv 2101.03961, 2401.04088, 2405.04434)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.nn.cache import CachedLayer
from t5x_llm.nn.dense import Dense
from t5x_llm.nn.dispatch import collect, place, spread
from t5x_llm.nn.fewbit.stored import Stored
from t5x_llm.nn.kernels import block_size, exchange, grouped_product, keep
from t5x_llm.nn.layer import Aux, Cache, Context
from t5x_llm.nn.mlp import ACTIVATIONS, Mlp, MlpConfig
from t5x_llm.nn.param import InitConfig, normal
from t5x_llm.nn.router import Router, RouterConfig
from t5x_llm.parallel import compute_spec, constrain, current, mesh_axes

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int32

    from t5x_llm.nn.adapters.linear import LinearAdapter

    Kernels = dict[str, Float[Array, "E _ _"]]

_TOKENS = ("batch", "length", "embed")
_UP = ("experts", "embed", "mlp")
_DOWN = ("experts", "mlp", "embed")


@dataclasses.dataclass(frozen=True)
class MoeConfig:
    """A feed-forward layer of which every token uses the experts that its router chooses.

    Attributes:
      router: how they are chosen.
      d_ff: F, the inner width of an expert.
      activation: one of nn.mlp.ACTIVATIONS.
      gated: multiply the activation by a second projection (SwiGLU, GeGLU).
      shared: a feed-forward layer for all tokens, added to what the experts give, or None.
      shared_gate: it is multiplied by the sigmoid of a projection of the token (Qwen2-MoE).
      dispatch: 'dropless' lets an expert take all that choose it. 'capacity' gives it, for each
        row of the batch, ceil(capacity_factor * T * top_k / E) places in the order of tokens, and
        choices beyond them add nothing (GShard, arXiv 2006.16668). What a token gets then depends
        on the tokens before it, those of other segments of its row included.
      capacity_factor: see there; None for 'dropless'.
    """

    router: RouterConfig
    d_ff: int
    activation: str
    gated: bool
    shared: MlpConfig | None
    shared_gate: bool
    dispatch: str
    capacity_factor: float | None

    part: ClassVar[str] = "mlp"

    def __post_init__(self) -> None:
        check_number("MoeConfig.d_ff", self.d_ff, low=1, integer=True)
        check_choice("MoeConfig.activation", self.activation, ACTIVATIONS)
        check_choice("MoeConfig.dispatch", self.dispatch, ("dropless", "capacity"))
        if self.shared_gate and self.shared is None:
            raise ConfigError("MoeConfig.shared_gate", True, "False where MoeConfig.shared is None")
        if self.dispatch == "capacity":
            check_number("MoeConfig.capacity_factor", self.capacity_factor, above=0)
        elif self.capacity_factor is not None:
            raise ConfigError(
                "MoeConfig.capacity_factor",
                self.capacity_factor,
                "None for MoeConfig.dispatch = 'dropless'",
                "Dropless experts take every token.",
            )

    @property
    def n_experts(self) -> int:
        """E."""
        return self.router.n_experts

    @property
    def active_fraction(self) -> float:
        """Share of the routed experts that a token uses."""
        return self.router.top_k / self.router.n_experts

    def capacity(self, length: int) -> int:
        """Places of an expert for a row of ``length`` tokens; no token chooses it twice."""
        share = (self.capacity_factor or 1.0) * length * self.router.top_k / self.router.n_experts
        return max(1, min(length, math.ceil(share)))

    def make(self, d_model: int, init: InitConfig, rngs: nnx.Rngs) -> Moe:
        """The layer."""
        return Moe(self, d_model, init, rngs)


class Experts(nnx.Module):
    """Kernels of all experts: ``gate``, ``up`` [E, D, F] and ``down`` [E, F, D].

    Each may have an adapter, which is added to the kernel before it is used.
    """

    gate_adapter: LinearAdapter | None = None
    up_adapter: LinearAdapter | None = None
    down_adapter: LinearAdapter | None = None

    def __init__(self, config: MoeConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs):
        self.gated = config.gated
        n, f = config.router.n_experts, config.d_ff
        std = init.kernel(d_model, branch=True)
        if config.gated:
            self.gate = normal(rngs, (n, d_model, f), std, _UP)
        self.up = normal(rngs, (n, d_model, f), std, _UP)
        self.down = normal(rngs, (n, f, d_model), init.kernel(f, residual=True), _DOWN)

    def weights(self, dtype: jnp.dtype) -> Kernels:
        """The kernels in ``dtype``, placed for compute."""
        return {
            name: constrain(self._merged(name).astype(dtype), axes)
            for name, axes in self.parts().items()
        }

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Logical axes of each kernel, by its name."""
        names = ("up", "down", "gate") if self.gated else ("up", "down")
        return {name: _DOWN if name == "down" else _UP for name in names}

    def _merged(self, name: str) -> jax.Array:
        kernel, adapter = getattr(self, name).get_value(), getattr(self, f"{name}_adapter")
        if isinstance(kernel, Stored):
            kernel = kernel.placed(("experts",))[...]
        return kernel if adapter is None else adapter.merged_experts(kernel)


class Moe(CachedLayer):
    """[B, T, D] -> [B, T, D]. Padding goes to no expert.

    With a cache no choice is dropped: how many places an expert has depends on the call's length,
    padding included, and what a row is answered must not.
    """

    def __init__(self, config: MoeConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs):
        self.config = config
        self.router = Router(config.router, d_model, init, rngs)
        self.experts = Experts(config, d_model, init, rngs)
        if config.shared is not None:
            self.shared = Mlp(config.shared, d_model, init, rngs)
        if config.shared_gate:
            std = init.kernel(d_model)
            self.shared_gate = Dense(
                (d_model,), (1,), ("embed",), ("rank",), std=std, bias=False, rngs=rngs, exact=True
            )

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None, Aux]:
        config = self.config
        valid = context.segment_ids != 0
        experts, weights, aux = self.router(x, valid)
        experts = jnp.where(valid[..., None], experts, config.router.n_experts)
        kernels = self.experts.weights(x.dtype)
        if config.dispatch == "dropless" or context.rows is not None:
            y, dropped = _dropless(config, x, experts, weights, kernels), jnp.float32(0)
        else:
            y, dropped = _capacity(config, x, experts, weights, kernels)
        y = keep(y, "mlp_out")
        if config.shared is not None:
            shared = self.shared.apply(x)
            if config.shared_gate:
                gate = jax.nn.sigmoid(self.shared_gate(x).astype(jnp.float32))
                shared = shared * gate.astype(shared.dtype)
            y = y + shared
        return y, cache, aux | {"moe_dropped": dropped}


def _inner(config: MoeConfig, up: jax.Array, gate: jax.Array | None) -> jax.Array:
    activation = ACTIVATIONS[config.activation]
    up = keep(up, "mlp_up")
    return activation(up) if gate is None else activation(keep(gate, "mlp_gate")) * up


def _weigh(choices: jax.Array, weights: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Choices [..., k, D] times weights [..., k], summed in float32."""
    return jnp.sum(choices.astype(jnp.float32) * weights[..., None], axis=-2).astype(dtype)


def _local(
    config: MoeConfig, x: jax.Array, experts: jax.Array, weights: jax.Array, kernels: Kernels
) -> jax.Array:
    """Returns what the given experts add to tokens of one device; ids beyond them add nothing."""
    n_experts = kernels["up"].shape[0]
    k = config.router.top_k
    ids = experts.reshape(-1, k)
    block = block_size(ids.size, n_experts)
    places = place(ids, n_experts, block, None)
    rows = spread(x.reshape(-1, x.shape[-1]), places)

    def product(x: jax.Array, name: str) -> jax.Array:
        return grouped_product(x, kernels[name], places.counts, block)

    inner = _inner(config, product(rows, "up"), product(rows, "gate") if config.gated else None)
    choices = collect(product(inner, "down"), places)
    return _weigh(choices, weights.reshape(-1, k), x.dtype).reshape(x.shape)


class Route(NamedTuple):
    """Destinations of choices.

    Attributes:
      axes: of the mesh, along which they travel.
      devices: how many there are along them.
      to: [b, t, k] int32, the device of a choice; ``devices`` for one that goes nowhere.
    """

    axes: tuple[str, ...]
    devices: int
    to: Int32[Array, "B T k"]


def _sent(
    config: MoeConfig,
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    kernels: Kernels,
    route: Route,
) -> jax.Array:
    """``_local`` where the experts of a choice are another device's.

    A device has room for all that another may choose of it, so that nothing is dropped; what is
    sent is no more than was chosen where the platform has a ragged exchange.
    """
    k, d, held = config.router.top_k, x.shape[-1], kernels["up"].shape[0]
    to, ids = route.to.reshape(-1, k), experts.reshape(-1)
    room = to.shape[0] * min(k, held)
    places = place(to, route.devices, 1, room)
    ids = ids.at[places.source].get(mode="fill", fill_value=held)
    swap = functools.partial(exchange, axes=route.axes, counts=places.counts)
    theirs = jax.lax.all_to_all(ids, route.axes, 0, 0, tiled=True)
    rows = swap(spread(x.reshape(-1, d), places))
    alone = jnp.ones((rows.shape[0], 1), jnp.float32)
    out = _local(_single(config), rows, theirs[:, None], alone, kernels)
    choices = collect(swap(out, back=True), places)
    return _weigh(choices, weights.reshape(-1, k), x.dtype).reshape(x.shape)


def _single(config: MoeConfig) -> MoeConfig:
    """Rows that have one choice each."""
    return dataclasses.replace(config, router=dataclasses.replace(config.router, top_k=1))


def _unravel(index: jax.Array, sizes: tuple[int, ...]) -> list[jax.Array]:
    """Coordinates of places counted in row-major order."""
    found = []
    for size in reversed(sizes):
        found.append(index % size)
        index = index // size
    return found[::-1]


def _dropless(
    config: MoeConfig, x: jax.Array, experts: jax.Array, weights: jax.Array, kernels: Kernels
) -> jax.Array:
    """Every choice is computed.

    On a mesh each device sorts its own tokens. Along axes that cut tokens and experts, tokens go
    to their experts and come back. Devices along other axes of experts, and of F, see the same
    tokens, compute their part of the result, and add up.
    """
    context = current()
    if context is None or context.mesh.size == 1:
        return _local(config, x, experts, weights, kernels)
    tokens = compute_spec(_TOKENS, x.shape)
    up = compute_spec(_UP, kernels["up"].shape)
    assert tokens is not None and up is not None
    taken = {axis for entry in tokens for axis in mesh_axes(entry)}
    over_experts = mesh_axes(up[0])
    over_width = tuple(axis for axis in mesh_axes(up[2]) if axis not in taken)
    travelled = tuple(axis for axis in over_experts if axis in taken)
    summed = tuple(axis for axis in over_experts if axis not in taken) + over_width
    sizes = {axis: context.mesh.shape[axis] for axis in over_experts}
    specs = {name: PartitionSpec(over_experts, None, over_width) for name in kernels}
    specs["down"] = PartitionSpec(over_experts, over_width, None)
    tokens = PartitionSpec(*tokens[:2], None)

    def local(x: jax.Array, experts: jax.Array, weights: jax.Array, kernels: Kernels) -> jax.Array:
        held = kernels["up"].shape[0]
        owners = dict(zip(sizes, _unravel(experts // held, tuple(sizes.values())), strict=True))
        mine = experts < config.router.n_experts  # padding goes nowhere
        for axis in over_experts:
            if axis not in travelled:
                mine &= owners[axis] == jax.lax.axis_index(axis)
        experts = jnp.where(mine, experts % held, held)
        if travelled:
            to = jnp.zeros_like(experts)
            for axis in travelled:
                to = to * sizes[axis] + owners[axis]
            count = math.prod(sizes[axis] for axis in travelled)
            route = Route(travelled, count, jnp.where(mine, to, count))
            y = _sent(config, x, experts, weights, kernels, route)
        else:
            y = _local(config, x, experts, weights, kernels)
        return jax.lax.psum(y, summed) if summed else y

    return jax.shard_map(
        local,
        mesh=context.mesh,
        in_specs=(tokens, tokens, tokens, specs),
        out_specs=tokens,
        check_vma=False,
    )(x, experts, weights, kernels)


def _capacity(
    config: MoeConfig, x: jax.Array, experts: jax.Array, weights: jax.Array, kernels: Kernels
) -> tuple[jax.Array, jax.Array]:
    """Every expert has ``config.capacity`` places a row; also the fraction of choices dropped."""
    n_experts = config.router.n_experts
    b, t, d = x.shape
    capacity = config.capacity(t)
    places = jax.vmap(lambda ids: place(ids, n_experts, 1, capacity))(experts)
    buffer = jax.vmap(spread)(x, places).reshape(b, n_experts, capacity, d)
    layout = ("rows", "experts", None)

    def product(x: jax.Array, name: str, axis: str) -> jax.Array:
        y = jnp.einsum("becd,edf->becf", x, kernels[name])
        return constrain(y, (*layout, axis))

    # Each device fills places with its own tokens, then tokens and experts change places.
    own = ("batch", None, None, "embed")
    buffer = constrain(constrain(buffer, own), (*layout, "embed"))
    gate = product(buffer, "gate", "mlp") if config.gated else None
    out = product(_inner(config, product(buffer, "up", "mlp"), gate), "down", "embed")
    out = constrain(out, own)
    choices = jax.vmap(collect)(out.reshape(b, n_experts * capacity, d), places)
    total = jnp.sum(places.counts)
    used = jnp.sum(jnp.minimum(places.counts, capacity))
    dropped = (total - used) / jnp.maximum(total, 1)
    y = constrain(_weigh(choices, weights, x.dtype), _TOKENS)
    return y, dropped.astype(jnp.float32)
