"""Cloud TPU queued resources: the commands of gcloud that ask for them, use them and end them."""

from __future__ import annotations

import shlex

from t5x_llm.core.errors import RESTARTABLE
from t5x_llm.launch.bootstrap import archive, follow_script, start_script, status_script
from t5x_llm.launch.job import Job, QueuedResource
from t5x_llm.launch.ledger import Holding

GCLOUD = ("gcloud", "compute", "tpus", "queued-resources")


def create_command(job: Job, zone: str) -> list[str]:
    """Asks for the slices in a zone."""
    target: QueuedResource = job.target
    command = [*GCLOUD, "create", job.name, *_where(target, zone)]
    if job.slices == 1:
        command.append(f"--node-id={job.name}")
    else:
        command += [f"--node-count={job.slices}", f"--node-prefix={job.name}"]
    version = target.runtime_version or job.tpu.facts.runtime
    command += [f"--accelerator-type={job.tpu.accelerator_type}", f"--runtime-version={version}"]
    if target.capacity != "on_demand":
        command.append(f"--{target.capacity}")
    for flag in ("network", "subnetwork", "service_account"):
        if (value := getattr(target, flag)) is not None:
            command.append(f"--{flag.replace('_', '-')}={value}")
    if target.internal_ips:
        command.append("--internal-ips")
    return command


def describe_command(job: Job, zone: str) -> list[str]:
    """Prints what became of the request, as JSON."""
    return [*GCLOUD, "describe", job.name, *_where(job.target, zone), "--format=json"]


def delete_command(job: Job, zone: str) -> list[str]:
    """Gives the machines back."""
    return holding(job, zone).delete_command()


def holding(job: Job, zone: str) -> Holding:
    """Returns the request in a zone as the ledger notes it."""
    return Holding("queued-resource", job.name, job.target.project, zone)


def ssh_command(job: Job, zone: str, script: str, everywhere: bool) -> list[str]:
    """Runs a script on all machines of all slices, or on the first machine of the first."""
    which = "all" if everywhere else "0"
    command = [*GCLOUD, "ssh", job.name, *_where(job.target, zone), "--quiet"]
    command += [f"--node={which}", f"--worker={which}", f"--command={script}"]
    return command + (["--tunnel-through-iap"] if job.target.internal_ips else [])


def upload_command(job: Job, commit: str, file: str) -> list[str]:
    """Sends the code."""
    return ["gcloud", "storage", "cp", "--no-clobber", file, archive(job.target, commit)]


def _where(target: QueuedResource, zone: str) -> list[str]:
    return [f"--zone={zone}", f"--project={target.project}"]


def render(job: Job, commit: str) -> str:
    """Every command that ``Controller.run`` would give, in order, and the script it starts."""
    script = start_script(job, commit)
    lines = [f"# the code, commit {commit}", f"git archive --format=tar.gz -o code.tar.gz {commit}"]
    lines.append(shlex.join(upload_command(job, commit, "code.tar.gz")))
    for zone in job.target.zones:
        lines += [
            "",
            f"# {zone}: ask, wait at most {job.target.wait_minutes:g} minutes; else the next zone",
            shlex.join(create_command(job, zone)),
            shlex.join(describe_command(job, zone)),
        ]
    zone = job.target.zones[0]
    lines += [
        "",
        "# where it became ACTIVE: start on all machines, follow the first",
        "# (SCRIPT is printed below)",
        shlex.join(ssh_command(job, zone, "SCRIPT", everywhere=True)),
        shlex.join(ssh_command(job, zone, follow_script(job), everywhere=False)),
        shlex.join(ssh_command(job, zone, status_script(job), everywhere=True)),
        "",
        f"# preempted, or status {', '.join(map(str, RESTARTABLE))}: again, up to {job.restarts} "
        f"times in a row, after {job.pause(1):g} to {job.most_backoff_seconds:g} seconds",
        "# at the end",
        shlex.join(delete_command(job, zone)),
        "",
        "# SCRIPT",
        script,
    ]
    return "\n".join(lines)
