"""A step as a task of SkyPilot, to be started as a managed job (`sky jobs launch`), which recovers from the loss of its
nodes.

`run` is a shell script: every word of ours is quoted in it, and only SkyPilot's own variables are expanded.
"""

from __future__ import annotations

import shlex
from typing import Any

from ccr_dist import errors
from ccr_dist.cluster.elsewhere.sections import SkyPilot
from ccr_dist.cluster.elsewhere.steps import gib, processes_of, ranked, single
from ccr_dist.cluster.elsewhere.text import name_of
from ccr_dist.cluster.pipeline import RANKS, Job, Plan
from ccr_dist.cluster.profile import Profile

NODE, HEAD = '"$SKYPILOT_NODE_RANK"', '"$head"'


def step_task(plan: Plan, job: Job, profile: Profile, site: SkyPilot) -> dict[str, Any]:
    """The task of a step, as YAML has it.

    Args:
        plan: The pipeline.
        job: The step.
        profile: The site profile.
        site: Its section for SkyPilot.
    """
    nodes = processes_of(job).nodes if job.kind in RANKS else job.step.tasks
    task: dict[str, Any] = {"name": name_of(plan.pipeline.name, job.name), "num_nodes": nodes}
    if site.workdir:
        task["workdir"] = site.workdir
    task["resources"] = _resources(job, profile, site)
    task["envs"] = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"} | profile.environment
    if site.secrets:
        task["secrets"] = dict.fromkeys(site.secrets)
    if site.mounts:
        task["file_mounts"] = dict(site.mounts)
    if site.volumes:
        task["volumes"] = dict(site.volumes)
    if site.setup:
        task["setup"] = "\n".join(site.setup) + "\n"
    task["run"] = "\n".join([f"cd {shlex.quote(site.folder)} || exit 5", *profile.setup, *_start(job, profile, site)])
    task["run"] += "\n"
    return task


def _resources(job: Job, profile: Profile, site: SkyPilot) -> dict[str, Any]:
    found: dict[str, Any] = {"infra": site.infra} if site.infra else {}
    if job.step.gpus and site.accelerator:
        found["accelerators"] = {site.accelerator: job.step.gpus}
    found["cpus"] = f"{job.step.cpus}+"
    if memory := gib(job.step.memory):
        found["memory"] = f"{memory}+"
    found["use_spot"] = site.use_spot
    if site.image:
        found["image_id"] = site.image
    if site.disk_gib:
        found["disk_size"] = site.disk_gib
    # It recovers from lost nodes in any case; of exit codes it can only be told which ones do not count.
    found["job_recovery"] = {
        "max_restarts_on_errors": profile.retries,
        "recover_on_exit_codes": [errors.STOPPED],
    }
    return found


def _start(job: Job, profile: Profile, site: SkyPilot) -> list[str]:
    if job.kind not in RANKS:
        return [f"exec {shlex.join(single(profile.python, job, 'skypilot'))}"]
    words = ranked(profile.python, job, node="\0node", head="\0head", port=site.port)
    ours = {"\0node": NODE, "\0head": HEAD}
    return [
        "head=${SKYPILOT_NODE_IPS%%$'\\n'*}",
        # The id stays the same after a recovery: by its attempt a successor takes over the folder of a run whose lock a
        # lost node still holds.
        'export CCR_ATTEMPT="${SKYPILOT_TASK_ID//./-}.$(date +%s)"',
        f"exec {' '.join(ours.get(word) or shlex.quote(word) for word in words)}",
    ]
