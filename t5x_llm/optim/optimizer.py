"""Optimizers, from optax where it has them, with clipping, decay masks and schedule applied."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.core.fields import later
from t5x_llm.optim.freezing import trained_mask
from t5x_llm.optim.masks import DECAY_MASKS, decay_mask
from t5x_llm.optim.muon import scale_by_muon_and_adam
from t5x_llm.optim.schedule import Schedule

# What None means for each optimizer; a field that is absent does not exist for it.
DEFAULTS: dict[str, dict[str, float]] = {
    # GPT-3, BLOOM, OPT, LLaMA: 0.9 / 0.95, decay 0.1.
    "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1},
    # Shazeer and Stern, 1804.04235: no momentum, no decay.
    "adafactor": {"b1": 0.0, "decay_exponent": 0.8, "eps": 1e-30, "weight_decay": 0.0},
    # PaLM, 2204.02311: weight_decay multiplies lr**2.
    "palm_adafactor": {"b1": 0.9, "decay_exponent": 0.8, "eps": 1e-30, "weight_decay": 1.0},
    # You et al., 1904.00962.
    "lamb": {"b1": 0.9, "b2": 0.999, "eps": 1e-6, "weight_decay": 0.01},
    # Chen et al., 2302.06675: a decay 3 to 10 times AdamW's, a learning rate as much smaller.
    "lion": {"b1": 0.9, "b2": 0.99, "weight_decay": 0.3},
    # Liu et al., 2502.16982: Muon for matrices, updates as large as AdamW's; AdamW for the rest.
    "muon": {
        "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "momentum": 0.95,
        "update_rms": 0.2,
    },
    "sgd": {"b1": 0.9, "weight_decay": 0.0},
}  # fmt: skip
_PER_OPTIMIZER = ("b1", "b2", "eps", "weight_decay", "decay_exponent", "momentum", "update_rms")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Clip by global norm, then the optimizer, then decay and learning rate.

    A field that is None takes the value published for that optimizer, see ``DEFAULTS`` and
    ``settings``.

    Attributes:
      name: ``adamw``, ``adafactor`` (factored), ``palm_adafactor``, ``lamb``, ``lion``, ``muon``
        (AdamW for embeddings, the head, norms and biases), ``sgd``.
      schedule: the learning rate.
      b1: decay of the first moment (momentum for sgd); 0 is none for adafactor and sgd.
      b2: decay of the second moment; the Adafactors have 1 - k**-decay_exponent instead.
      eps: added to the second moment or its root.
      weight_decay: per step, times the learning rate; for palm_adafactor times its square; for
        sgd added to the gradient.
      decay_exponent: of the Adafactors.
      momentum: decay of Muon's momentum.
      update_rms: root mean square of Muon's updates of a matrix, times the learning rate.
      clip_norm: largest global norm of the gradients; None does not clip.
      decay_mask: what decays: ``matrices`` (no biases, norms, embeddings),
        ``matrices_and_embeddings``, ``all``, ``none``.
      trained: the parameters that are, by path, such as ``('embed', 'head')``; the others stay as
        they are, and neither gradients nor optimizer state are kept for them. () trains all.
    """

    name: str = "adamw"
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    b1: float | None = None
    b2: float | None = None
    eps: float | None = None
    weight_decay: float | None = None
    decay_exponent: float | None = None
    momentum: float | None = None
    update_rms: float | None = None
    clip_norm: float | None = 1.0
    decay_mask: str = "matrices"
    trained: tuple[str, ...] = later(())

    def __post_init__(self) -> None:
        check_choice("Optimizer.name", self.name, DEFAULTS)
        check_choice("Optimizer.decay_mask", self.decay_mask, DECAY_MASKS)
        object.__setattr__(self, "trained", _names(self.trained))
        if not isinstance(self.schedule, Schedule):
            raise ConfigError("Optimizer.schedule", self.schedule, "a Schedule", "Use @Schedule()")
        for field in _PER_OPTIMIZER:
            value = getattr(self, field)
            if value is not None and field not in DEFAULTS[self.name]:
                raise ConfigError(
                    f"Optimizer.{field}",
                    value,
                    f"None, as {self.name} has no {field}",
                    f"{self.name} has {', '.join(DEFAULTS[self.name])}.",
                )
        for field, value in self.settings().items():
            high = 1 if field in ("b1", "b2", "decay_exponent", "momentum") else None
            check_number(f"Optimizer.{field}", value, low=0, high=high)
        if self.clip_norm is not None:
            check_number("Optimizer.clip_norm", self.clip_norm, above=0, remedy="None for no clip.")

    def settings(self) -> dict[str, float]:
        """The hyperparameters this optimizer uses, None replaced."""
        chosen = {}
        for field, default in DEFAULTS[self.name].items():
            value = getattr(self, field)
            chosen[field] = default if value is None else value
        return chosen

    def trained_mask(self, params: Any) -> Any:
        """A tree of bool like ``params``, whether each is trained; None where all are.

        Raises:
          ConfigError: a path of ``trained`` is no parameter's.
        """
        return trained_mask(params, self.trained) if self.trained else None

    def build(self, total_steps: int, logical_axes: Any = None) -> optax.GradientTransformation:
        """The transformation from gradients to updates (add them to the parameters).

        With ``trained`` it is for the trained part of the parameters alone, in whose tree None
        stands for what is frozen.

        Args:
          total_steps: steps of the run, for the schedule.
          logical_axes: tree like the parameters of tuples of logical axis names. With it, what
            LAMB, Muon and the Adafactors compute of a whole matrix (trust ratio, orthogonal
            factor, RMS) is computed for each layer of a parameter stacked along ``layers``, and
            decay masks do not count that dimension. Without it a stacked parameter is one matrix,
            and none to Muon.
        """
        learning_rate = self.schedule.build(total_steps)
        steps = [] if self.clip_norm is None else [_clip(self.clip_norm)]

        def decays(params: Any) -> Any:
            return decay_mask(params, self.decay_mask, logical_axes)

        steps.append(_BUILDERS[self.name](self.settings(), learning_rate, decays, logical_axes))
        return optax.chain(*steps)


