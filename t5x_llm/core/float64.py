"""A function of float32 arrays computed in float64, so that its rounding is no part of a proof.

The function is traced as it is and its operations are carried out again with wider numbers; the
model's code knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

_NARROW, _WIDE = jnp.dtype("float32"), jnp.dtype("float64")
_DTYPES = ("new_dtype", "preferred_element_type")
_CALLS = {  # primitives that call a jaxpr with their own inputs, and the parameter that holds it
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}

# These compute nothing: what they move is widened where it is used.
_MOVES = ("slice", "dynamic_slice", "gather", "reshape", "transpose", "squeeze", "broadcast_in_dim")

# (array, whether it is meant to be wide). A parameter stays as it is until it is used.
_Value = tuple[Any, bool]


def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function(weights, *rest)``, jitted, with all that depends on ``weights`` in float64.

    What does not depend on them (positions, their rotary tables, masks) stays as it is: reference
    implementations define it in float32. Values narrower than float32, and explicit roundings, are
    kept too. Only one layer of stacked weights is widened at a time.

    Args:
      function: (pytree of arrays, pytrees of arrays) -> pytree of arrays, traceable. Weights may
        be float32, or what such a function gave.
    """

    def wide(weights: Any, *rest: Any) -> Any:
        narrow = jax.tree.map(_abstract, (weights, *rest))
        with jax.enable_x64(False):
            jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*narrow)
        leaves = [(x, True) for x in jax.tree.leaves(weights)]
        leaves += [(x, False) for x in jax.tree.leaves(rest)]
        out = [_widened(value) for value in _run(jaxpr, leaves)]
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    jitted = jax.jit(wide)

    def call(*args: Any) -> Any:
        with jax.enable_x64(True):
            return jitted(*args)

    return call


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    dtype = jnp.result_type(x)
    return jax.ShapeDtypeStruct(jnp.shape(x), _NARROW if dtype == _WIDE else dtype)


def _is_narrow(x: Any) -> bool:
    return jnp.result_type(x) == _NARROW


def _widened(value: _Value) -> Any:
    x, wide = value
    return jnp.asarray(x, _WIDE) if wide and _is_narrow(x) else x


