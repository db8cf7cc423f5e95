"""The command ``t5x-llm submit``: a job on Cloud TPU, GKE or this machine, kept alive."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import gin_parser
from t5x_llm.cli.main import guard
from t5x_llm.config import load, parse_flags, register
from t5x_llm.core.errors import ConfigError
from t5x_llm.launch import controller, gke, ledger, local, queued
from t5x_llm.launch.calls import Terminated
from t5x_llm.launch.job import Gke, Job, LocalProcesses, QueuedResource

DESCRIPTION = """Runs a command on machines that may be taken away, until it is done.

  t5x-llm submit --gin_file=configs/jobs/v5p_128.gin --gin.Job.name="'my-run'" \\
    --gin.QueuedResource.project="'my-project'" --gin.QueuedResource.bucket="'gs://mine/jobs'" \\
    -- python train.py --gin_file=RECIPE.gin --gin.Run.directory="'gs://mine/runs/my-run'"

The job file fills Job and its target: @QueuedResource() for Cloud TPU VMs (needs gcloud), @Gke()
for a JobSet (needs kubectl), @LocalProcesses() for this machine. --dry_run prints every command
and script, and runs nothing.

TPU VMs: the slices are asked for zone after zone; the last commit of the work tree is sent and set
up; the command starts on every machine and its log is followed. When the machines are preempted,
or it leaves with status 75, 76 or 77 or by a signal, it is started again, after a while that
doubles. Any other status ends the job; the machines are given back. Ctrl-C and SIGTERM leave it
running and say so: the same command finds it again, --delete ends it.

Every call of gcloud and kubectl has a time limit and is given again where that can help. What is
asked for is noted below ~/.local/state/t5x-llm/jobs (XDG_STATE_HOME) until it is known to be gone:
--list prints what jobs may still hold and the command that deletes each, and --delete gives back
what is noted even where the job file names other zones by now."""

register(Job, QueuedResource, Gke, LocalProcesses)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm submit``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    parser = gin_parser(
        "t5x-llm submit",
        DESCRIPTION,
        usage="t5x-llm submit --gin_file=JOB [--gin.NAME=VALUE ...] [--dry_run] -- COMMAND ...",
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would run, and stop")
    parser.add_argument("--delete", action="store_true", help="end the job, free its machines")
    parser.add_argument(
        "--list", action="store_true", help="print what jobs submitted from here may still hold"
    )
    return parser


def _main(argv: Sequence[str]) -> None:
    split = argv.index("--") if "--" in argv else len(argv)
    flags, command = parse_flags(argv[:split]), tuple(argv[split + 1 :])
    args = build_parser().parse_args(flags.rest)
    if args.list:
        print(ledger.named(ledger.everything()) or "Nothing is noted.")
        return
    if not flags.gin_files and not flags.bindings:
        raise ConfigError("--gin_file", None, "a job file, such as configs/jobs/v5p_128.gin")
    bindings = [*flags.bindings, *([f"Job.command = {command!r}"] if command else [])]
    resolved = load("Job", flags.gin_files, bindings, flags.search_paths, flags.allow_imports)
    for name in resolved.unused_own:
        print(f"submit: {name} is set, but this job does not use it", file=sys.stderr)
    if status := _submit(resolved.call(), args.dry_run, args.delete):
        sys.exit(status)


def _submit(job: Job, dry_run: bool, delete: bool) -> int:
    """Does what was asked and returns the status to exit with."""
    if isinstance(job.target, LocalProcesses):
        return _run_here(job, dry_run)
    if isinstance(job.target, Gke):
        if dry_run:
            print(gke.render(job))
        elif delete:
            gke.delete(job)
        else:
            gke.submit(job)
        return 0
    if dry_run:
        print(queued.render(job, controller.commit_of(job.target.code)))
        return 0
    keeper = controller.Controller(job)
    try:
        if delete:
            keeper.delete()
            return 0
        return keeper.run()
    except Terminated as e:
        return 128 + e.signum


def _run_here(job: Job, dry_run: bool) -> int:
    target = job.target
    if dry_run:
        given = [f"{name}={value!r}" for name, value in job.environment]
        given += [f"{name}=(the value of {other})" for name, other in job.secrets]
        print("\n".join([*given, f"{target.processes} x {job.command!r}"]))
        return 0
    for name, other in job.secrets:
        if other not in os.environ:
            raise ConfigError("Job.secrets", other, "a variable that this shell has")
        os.environ[name] = os.environ[other]
    os.environ.update(job.environment)
    return local.run(
        local.Local(
            command=job.command,
            processes=target.processes,
            devices=target.devices,
            restarts=job.restarts,
            backoff_seconds=job.backoff_seconds,
            most_backoff_seconds=job.most_backoff_seconds,
            settled_seconds=job.settled_seconds,
        )
    )
