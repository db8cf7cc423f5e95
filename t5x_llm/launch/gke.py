"""A job as a JobSet of Kubernetes (jobset.sigs.k8s.io), for GKE's TPU node pools."""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

import yaml

from t5x_llm.core.errors import RESTARTABLE, T5xLLMError
from t5x_llm.launch.job import Gke, Job

_NAME_LABEL = "jobset.sigs.k8s.io/jobset-name"
_EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
# Statuses that starting again helps, and those of processes that a signal ended.
_AGAIN = [*RESTARTABLE, 134, 137, 139, 143]


def jobset(job: Job) -> dict[str, Any]:
    """The JobSet object.

    Every slice is one replicated Job whose pods are the slice's hosts. A pod that ends with a
    status that starting again does not help fails the whole set; others count as restarts.
    """
    target: Gke = job.target
    labels = {"kueue.x-k8s.io/queue-name": target.queue} if target.queue else {}
    hosts = job.tpu.hosts
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "namespace": target.namespace,
            "labels": {"app.kubernetes.io/managed-by": "t5x-llm", **labels},
            "annotations": {_EXCLUSIVE: "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": job.restarts,
                "rules": [
                    {
                        "name": "mistake",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    },
                ],
            },
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": job.slices,
                    "template": {
                        "spec": {
                            "parallelism": hosts,
                            "completions": hosts,
                            "completionMode": "Indexed",
                            "backoffLimit": 0,
                            "podFailurePolicy": {
                                "rules": [
                                    {
                                        "action": "FailJob",
                                        "onExitCodes": {
                                            "containerName": "run",
                                            "operator": "NotIn",
                                            "values": [0, *_AGAIN],
                                        },
                                    }
                                ]
                            },
                            "template": {"spec": _pod(job)},
                        }
                    },
                }
            ],
        },
    }


def _pod(job: Job) -> dict[str, Any]:
    target, tpu = job.target, job.tpu
    selector = {
        "cloud.google.com/gke-tpu-accelerator": tpu.facts.gke,
        "cloud.google.com/gke-tpu-topology": tpu.topology_name,
    }
    pod: dict[str, Any] = {"restartPolicy": "Never", "nodeSelector": selector}
    if target.capacity == "spot":
        selector["cloud.google.com/gke-spot"] = "true"
        spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        pod["tolerations"] = [{**spot, "effect": "NoSchedule"}]
    if target.capacity == "reserved":
        selector["cloud.google.com/reservation-name"] = target.reservation
    if target.service_account:
        pod["serviceAccountName"] = target.service_account
    pod["terminationGracePeriodSeconds"] = target.grace_seconds
    chips = {"google.com/tpu": tpu.chips_per_host}
    pod["containers"] = [
        {
            "name": "run",
            "image": target.image,
            "command": [_literal(word) for word in job.command],
            "env": [
                *({"name": name, "value": _literal(value)} for name, value in job.environment),
                *(_secret(name, reference) for name, reference in job.secrets),
            ],
            "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
            "resources": {"requests": dict(chips), "limits": dict(chips)},
        }
    ]
    return pod


def _secret(name: str, reference: str) -> dict[str, Any]:
    secret, _, key = reference.partition(":")
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _literal(text: str) -> str:
    """``text`` where Kubernetes would put variables in place of ``$(NAME)``; ``$$`` is a ``$``."""
    return text.replace("$", "$$")


def manifest(job: Job) -> str:
    """YAML for ``kubectl apply``."""
    return yaml.safe_dump(jobset(job), sort_keys=False, width=10_000)


def kubectl(target: Gke, *words: str) -> list[str]:
    """A command of kubectl in the target's cluster and namespace."""
    context = [] if target.context is None else [f"--context={target.context}"]
    return ["kubectl", *context, f"--namespace={target.namespace}", *words]


def apply_command(job: Job) -> list[str]:
    """Creates or updates the JobSet from standard input."""
    return kubectl(job.target, "apply", "-f", "-")


def follow_command(job: Job) -> list[str]:
    """Prints the logs of the first slice's first host, as they come."""
    first = f"{_NAME_LABEL}={job.name},jobset.sigs.k8s.io/job-index=0"
    first += ",batch.kubernetes.io/job-completion-index=0"
    return kubectl(job.target, "logs", "--follow", "--tail=-1", f"--selector={first}")


def delete_command(job: Job) -> list[str]:
    """Ends the job and frees its slices."""
    return kubectl(job.target, "delete", "jobset", job.name, "--ignore-not-found")


def render(job: Job) -> str:
    """The commands and the manifest, as ``submit`` would give them."""
    lines = [f"# {shlex.join(apply_command(job))}", manifest(job)]
    lines += [f"# follow:  {shlex.join(follow_command(job))}"]
    return "\n".join([*lines, f"# end:     {shlex.join(delete_command(job))}"])


def submit(job: Job) -> None:
    """Creates the JobSet; Kubernetes keeps it alive from then on.

    Raises:
      T5xLLMError: kubectl is missing or refuses.
    """
    _run(apply_command(job), manifest(job))


def delete(job: Job) -> None:
    """Deletes the JobSet.

    Raises:
      T5xLLMError: kubectl is missing or refuses.
    """
    _run(delete_command(job))


def _run(command: list[str], text: str | None = None) -> None:
    try:
        found = subprocess.run(command, input=text, text=True)
    except FileNotFoundError as e:
        raise T5xLLMError("kubectl is not installed; t5x-llm submit needs it for @Gke().") from e
    if found.returncode:
        raise T5xLLMError(f"{' '.join(command[:4])} ended with status {found.returncode}.")
