"""Every gin file parses, builds its run and an abstract model, and binds nothing in vain."""

import math
import pathlib

import jax
import pytest
from parameters import PARAMETERS

from t5x_llm.cli.dry_run import planned_mesh
from t5x_llm.cli.run import check_fits, load_run
from t5x_llm.config import parse_flags
from t5x_llm.config.parse import parse
from t5x_llm.parallel import dump_shardings

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
RECIPE = CONFIGS / "recipes" / "quickstart.gin"


def found(folder):
    root = CONFIGS / folder
    return sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.gin"))


def load(*files, bindings=()):
    flags = [f"--gin_file={f}" for f in files] + [f"--gin.{b}" for b in bindings]
    run, resolved = load_run(parse_flags(flags))
    assert resolved.unused == ()
    assert load_run(parse_flags(flags))[1].operative_config_text() == (
        resolved.operative_config_text()
    )
    return run


@pytest.mark.parametrize("name", found("recipes"))
def test_recipes(name):
    run = load(CONFIGS / "recipes" / f"{name}.gin")
    model = run.build_model()
    state = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.structure(state) == jax.tree.structure(model.abstract_params())
    run.optimizer.build(run.loop.steps, model.logical_axes())


def bound(name):
    """The class of a model file, and the fields of it that the file has a line for."""
    parsed = parse([str(CONFIGS / "models" / f"{name}.gin")], (), (), ())
    family = parsed.bindings["", "Run", "model"].value.name
    return family, {b.param for b in parsed.bindings.values() if b.name == family}


def test_a_model_file_leaves_nothing_of_another():
    fields = {}
    for name in found("models"):
        family, names = bound(name)
        fields.setdefault(family, {})[name] = names
    for family, files in fields.items():
        every = set().union(*files.values())
        lacking = {name: every - names for name, names in files.items() if every - names}
        assert not lacking, f"{family}: a line for each field that another file sets"


def test_every_model_has_its_published_count():
    assert sorted(PARAMETERS) == found("models")


# A model file alone says everything of the model; the rest is any run's.
REST = [f"Run.{field}=@{kind}()" for field, kind in (("data", "Data"), ("loop", "Loop"))]
REST += ["Data.store_dir='x'", "Data.tokenizer='x'", "Data.seqio_mixture='x'"]
REST += ["Loop.steps=1", "Loop.batch_size=8", "Loop.sequence_length=8", "Run.directory='x'"]


@pytest.mark.parametrize("name", found("models"))
def test_models(name):
    model_file = CONFIGS / "models" / f"{name}.gin"
    run, resolved = load_run(
        parse_flags([f"--gin_file={model_file}", *(f"--gin.{b}" for b in REST)])
    )
    assert resolved.unused == ()
    parts = run.build_model().parameter_count()
    assert PARAMETERS[name].agrees(parts), (parts, PARAMETERS[name])


@pytest.mark.parametrize("name", found("meshes"))
def test_meshes(name):
    mesh_file = CONFIGS / "meshes" / f"{name}.gin"
    bindings = ("Loop.batch_size=512", "Evaluation.batch_size=512")
    run = load(RECIPE, mesh_file, bindings=bindings)
    mesh, _ = planned_mesh(run)
    check_fits(run, mesh)
    assert mesh.size == math.prod(mesh.shape.values())
    model = run.build_model()
    table = dump_shardings(model.logical_axes(), model.abstract_params(), mesh, run.mesh.rules())
    assert table.count("\n") == 2 + len(jax.tree.leaves(model.abstract_params()))


@pytest.mark.parametrize("name", found("data"))
def test_data(name):
    run = load(RECIPE, CONFIGS / "data" / f"{name}.gin")
    for source in run.data.mixture.sources:
        assert source.language and source.license