def _names(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(name, str) and name for name in names):
        raise ConfigError("Optimizer.trained", value, "a tuple of paths, such as ('embed', 'head')")
    return names


def _clip(limit: float) -> optax.GradientTransformation:
    """``optax.clip_by_global_norm`` as one factor, min(1, limit / norm), as torch has it.

    A product is cheap enough for XLA to fuse it into each use; the quotient that optax takes of
    every element is not, and is written to memory and read again. They differ in the last bit.
    """

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        norm = optax.tree.norm(grads)
        factor = jnp.where(norm < limit, 1.0, limit / norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


Settings = dict[str, float]
Mask = Callable[[Any], Any]


def _adamw(s: Settings, lr: optax.Schedule, mask: Mask, axes: Any) -> optax.GradientTransformation:
    return optax.adamw(lr, s["b1"], s["b2"], s["eps"], weight_decay=s["weight_decay"], mask=mask)


def _lion(s: Settings, lr: optax.Schedule, mask: Mask, axes: Any) -> optax.GradientTransformation:
    return optax.lion(lr, s["b1"], s["b2"], weight_decay=s["weight_decay"], mask=mask)


def _sgd(s: Settings, lr: optax.Schedule, mask: Mask, axes: Any) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(s["weight_decay"], mask), optax.sgd(lr, s["b1"] or None)
    )


def _lamb(s: Settings, lr: optax.Schedule, mask: Mask, axes: Any) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(s["b1"], s["b2"], s["eps"]),
        optax.add_decayed_weights(s["weight_decay"], mask),
        _per_layer(optax.scale_by_trust_ratio(), axes),
        optax.scale_by_learning_rate(lr),
    )


