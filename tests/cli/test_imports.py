"""What a command imports before it works: the packages that it does not need yet."""

import subprocess
import sys

# Each in one process: what is run, and what must not have been imported by then.
STAGES = [
    ("main(['--help'])", "jax numpy gin etils absl"),
    ("main(['train', '--help'])", "jax numpy tensorstore flax"),
    ("main(['journal', '--help'])", "jax flax tensorstore"),
    # All that a training needs until its first step is being compiled.
    (
        "import t5x_llm.run.session",
        "orbax grain tensorflow tensorflow_datasets seqio torch transformers matplotlib pandas "
        "sklearn datatrove nltk apache_beam qwix tensorboardX wandb mlflow scipy google.cloud",
    ),
]
PROGRAM = """
import contextlib, io, sys
from t5x_llm.cli.main import main
for source, forbidden in {stages!r}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        exec(source)
    print(source, "|", *sorted(set(forbidden.split()) & set(sys.modules)))
"""


def test_what_is_imported_before_it_is_needed():
    command = [sys.executable, "-c", PROGRAM.format(stages=STAGES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{source} |" for source, _ in STAGES]
