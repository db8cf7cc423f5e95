"""Every gin file parses, builds its run and an abstract model, and binds nothing in vain."""

import math
import pathlib

import jax
import pytest
from parameters import PARAMETERS

from t5x_llm.config import parse_flags
from t5x_llm.config.parse import parse
from t5x_llm.parallel import dump_shardings
from t5x_llm.plan.describe import planned_mesh
from t5x_llm.run.checks import check_fits
from t5x_llm.run.config import load_run

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
RECIPE = CONFIGS / "recipes" / "quickstart.gin"
LARGE = CONFIGS / "models" / "palm" / "palm_540b.gin"  # 48 heads: for every way to cut them


def found(folder):
    root = CONFIGS / folder
    return sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.gin"))


def load(*files, bindings=()):
    flags = [f"--gin_file={f}" for f in files] + [f"--gin.{b}" for b in bindings]
    run, resolved = load_run(parse_flags(flags))
    assert resolved.unused_own == ()
    assert load_run(parse_flags(flags))[1].operative_config_text() == (
        resolved.operative_config_text()
    )
    return run


@pytest.mark.parametrize("name", found("recipes"))
def test_recipes(name):
    run = load(CONFIGS / "recipes" / f"{name}.gin")
    mesh, _ = planned_mesh(run)
    if run.mesh.fsdp != -1:  # a described slice, and not whatever runs this test
        check_fits(run, mesh)
    model = run.build_model()
    shapes = model.abstract_params()
    assert jax.tree.structure(shapes) == jax.tree.structure(
        model.logical_axes(), is_leaf=lambda x: isinstance(x, tuple)
    )
    tx = run.optimizer.build(run.loop.steps, model.logical_axes())
    assert len(jax.tree.leaves(jax.eval_shape(tx.init, shapes))) > 1
    table = dump_shardings(model.logical_axes(), shapes, mesh, run.mesh.rules())
    assert table.count("\n") == 2 + len(jax.tree.leaves(shapes))


def bound(file):
    """The fields that a gin file has lines for: class to names."""
    fields = {}
    for binding in parse([str(file)], (), (), ()).bindings.values():
        fields.setdefault(binding.name, set()).add(binding.param)
    return fields


@pytest.mark.parametrize("folder", ["models", "meshes"])
def test_a_file_leaves_nothing_of_another_of_its_kind(folder):
    files = {name: bound(CONFIGS / folder / f"{name}.gin") for name in found(folder)}
    for name, fields in files.items():
        for kind, names in fields.items():
            every = set().union(*(other.get(kind, ()) for other in files.values()))
            assert names == every, f"{name}: no line for what others set of {kind}"


def test_every_model_has_its_published_count():
    assert sorted(PARAMETERS) == found("models")


# A model file alone says everything of the model; the rest is any run's.
REST = [f"Run.{field}=@{kind}()" for field, kind in (("data", "Data"), ("loop", "Loop"))]
REST += ["Data.store_dir='x'", "Data.tokenizer='x'", "Data.seqio_mixture='x'"]
REST += ["Loop.steps=1", "Loop.batch_size=8", "Loop.sequence_length=8", "Run.directory='x'"]


# What a model that is no decoder learns.
OBJECTIVES = {"t5": "span_corruption", "bert": "mlm"}


@pytest.mark.parametrize("name", found("models"))
def test_models(name):
    objective = OBJECTIVES.get(name.partition("/")[0], "lm")
    bindings = [*REST, f"Denoising.objective='{objective}'"]
    file = CONFIGS / "models" / f"{name}.gin"
    run, resolved = load_run(parse_flags([f"--gin_file={file}", *(f"--gin.{b}" for b in bindings)]))
    assert resolved.unused == ()
    parts = run.build_model().parameter_count()
    assert PARAMETERS[name].agrees(parts), (parts, PARAMETERS[name])


@pytest.mark.parametrize("name", found("meshes"))
def test_meshes(name):
    mesh_file = CONFIGS / "meshes" / f"{name}.gin"
    bindings = ("Loop.batch_size=512", "Evaluation.batch_size=512")
    bindings += ("TokenizerTraining.vocab_size=256000",)
    run = load(RECIPE, LARGE, mesh_file, bindings=bindings)
    mesh, _ = planned_mesh(run)
    check_fits(run, mesh)
    assert mesh.size == math.prod(mesh.shape.values())
    model = run.build_model()
    table = dump_shardings(model.logical_axes(), model.abstract_params(), mesh, run.mesh.rules())
    assert table.count("\n") == 2 + len(jax.tree.leaves(model.abstract_params()))


@pytest.mark.parametrize("name", [n for n in found("data") if not n.startswith("clean_")])
def test_data(name):
    run = load(RECIPE, CONFIGS / "data" / f"{name}.gin")
    for source in run.data.mixture.sources:
        assert source.language and source.license