def _adafactor(
    s: Settings, lr: optax.Schedule, mask: Mask, axes: Any
) -> optax.GradientTransformation:
    """optax.adafactor, its block RMS taken for each layer; decay times the learning rate."""
    steps = [
        optax.scale_by_factored_rms(decay_rate=s["decay_exponent"], epsilon=s["eps"]),
        _per_layer(optax.clip_by_block_rms(1.0), axes),
        optax.scale_by_learning_rate(lr, flip_sign=False),
        _per_layer(optax.scale_by_param_block_rms(), axes),
    ]
    if s["b1"]:
        steps.append(optax.ema(s["b1"], debias=False))
    if s["weight_decay"]:
        steps.append(optax.add_decayed_weights(lambda k: s["weight_decay"] * lr(k), mask))
    return optax.chain(*steps, optax.scale(-1.0))


def _palm_adafactor(
    s: Settings, lr: optax.Schedule, mask: Mask, axes: Any
) -> optax.GradientTransformation:
    """PaLM's Adafactor: unfactored, no update clipping, b2 = 1 - k**-0.8, decay lr**2.

    The order is t5x's ``adafactor.py``: momentum averages the scaled update, decay comes after.
    """
    return optax.chain(
        optax.scale_by_factored_rms(
            factored=False, decay_rate=s["decay_exponent"], epsilon=s["eps"]
        ),
        optax.scale_by_learning_rate(lr, flip_sign=False),
        _per_layer(optax.scale_by_param_block_rms(), axes),
        optax.ema(s["b1"], debias=False),
        optax.add_decayed_weights(lambda k: s["weight_decay"] * lr(k) ** 2, mask),
        optax.scale(-1.0),
    )


def _muon(s: Settings, lr: optax.Schedule, mask: Mask, axes: Any) -> optax.GradientTransformation:
    return optax.chain(
        scale_by_muon_and_adam(
            b1=s["b1"],
            b2=s["b2"],
            eps=s["eps"],
            momentum=s["momentum"],
            update_rms=s["update_rms"],
            logical_axes=axes,
        ),
        optax.add_decayed_weights(s["weight_decay"], mask),
        optax.scale_by_learning_rate(lr),
    )


_BUILDERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "palm_adafactor": _palm_adafactor,
    "lamb": _lamb,
    "lion": _lion,
    "muon": _muon,
    "sgd": _sgd,
}


def _per_layer(
    transform: optax.GradientTransformation, logical_axes: Any
) -> optax.GradientTransformation:
    """Applies a stateless leaf-wise transformation to every layer of stacked parameters."""
    if logical_axes is None:
        return transform
    empty = optax.EmptyState()

    def one(update: jax.Array, param: jax.Array) -> Any:
        return transform.update(update, empty, param)[0]

    def leaf(update: jax.Array, param: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        if "layers" not in axes:
            return one(update, param)
        i = axes.index("layers")
        return jax.vmap(one, in_axes=i, out_axes=i)(update, param)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return jax.tree.map(leaf, updates, params, logical_axes), state

    return optax.GradientTransformation(lambda params: empty, update)


def opt_state_shardings(
    tx: optax.GradientTransformation,
    params_shardings: Any,
    abstract_params: Any,
    replicated: Any,
) -> Any:
    """Shardings of ``tx.init(params)``: like the parameter where the shape is its own.

    Counters, and what Adafactor keeps of a factored matrix (one row, one column), are replicated.

    Args:
      tx: the optimizer.
      params_shardings: tree of shardings.
      abstract_params: tree of ``jax.ShapeDtypeStruct``.
      replicated: the sharding of a whole array on the same mesh.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(abstract_params)
    places = jax.tree.leaves(params_shardings)
    known = {path: (param.shape, place) for (path, param), place in zip(flat, places, strict=True)}

    def place(path: tuple[Any, ...], x: Any) -> Any:
        # A moment's path ends in its parameter's.
        ends = (path[i:] for i in range(len(path)))
        shape, place = next((known[end] for end in ends if end in known), (None, None))
        return place if shape == x.shape else replicated

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(tx.init, abstract_params))
