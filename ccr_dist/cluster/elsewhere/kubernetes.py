"""A step as an object of Kubernetes: an Indexed Job, or for a training a JobSet (jobset.sigs.k8s.io), which makes the
headless service through which its pods find each other.

The container's own words are the command, without a shell. Kubernetes replaces `$(NAME)` in them; a dollar sign of ours
is doubled, which means itself.

What an exit code means is told to Kubernetes in rules: some fail the task for good, some do not count (a node was taken
away; the command stopped on request), all others count towards the profile's `retries`.
"""

from __future__ import annotations

import math
from typing import Any

from ccr_dist import errors
from ccr_dist.cluster.elsewhere.sections import SHARED_MEMORY, Kubernetes
from ccr_dist.cluster.elsewhere.steps import FINAL, gib, processes_of, ranked, single
from ccr_dist.cluster.elsewhere.text import name_of
from ccr_dist.cluster.pipeline import RANKS, Job, Plan
from ccr_dist.cluster.profile import Profile

CONTAINER, NODES = "main", "nodes"
GONE = [{"type": "DisruptionTarget", "status": "True"}]  # evicted, preempted, or its node was drained or lost
RESTART = "JOBSET_RESTART"
MESSAGE = "rule at index [12]$"  # of a Job that failed by one of the rules that do not count (`_rules`)


def step_object(plan: Plan, job: Job, profile: Profile, site: Kubernetes) -> dict[str, Any]:
    """The object of a step, as YAML has it.

    Args:
        plan: The pipeline.
        job: The step.
        profile: The site profile.
        site: Its section for Kubernetes.
    """
    name = name_of(plan.pipeline.name, job.name)
    labels = {"app.kubernetes.io/name": "ccr-dist", "app.kubernetes.io/instance": name}
    meta: dict[str, Any] = {"name": name}
    if site.namespace:
        meta["namespace"] = site.namespace
    meta["labels"] = labels | ({"kueue.x-k8s.io/queue-name": site.queue} if site.queue else {})
    build = _set if job.kind in RANKS else _job
    return build(meta, job, profile, site, labels)


def _job(meta: dict[str, Any], job: Job, profile: Profile, site: Kubernetes, labels: dict[str, str]) -> dict[str, Any]:
    """Workers that share the shards: an index each, tried again by itself."""
    tasks = job.step.tasks
    words = single(profile.python, job, f"kubernetes/{tasks}")
    spec = {
        "completions": tasks,
        "parallelism": min(tasks, profile.throttle or tasks),
        "completionMode": "Indexed",
        "backoffLimitPerIndex": profile.retries,
        "podReplacementPolicy": "Failed",  # not while the pod before still ends
        "podFailurePolicy": {"rules": _rules("FailIndex", "Ignore")},
        "template": _pod([_literal(word) for word in words], job, profile, site, labels, []),
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}


