"""The shapes that signatures of objectives, infer and nn state: well spelt, and true when called.

Nothing evaluates the annotations at run time. Here they are evaluated, held against the legend of
``core/shapes.py``, and then against the arrays of real calls, by jaxtyping's own ``isinstance``.
"""

import ast
import functools
import importlib
import inspect
import pkgutil
import sys
import types
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import AbstractArray, jaxtyped

import t5x_llm
from t5x_llm.core.shapes import LEGEND, NAMES
from t5x_llm.data.batch import Batch
from t5x_llm.infer import warp
from t5x_llm.infer.decode import generate_ids
from t5x_llm.infer.sampling import Sampling
from t5x_llm.infer.score import score
from t5x_llm.models.families import (
    deepseek,
    llama,
    mamba,
    mamba2,
    mixtral,
    mpt,
    rwkv,
    t5,
    ttt,
    yuan,
)
from t5x_llm.models.model import Model
from t5x_llm.nn.kernels import attention
from t5x_llm.objectives import lm

ROOMS = ("objectives", "infer", "nn")
SIZES = dict(vocab_size=96, d_model=32, n_layers=2)


def modules():
    for room in ROOMS:
        package = importlib.import_module(f"t5x_llm.{room}")
        yield from (
            importlib.import_module(found.name)
            for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        )


@functools.cache
def namespace(module):
    """Names that annotations of a module may use: its own, and those for type checkers alone."""
    names = dict(vars(module))
    for node in ast.parse(Path(module.__file__).read_text("utf-8")).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(node.body, []), module.__file__, "exec"), names)
    return names


def own(module):
    """(name, what it is) of the public functions and classes that a module defines."""
    for name, it in vars(module).items():
        if not name.startswith("_") and callable(it) and it.__module__ == module.__name__:
            yield name, it


def methods(cls):
    """(name, function) of the public methods and properties of a class."""
    for name, it in vars(cls).items():
        it = it.fget if isinstance(it, property) else getattr(it, "__func__", it)
        if inspect.isfunction(it) and (name == "__call__" or not name.startswith("_")):
            yield name, it


def hints(function):
    """The evaluated annotations of a function, which may be wrapped by ``jax.jit`` and others."""
    function = inspect.unwrap(function)
    return typing.get_type_hints(function, namespace(sys.modules[function.__module__]))


@functools.cache
def fields(cls):
    """The evaluated annotations of a dataclass or named tuple."""
    names = namespace(sys.modules[cls.__module__])
    texts = {k: getattr(v, "__forward_arg__", v) for k, v in cls.__annotations__.items()}
    return {name: eval(text, names) for name, text in texts.items() if "ClassVar" not in text}


def annotations():
    """(place, evaluated annotation) of all that is public."""
    for module in modules():
        for name, it in own(module):
            if not isinstance(it, type):
                found = {name: hints(it)}
            else:
                found = {f"{name}.{m}": hints(f) for m, f in methods(it)}
                if it.__dict__.get("__annotations__"):
                    found[name] = fields(it)
            for where, hinted in found.items():
                yield from ((f"{module.__name__}.{where}: {k}", v) for k, v in hinted.items())


def parts(hint):
    """An annotation and all within it."""
    yield hint
    for part in typing.get_args(hint):
        for each in part if isinstance(part, list) else [part]:
            yield from parts(each)


def is_shape(hint):
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def words(shape):
    return [word.lstrip("*#") for word in shape.dim_str.split()]


def test_shapes_are_of_the_legend_and_no_public_array_is_without_one():
    found = [(where, part) for where, hint in annotations() for part in parts(hint)]
    shapes = [(where, part) for where, part in found if is_shape(part)]
    assert len(shapes) > 200
    known = {*LEGEND, *NAMES, "...", "_"}
    foreign = [w for w, shape in shapes for x in words(shape) if x not in known and not x.isdigit()]
    assert not foreign
    assert set(NAMES) <= {word for _, shape in shapes for word in words(shape)}
    assert not [where for where, part in found if part in (jax.Array, np.ndarray)]