def _run(closed: Any, args: Sequence[_Value]) -> list[_Value]:
    """The outputs of a jaxpr. In jax 0.12 those of control flow are not closed."""
    if not isinstance(closed, core.ClosedJaxpr):
        closed = core.ClosedJaxpr(closed, ())
    jaxpr = closed.jaxpr
    env: dict[Any, _Value] = {}
    consts = [(c, False) for c in closed.consts]
    env.update(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(v: Any) -> _Value:
        return (v.val, False) if isinstance(v, core.Literal) else env[v]

    for eqn in jaxpr.eqns:
        ins = [read(v) for v in eqn.invars]
        name = eqn.primitive.name
        if name in _CALLS:
            out = _run(eqn.params[_CALLS[name]], ins)
        else:
            out = _CONTROL.get(name, _operation)(eqn, ins)
        env.update(zip(eqn.outvars, out, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _operation(eqn: Any, ins: Sequence[_Value]) -> list[_Value]:
    """One primitive, wide if anything it takes is."""
    wide = any(flag for _, flag in ins)
    values, params = [x for x, _ in ins], dict(eqn.params)
    moved = eqn.primitive.name in _MOVES
    if wide and not moved:
        values = [_widened((x, True)) for x in values]
        for name in _DTYPES:
            if params.get(name) is not None and jnp.dtype(params[name]) == _NARROW:
                params[name] = _WIDE
    out = eqn.primitive.bind(*values, **params)
    out = out if eqn.primitive.multiple_results else [out]
    return [(x, wide and (moved or jnp.result_type(x) == _WIDE)) for x in out]


def _settle(initial: Sequence[_Value], body: Callable[[list[bool]], list[bool]]) -> list[bool]:
    """Returns which values carried around a loop are wide: on entry, or after a turn of it."""
    wide = [flag for _, flag in initial]
    while True:
        after = [a or b for a, b in zip(wide, body(wide), strict=True)]
        if after == wide:
            return wide
        wide = after


def _flags(function: Callable[..., list[_Value]], *args: Any) -> list[bool]:
    found: list[bool] = []

    def record(*args: Any) -> None:
        found.extend(flag for _, flag in function(*args))

    jax.eval_shape(record, *args)
    return found


def _pack(values: Sequence[Any], wide: Sequence[bool]) -> list[_Value]:
    return list(zip(values, wide, strict=True))


def _carried(values: Sequence[_Value], wide: Sequence[bool]) -> list[Any]:
    return [_widened((x, flag)) for (x, _), flag in zip(values, wide, strict=True)]


def _scan_parts(p: Any, ins: Sequence[_Value]) -> list[list[_Value]]:
    """(constants, what is carried, what is scanned over) of a scan's inputs."""
    if "ft_in" in p:  # from jax 0.12 on
        parts = p["ft_in"].update(list(range(len(ins)))).unpack()
        return [[ins[i] for i in part] for part in parts]
    first, second = p["num_consts"], p["num_consts"] + p["num_carry"]
    return [list(part) for part in (ins[:first], ins[first:second], ins[second:])]


def _scan(eqn: Any, ins: Sequence[_Value]) -> list[_Value]:
    p = eqn.params
    consts, initial, xs = _scan_parts(p, ins)
    rows, row_flags = [x for x, _ in xs], [flag for _, flag in xs]

    def once(wide: list[bool], carry: Any, row: Any) -> list[_Value]:
        return _run(p["jaxpr"], [*consts, *_pack(carry, wide), *_pack(row, row_flags)])

    def flags(wide: list[bool]) -> list[bool]:
        row = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in rows]
        return _flags(lambda c, r: once(wide, c, r), _carried(initial, wide), row)

    count = len(initial)
    wide = _settle(initial, lambda wide: flags(wide)[:count])
    out_flags = flags(wide)[count:]

    def body(carry: Any, row: Any) -> Any:
        out = once(wide, carry, row)
        return _carried(out[:count], wide), [_widened(value) for value in out[count:]]

    carry, ys = jax.lax.scan(
        body, _carried(initial, wide), rows, length=p["length"], reverse=p["reverse"]
    )
    return [*_pack(carry, wide), *_pack(ys, out_flags)]


def _while(eqn: Any, ins: Sequence[_Value]) -> list[_Value]:
    p = eqn.params
    first, second = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    tests, consts, initial = ins[:first], ins[first:second], ins[second:]

    def once(wide: list[bool], carry: Any) -> list[_Value]:
        return _run(p["body_jaxpr"], [*consts, *_pack(carry, wide)])

    wide = _settle(initial, lambda wide: _flags(lambda c: once(wide, c), _carried(initial, wide)))
    carry = jax.lax.while_loop(
        lambda c: _run(p["cond_jaxpr"], [*tests, *_pack(c, wide)])[0][0],
        lambda c: _carried(once(wide, c), wide),
        _carried(initial, wide),
    )
    return _pack(carry, wide)


def _cond(eqn: Any, ins: Sequence[_Value]) -> list[_Value]:
    (index, _), operands = ins[0], ins[1:]
    values, given = [x for x, _ in operands], [flag for _, flag in operands]
    branches = eqn.params["branches"]
    each = [_flags(lambda *v, b=b: _run(b, _pack(v, given)), *values) for b in branches]
    wide = [any(flags) for flags in zip(*each, strict=True)]
    out = jax.lax.switch(
        index,
        [lambda *v, b=b: _carried(_run(b, _pack(v, given)), wide) for b in branches],
        *values,
    )
    return _pack(out, wide)


_CONTROL = {"scan": _scan, "while": _while, "cond": _cond}
