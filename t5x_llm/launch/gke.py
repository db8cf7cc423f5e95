"""A job as a JobSet of Kubernetes (jobset.sigs.k8s.io), for GKE's TPU node pools."""

from __future__ import annotations

import re
import shlex
import time
from typing import Any

import yaml

from t5x_llm.core.errors import RESTARTABLE
from t5x_llm.launch.calls import Call, CallOutcome, CloudError, call, say
from t5x_llm.launch.job import Gke, Job
from t5x_llm.launch.ledger import Holding, Ledger, named

_NAME_LABEL = "jobset.sigs.k8s.io/jobset-name"
_EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
# Statuses that starting again helps, and those of processes that a signal ended.
_AGAIN = [*RESTARTABLE, 134, 137, 139, 143]


_SECONDS, _TRIES, _PAUSE_SECONDS = 120.0, 3, 5.0
# What giving a command again does not help.
_MISTAKE = re.compile(
    r"Forbidden|Unauthorized|[Ii]nvalid|no matches for kind|does not exist|denied|resource type"
)


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
    return _holding(job).delete_command()


def render(job: Job) -> str:
    """The commands and the manifest, as ``submit`` would give them."""
    lines = [f"# {shlex.join(apply_command(job))}", manifest(job)]
    lines += [f"# follow:  {shlex.join(follow_command(job))}"]
    return "\n".join([*lines, f"# end:     {shlex.join(delete_command(job))}"])


def submit(job: Job, call: Call = call) -> None:
    """Creates the JobSet; Kubernetes keeps it alive from then on.

    Raises:
      CloudError: kubectl is missing, refuses, or does not answer. Where the JobSet may exist all
        the same it is named, with the command that deletes it.
    """
    ledger = _ledger(job)
    ledger.add(held := _holding(job))
    outcome = _given_again(apply_command(job), call, manifest(job))
    if outcome.ok:
        print(outcome.stdout, end="")
        return
    if _exists(job, call) is False:
        ledger.discard(held)
        raise CloudError(outcome.complaint())
    raise CloudError(
        f"{outcome.complaint()}\nA JobSet of this name may exist and hold slices:\n{named([held])}"
    )


def delete(job: Job, call: Call = call) -> None:
    """Deletes the JobSet, and makes sure that it is gone.

    Raises:
      CloudError: kubectl is missing, refuses, or does not answer; what may remain is named.
    """
    ledger = _ledger(job)
    ledger.add(_holding(job))
    for held in ledger.holdings():
        outcome = _given_again(held.delete_command(), call)
        if _exists(job, call) is not False:
            said = "" if outcome.ok else f"{outcome.complaint()}\n"
            raise CloudError(f"{said}It may exist and hold slices:\n{named([held])}")
        ledger.discard(held)


def _holding(job: Job) -> Holding:
    return Holding("jobset", job.name, job.target.context or "", job.target.namespace)


def _ledger(job: Job) -> Ledger:
    return Ledger(job.name, f"{job.target.context or ''}.{job.target.namespace}")


def _exists(job: Job, call: Call) -> bool | None:
    """Returns whether the JobSet exists; None where kubectl does not say."""
    command = kubectl(job.target, "get", "jobset", job.name, "--ignore-not-found", "-o", "name")
    outcome = _given_again(command, call)
    if "doesn't have a resource type" in outcome.stderr:
        return False
    return bool(outcome.stdout.strip()) if outcome.ok else None


def _given_again(command: list[str], call: Call, text: str | None = None) -> CallOutcome:
    """Runs a command that can be given again, up to three times where that may help."""
    for attempt in range(_TRIES):
        outcome = call(command, _SECONDS, text)
        if outcome.ok or _MISTAKE.search(outcome.stderr):
            break
        if attempt < _TRIES - 1:
            say(f"{outcome.complaint()}; again")
            time.sleep(_PAUSE_SECONDS)
    return outcome
