"""``Run.compiler_options``: told to TPUs alone, and named where they are refused."""

import importlib.util
import subprocess
import sys

import jax
import pytest

from t5x_llm.config import parse_flags
from t5x_llm.core.errors import ConfigError
from t5x_llm.parallel import make_mesh
from t5x_llm.run.assembled import assemble
from t5x_llm.run.compiler import options_named
from t5x_llm.run.config import load_run

OPTION = "xla_tpu_scoped_vmem_limit_kib"


@pytest.mark.parametrize(
    "options, named",
    (
        ("'xla_x'", "Run.compiler_options"),
        ("{'--xla_x': 1}", "without dashes"),
        ("{7: 1}", "Run.compiler_options.*expected a string"),
        ("{'xla_x': None}", "Run.compiler_options.*expected a string or an integer"),
    ),
)
def test_what_is_no_option(here, options, named):
    with pytest.raises(ConfigError, match=named):
        load_run(parse_flags(["--gin_file=tiny.gin", f"--gin.Run.compiler_options={options}"]))


def test_other_platforms_are_not_told(here):
    flags = ["--gin_file=tiny.gin", f"--gin.Run.compiler_options={{'{OPTION}': 32768}}"]
    run, _ = load_run(parse_flags(flags))
    assert run.compiler_options == {OPTION: 32768}
    made = assemble(run, make_mesh(run.mesh))
    made.step.lower(*made.arguments).compile()  # the CPU's compiler would refuse it


def test_the_compiler_s_word_names_the_option():
    with (
        pytest.raises(
            ConfigError, match=f"{OPTION}'.*= 'many'.*It says: cannot parse.*options={{}}"
        ),
        options_named({"xla_a": 1, OPTION: "many"}),
    ):
        raise jax.errors.JaxRuntimeError(f"cannot parse {OPTION}\nand more")
    with pytest.raises(jax.errors.JaxRuntimeError, match="else"), options_named({OPTION: 1}):
        raise jax.errors.JaxRuntimeError("something else")


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="make test-slow brings libtpu")
def test_the_compiler_for_tpu_is_told(here):
    argv = [sys.executable, "-m", "t5x_llm.cli.main", "plan", "--gin_file=tiny.gin"]
    argv += ["--slice=v5e-8", "--gin.Run.compiler_options={'xla_tpu_nonsense': 1}"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2 and "No such compile option: 'xla_tpu_nonsense'" in done.stderr