def fits(value, hint):
    """Whether a value is of the annotation, as far as that speaks of arrays."""
    if is_shape(hint):
        return isinstance(value, hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, each) for each in inner)
    if hint is type(None):
        return value is None
    if origin is tuple and inner[-1] is not Ellipsis:
        return isinstance(value, tuple) and all(map(fits, value, inner))
    if origin is list:
        return isinstance(value, list) and all(fits(each, inner[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(each, inner[1]) for each in value.values())
    if inspect.isclass(hint) and hint.__module__.startswith("t5x_llm.") and type(value) is hint:
        if hint.__module__.split(".")[1] in ROOMS and hint.__dict__.get("__annotations__"):
            inner = fields(hint)
            with jaxtyped("context"):  # sizes of its own: an encoder's S is not the cache's
                assert_fit(hint.__name__, {name: getattr(value, name) for name in inner}, inner)
    return True


def assert_fit(where, values, hinted):
    for name, value in values.items():
        if name in hinted:
            assert fits(value, hinted[name]), (where, name, hinted[name], jnp.shape(value))


def checked(function, called):
    """The function, its arguments and result held against its annotations at every call."""
    signature, hinted = inspect.signature(function), hints(function)
    where = f"{function.__module__}.{inspect.unwrap(function).__qualname__}"

    @functools.wraps(function)
    def call(*args, **kwargs):
        called.add(where)
        bound = signature.bind(*args, **kwargs).arguments
        with jaxtyped("context"):
            assert_fit(where, bound, hinted)
            result = function(*args, **kwargs)
            assert_fit(where, {"return": result}, hinted)
        return result

    return call


@pytest.fixture
def called(monkeypatch):
    """Checks every call of the rooms' public functions; gives the names of those called."""
    names, loaded = set(), [m for n, m in sys.modules.items() if n.startswith(t5x_llm.__name__)]
    for module in modules():
        for name, it in own(module):
            if isinstance(it, type):
                for m, f in methods(it):
                    if not isinstance(vars(it)[m], (property, classmethod, staticmethod)):
                        monkeypatch.setattr(it, m, checked(f, names))
                continue
            wrapped = checked(it, names)
            for other in loaded:
                if vars(other).get(name) is it:
                    monkeypatch.setattr(other, name, wrapped)
    return names


FAMILIES = {
    "llama": llama.Llama(**SIZES, n_heads=4, d_ff=48, n_kv_heads=2),
    "mpt": mpt.MPT(**SIZES, n_heads=4, max_length=64),
    "mixtral": mixtral.Mixtral(**SIZES, n_heads=4, d_ff=48, n_kv_heads=2, n_experts=4),
    "yuan": yuan.Yuan(**SIZES, n_heads=4, d_ff=48),
    "deepseek": deepseek.DeepseekV2(
        **SIZES, n_heads=4, d_ff=48, q_rank=24, kv_rank=16, nope_dim=8, rope_dim=4, value_dim=12,
        n_experts=4, top_k=2, d_expert=20,
    ),
    "t5": t5.T5(**SIZES, d_ff=48, n_heads=4, head_dim=8),
    "rwkv": rwkv.RWKV(**SIZES, d_inner=40, d_ff=48),
    "mamba": mamba.Mamba(**SIZES, d_state=6),
    "mamba2": mamba2.Mamba2(**SIZES, d_state=6, n_heads=8, head_dim=8, n_groups=2),
    "ttt": ttt.TTTLinear(**SIZES, n_heads=4, d_ff=48, mini_batch=4, pre_conv=True),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_keep_their_shapes(name, called):
    # Traced and not compiled: shapes and dtypes are known then.
    model, rows = Model(FAMILIES[name].decoder()), jax.ShapeDtypeStruct((3, 10), jnp.int32)
    extra = {}
    if model.config.kind == "encoder_decoder":
        read = jax.ShapeDtypeStruct((3, 7), jnp.int32)
        extra = {f"encoder_{k}": read for k in ("tokens", "segment_ids", "positions")}
    weights = jax.ShapeDtypeStruct((3, 10), jnp.float32)
    batch = Batch(rows, rows, rows, rows, weights, jax.ShapeDtypeStruct((3,), jnp.int32), extra)
    params = model.abstract_params()
    value, aux = jax.eval_shape(model.loss, params, batch)
    assert value.shape == () and aux["nll"].shape == (3, 10)

    def decode(params, tokens, extra):
        hidden, cache = model.apply(params, tokens, cache=model.init_cache(3, 16), **extra)
        return model.apply(params, tokens[:, :1], cache=cache)[0]

    assert jax.eval_shape(decode, params, rows, extra).shape == (3, 1, 32)
    assert {"t5x_llm.nn.block.Block.__call__", "t5x_llm.objectives.lm.cross_entropy"} <= called


def test_answers_have_their_shapes(called):
    model = Model(FAMILIES["llama"].decoder())
    params, prompts = model.init(jax.random.key(0)), [[1, 2, 3], [4, 5]]
    sampling = Sampling(max_tokens=4, top_k=5, top_p=0.9, repetition_penalty=1.1)
    for (sample,) in generate_ids(model, params, prompts, sampling):
        assert_fit("Generated", vars(sample), fields(type(sample)))
        assert len(sample.tokens) == len(sample.log_probs)
    for found in score(model, params, [(ids, [6, 7]) for ids in prompts]):
        assert_fit("Score", vars(found), fields(type(found)))
        assert found.log_probs.shape == (2,)
    warps = {f"t5x_llm.infer.warp.{name}" for name in vars(warp) if name in str(called)}
    assert len(warps) == 4 and "t5x_llm.infer.sampling.draw" in called


def test_a_call_of_other_shapes_is_found():
    q, k = jnp.zeros((2, 5, 4, 8)), jnp.zeros((2, 5, 2, 8))
    row = jnp.ones((2, 5), jnp.int32)
    rows = dict(q_segment_ids=row, kv_segment_ids=row, q_positions=row, kv_positions=row)
    attend = checked(attention.attend, set())
    assert attend(q, k, k, **rows).shape == q.shape
    with pytest.raises(AssertionError, match="kv_positions"):
        attend(q, k, k, **rows | {"kv_positions": row[:, 1:]})
    with pytest.raises(AssertionError, match="q_segment_ids"):
        attend(q, k, k, **rows | {"q_segment_ids": row.astype(float)})
    hidden, kernel, mask = jnp.zeros((2, 5, 6)), jnp.zeros((6, 9)), jnp.ones((2, 5))
    cross_entropy = checked(lm.cross_entropy, set())
    assert cross_entropy(hidden, kernel, row, mask)[1]["nll"].shape == (2, 5)
    assert cross_entropy(hidden, kernel.T, row, mask, transposed=True)[0].shape == ()
    with pytest.raises(AssertionError, match="bias"):
        cross_entropy(hidden, kernel, row, mask, bias=jnp.zeros(6))