def _set(meta: dict[str, Any], job: Job, profile: Profile, site: Kubernetes, labels: dict[str, str]) -> dict[str, Any]:
    """A training: its nodes start together, and when one is gone all start again from the last checkpoint."""
    name, nodes = meta["name"], job.step.least_nodes
    words = ranked(profile.python, job, node="\0", head=f"{name}-{NODES}-0-0.{name}", port=site.port)
    command = ["$(JOB_COMPLETION_INDEX)" if word == "\0" else _literal(word) for word in words]
    # By its attempt a successor takes over the folder of a run whose lock a lost node still holds.
    attempt: list[dict[str, Any]] = [
        {
            "name": RESTART,
            "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['jobset.sigs.k8s.io/restart-attempt']"}},
        },
        {"name": "CCR_ATTEMPT", "value": f"{name}.$({RESTART})"},
    ]
    spec = {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": name},
        "failurePolicy": {
            "maxRestarts": profile.retries,
            "rules": [
                {
                    "name": "stoppedOrGone",
                    "action": "RestartJobSetAndIgnoreMaxRestarts",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                    "onJobFailureMessagePatterns": [MESSAGE],
                },
                {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
            ],
        },
        "replicatedJobs": [
            {
                "name": NODES,
                "replicas": 1,
                "template": {
                    "spec": {
                        "completions": nodes,
                        "parallelism": nodes,
                        "completionMode": "Indexed",
                        "backoffLimit": 0,
                        "podFailurePolicy": {"rules": _rules("FailJob", "FailJob")},
                        "template": _pod(command, job, profile, site, labels, attempt),
                    }
                },
            }
        ],
    }
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": meta, "spec": spec}


def _rules(final: str, free: str) -> list[dict[str, Any]]:
    """Rule 0: exit codes that fail for good. Rules 1 and 2: what does not count. The actions are those of a Job."""

    def codes(*values: int) -> dict[str, Any]:
        return {"containerName": CONTAINER, "operator": "In", "values": list(values)}

    return [
        {"action": final, "onExitCodes": codes(*FINAL)},
        {"action": free, "onPodConditions": GONE},
        {"action": free, "onExitCodes": codes(errors.STOPPED)},
    ]


def _literal(text: str) -> str:
    """Text that Kubernetes leaves as it is."""
    return text.replace("$", "$$")


def _pod(
    command: list[str],
    job: Job,
    profile: Profile,
    site: Kubernetes,
    labels: dict[str, str],
    attempt: list[dict[str, Any]],
) -> dict[str, Any]:
    """The template of a step's pods. `command`: as Kubernetes reads it."""
    # A pod sees all CPUs of its node, however few it asks for.
    threads = max(1, job.step.cpus // (processes_of(job).here if job.kind in RANKS else 1))
    values = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(threads)}
    values |= profile.environment
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": site.image,
        "workingDir": site.folder,
        "command": command,
        "env": [*attempt, *({"name": key, "value": _literal(value)} for key, value in values.items())],
    }
    if site.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in site.secrets]
    container["resources"] = _resources(job, site)
    mounts: list[dict[str, Any]] = []
    volumes: list[dict[str, Any]] = []
    for number, volume in enumerate(site.volumes):
        read_only = {"readOnly": True} if volume.read_only else {}
        mounts.append({"name": f"volume-{number}", "mountPath": volume.mount} | read_only)
        volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": volume.claim} | read_only})
    if site.shared_memory:
        mounts.append({"name": "shared-memory", "mountPath": SHARED_MEMORY})
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": site.shared_memory}})
    container["volumeMounts"] = mounts
    spec: dict[str, Any] = {
        "restartPolicy": "Never",  # rules for exit codes want it
        "terminationGracePeriodSeconds": math.ceil(profile.grace_s),
        **({"serviceAccountName": site.service_account} if site.service_account else {}),
        "automountServiceAccountToken": site.service_account is not None,
        **({"priorityClassName": site.priority} if site.priority else {}),
        **({"imagePullSecrets": [{"name": name} for name in site.pull_secrets]} if site.pull_secrets else {}),
        **({"nodeSelector": dict(site.node_selector)} if site.node_selector else {}),
        **(
            {"tolerations": [each.model_dump(exclude_none=True) for each in site.tolerations]}
            if site.tolerations
            else {}
        ),
        "containers": [container],
        "volumes": volumes,
    }
    return {"metadata": {"labels": labels}, "spec": spec}


def _resources(job: Job, site: Kubernetes) -> dict[str, Any]:
    """GPUs and memory as request and limit; of CPUs only the request, since what is idle may be used."""
    memory = gib(job.step.memory)
    limits: dict[str, Any] = {"memory": f"{memory}Gi"} if memory else {}
    if job.step.gpus and site.gpu:
        limits[site.gpu] = str(job.step.gpus)
    if job.step.least_nodes > 1:
        limits |= {name: str(value) for name, value in site.resources.items()}
    return {"requests": {"cpu": str(job.step.cpus), **limits}} | ({"limits": limits} if limits else {})
