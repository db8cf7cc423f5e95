"""Writes the script of a TPU VM: fetch the code, build its environment, start the command."""

from __future__ import annotations

import shlex

from t5x_llm.launch.job import Job, QueuedResource

# A restart on the same machine must not believe it belongs to the group of before.
_STALE = ("MEGASCALE_COORDINATOR_ADDRESS", "JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID")

# A connection can die without a word, so that none is trusted for longer.
FOLLOW_SECONDS = 1700

_FETCH = """\
set -euo pipefail
root="$HOME/t5x_llm/"{name}
mkdir -p "$root"
cd "$root"
if [ ! -e {code}/.ready ]; then
  gcloud storage cp {archive} {code}.tar.gz
  rm -rf {code}
  mkdir {code}
  tar -xzf {code}.tar.gz -C {code}
  python=
  for version in 3.13 3.12 3.11; do
    if command -v "python$version" > /dev/null; then python="python$version"; break; fi
  done
  if [ -z "$python" ]; then
    sudo apt-get update -qq
    sudo apt-get install -y -qq python3.11 python3.11-venv
    python=python3.11
  fi
  (cd {code} && make setup PYTHON="$python" && .uv/bin/uv pip install --python .venv -e '.[tpu]')
  touch {code}/.ready
fi
"""
_START = """\
if [ -e pid ] && kill -0 "$(cat pid)" 2> /dev/null; then
  echo 'already running'
  exit 0
fi
unset {stale}
export PATH="$root/{code}/.venv/bin:$PATH"
rm -f status
cd {code}
setsid nohup bash -c {inner} > ../log 2>&1 < /dev/null &
echo $! > ../pid
"""


def start_script(job: Job, commit: str) -> str:
    """The bash script that starts ``job`` on one machine, unless it runs there already."""
    target = job.target
    assert isinstance(target, QueuedResource)
    code = f"code-{commit[:12]}"
    lines = [
        _FETCH.format(
            name=shlex.quote(job.name), code=code, archive=shlex.quote(archive(target, commit))
        )
    ]
    lines += [f"export {name}={shlex.quote(value)}\n" for name, value in job.environment]
    for name, reference in job.secrets:
        secret, _, version = reference.partition(":")
        access = ["gcloud", "secrets", "versions", "access", version or "latest"]
        access += [f"--secret={secret}", f"--project={target.project}"]
        # Two steps, so that a secret that cannot be read ends the script.
        lines.append(f'{name}="$({shlex.join(access)})"\nexport {name}\n')
    inner = f"{shlex.join(job.command)}; echo $? > ../status"
    lines.append(_START.format(stale=" ".join(_STALE), code=code, inner=shlex.quote(inner)))
    return "".join(lines)


def follow_script(job: Job, again: bool = False) -> str:
    """Prints the log from its beginning, and ends when the command does or after half an hour.

    Args:
      job: whose log it is.
      again: whether it was followed before: its last lines, and then what comes.
    """
    first = "20" if again else "+1"
    return (
        f'cd "$HOME/t5x_llm/"{shlex.quote(job.name)} && '
        f'timeout {FOLLOW_SECONDS} tail -n {first} --pid="$(cat pid)" -F log'
    )


def status_script(job: Job) -> str:
    """Prints ``status N``, ``running``, or ``gone`` where the process vanished without a word."""
    return (
        f'cd "$HOME/t5x_llm/"{shlex.quote(job.name)} && '
        "if [ -s status ]; then echo status $(cat status); "
        "elif [ -e pid ] && kill -0 $(cat pid) 2> /dev/null; then echo running; "
        "else echo gone; fi"
    )


def archive(target: QueuedResource, commit: str) -> str:
    """gs:// address of the code at a commit."""
    return f"{target.bucket}/code/{commit}.tar.gz"
