"""What steps are on any scheduler but SLURM: the processes of each, and what cannot be asked for there."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ccr_dist import errors
from ccr_dist.cluster.decide import NEVER
from ccr_dist.cluster.pipeline import Job, Plan
from ccr_dist.cluster.profile import Profile
from ccr_dist.redact import command_line, is_secret

# Exit codes after which the same command cannot succeed. Under SLURM a value that is not finite is tried once more from
# the checkpoint before (`decide.py`); nobody sets checkpoints aside here. A second process of a run has to end.
_SECOND = (errors.SupersededError, errors.HeldError)
FINAL = tuple(sorted(kind.exit_code for kind in (*NEVER, errors.NonFiniteError, errors.MismatchError, *_SECOND)))
# Settings of a profile that only SLURM has, or that only its scripts use.
SLURM_ONLY = (
    *("partition", "account", "qos", "constraint", "gpus", "prefix", "time", "lead_s", "scratch", "mail", "mail_type"),
    *("max_array", "sbatch", "preflight", "free_disk_gib"),
)
_SHORTEST = 8  # of a secret: `true` is none
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Processes:
    """The processes of a step.

    Attributes:
        nodes: Number of nodes.
        here: Processes on each node.
    """

    nodes: int
    here: int

    @property
    def world(self) -> int:
        """Number of processes in all."""
        return self.nodes * self.here


def processes_of(job: Job) -> Processes:
    """The processes of a step, one a GPU unless `ranks` says otherwise."""
    return Processes(job.step.least_nodes, job.step.ranks or job.step.gpus or 1)


def ranked(python: str, job: Job, *, node: str, head: str, port: int) -> list[str]:
    """Words that start the processes of a training on one of its nodes.

    They do not bind to CPUs, as they do under SLURM (`cluster/rank.py`): pods of one node see the same ones.

    Args:
        python: The interpreter.
        job: The step.
        node: Number of this node, or what stands for it.
        head: Host name of the first node, or what stands for it.
        port: Port on the first node.
    """
    count = processes_of(job)
    machines = ["--num_machines", str(count.nodes), "--machine_rank", node]
    meet = ["--main_process_ip", head, "--main_process_port", str(port)]
    return [
        *(python, "-m", "ccr_dist.launcher", "--config_file", job.step.launch, "--num_processes", str(count.world)),
        *([*machines, *meet] if count.nodes > 1 else []),
        *("-m", "ccr_dist", *job.command, "--world", str(count.world)),
    ]


def single(python: str, job: Job, share: str) -> list[str]:
    """Words that start one worker of a step; `share`: what `--share` has to be where several work on it.

    `cluster/rank.py` hears SIGTERM from the start, which the first process of a container would else ignore while it
    imports.
    """
    return [python, "-m", "ccr_dist.cluster.rank", *job.command, *(["--share", share] if job.step.tasks > 1 else [])]


def gib(memory: str | None) -> int:
    """Memory as SLURM has it (`400G`, without a unit MiB) in GiB, rounded up; 0 if it says nothing, as None and 0 do
    (for SLURM all that the node has).
    """
    if memory is None:
        return 0
    unit = memory[-1] if memory[-1] in UNITS else "M"
    return math.ceil(int(memory.rstrip("KMGT")) * UNITS[unit] / UNITS["G"])


def wrong(plan: Plan, *, target: str, gpu: str | None, key: str) -> Iterator[str]:
    """Problems of a pipeline that only these schedulers have.

    Args:
        plan: The pipeline.
        target: What the scheduler is called.
        gpu: What the profile calls a GPU; None: nothing.
        key: The profile's key for that, and an example.
    """
    for name, job in plan.jobs.items():
        place = plan.document.place(("steps", name))
        if "-" in job.step.nodes:
            yield (
                f"{place}: step {name}: nodes: {job.step.nodes}: {target} starts a fixed number of nodes: write one,"
                f" such as steps.{name}.nodes={job.step.least_nodes}"
            )
        if job.step.gpus and gpu is None:
            yield (
                f"{place}: step {name}: gpus: {job.step.gpus}: the profile does not say what a GPU is called on"
                f" {target}: set {key}"
            )
        if job.kind == "train" and not job.step.gpus and job.step.ranks is None:
            yield (
                f"{place}: step {name}: gpus: a training without GPUs would be one process on a CPU: write gpus: N, or"
                " ranks: N if it is to train on CPUs"
            )


def unused(plan: Plan, profile: Profile, names: Sequence[str], target: str) -> Iterator[str]:
    """Notes on settings that have no meaning there.

    Args:
        plan: The pipeline.
        profile: The site profile.
        names: Settings of the profile.
        target: What the scheduler is called.
    """
    if said := [name for name in names if name in profile.model_fields_set]:
        yield f"the profile's {', '.join(said)}: not used on {target}"
    if limited := [name for name, job in plan.jobs.items() if job.step.time is not None]:
        yield f"time of step {', '.join(limited)}: not used on {target}, where a step runs until it ends"


def exposed(plan: Plan, profile: Profile) -> Iterator[str]:
    """Notes on what looks like a secret and will stand in the files, where everybody who may look at the objects reads
    it.

    Args:
        plan: The pipeline.
        profile: The site profile.
    """
    advice = "in plain text in these files: if it is a secret, name it under `secrets` of the profile"
    for name, value in profile.environment.items():
        if is_secret(name) and len(value) >= _SHORTEST and not value.startswith("/"):
            yield f"environment.{name} of the profile will stand {advice}"
    for name, job in plan.jobs.items():
        if command_line(job.command) != shlex.join(job.command):
            yield f"{plan.place(name)}: step {name}: a password or key in its command will stand {advice} instead"
