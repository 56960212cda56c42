"""SLURM's commands, called as rarely as possible: one call per question, and never in a loop that waits for a
job.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ccr_dist.errors import ConfigError, EngineError

# between tries while slurmctld does not answer; each try may take SLURM's own timeout on top
PAUSES_S = (2, 5, 10, 20, 40, 80, 160)
AWAY = re.compile(
    r"Unable to contact|Connection refused|Socket timed out|Transport endpoint|Zero Bytes|connection failure", re.I
)
# SLURM's commands are installed, and nothing tells them where the controller is.
UNSET = re.compile(r"establish a? ?configuration source|Unable to establish config|could not load slurm.conf", re.I)


ARRAY_LIMIT = 1000  # tasks in an array, if the site reports no limit


class Refused(ConfigError):
    """sbatch rejects a script: no such partition, more than a node has."""


def call(*command: str) -> str:
    """Return what a command of SLURM prints. Retries for some minutes while slurmctld does not answer. Raises
    EngineError, ConfigError.
    """
    for pause in (*PAUSES_S, None):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            raise ConfigError(
                f"{command[0]} is not on the PATH: do this on a login node; `ccr-dist run` needs no SLURM"
            ) from None
        if done.returncode == 0:
            return done.stdout
        if pause is None or not AWAY.search(done.stderr):
            break
        time.sleep(pause)
    if AWAY.search(done.stderr) or UNSET.search(done.stderr):
        raise EngineError(
            f"{command[0]}: {_no_answer(done.stderr)}; do this on a login node, where `scontrol ping` works"
        )
    raise EngineError(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")


def _no_answer(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("*")]
    return f"SLURM's controller does not answer on this machine ({lines[-1] if lines else 'no message'})"


def not_at_hand() -> str | None:
    """Why SLURM cannot be asked here; None where its controller answers. Asks once, without waiting for it."""
    if shutil.which("sbatch") is None:
        return "sbatch is not on the PATH"
    done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True)
    return None if done.returncode == 0 and " UP" in done.stdout else _no_answer(done.stderr or done.stdout)


def submit(script: Path, *options: str) -> str:
    """The job's id. Raises Refused with SLURM's reason."""
    try:
        return call("sbatch", "--parsable", *options, str(script)).strip().partition(";")[0]
    except EngineError as error:
        raise Refused(str(error)) from None


def try_out(script: Path) -> None:
    """`sbatch --test-only`. Raises Refused with SLURM's reason."""
    try:
        call("sbatch", "--test-only", str(script))
    except EngineError as error:
        raise Refused(re.sub(r"^.*?--test-only \S+: (sbatch: error: )?", "", str(error))) from None


@dataclass(frozen=True)
class Job:
    """state: as scontrol says it (RUNNING, COMPLETING, PENDING ...). restarts: how often it was requeued so far.
    preempted: SLURM wants its nodes back. excluded: nodes, as a list.
    """

    state: str
    restarts: int
    preempted: bool
    timed_out: bool
    excluded: str | None


def job(number: str) -> Job:
    text = call("scontrol", "show", "job", "-o", number)
    # The first of repeated keys counts: paths, which may contain anything, come after the keys that are read here.
    fields = dict(part.partition("=")[::2] for part in reversed(text.split()) if "=" in part)
    excluded = fields.get("ExcNodeList", "(null)")
    return Job(
        state=fields.get("JobState", "?"),
        restarts=int(fields.get("Restarts", "0")),
        preempted=fields.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"),
        timed_out=fields.get("Reason") == "TimeLimit",
        excluded=None if excluded == "(null)" else excluded,
    )


def requeue(number: str, exclude: Sequence[str], excluded: str | None) -> None:
    """Run the job again, without these nodes. SLURM accepts the exclusion only for waiting jobs; this process has
    KillWait seconds for it.
    """
    call("scontrol", "requeue", number)
    if exclude:
        call(
            "scontrol",
            "update",
            f"JobId={number}",
            "ExcNodeList=" + ",".join([*([excluded] if excluded else []), *exclude]),
        )


def array_limit() -> int:
    """Tasks that one array of this site may have."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"))
    return max(1, int(match[1]) - 1) if match else ARRAY_LIMIT


@dataclass(frozen=True)
class Queued:
    """A line of squeue: an array task has its own."""

    job: str
    task: int | None
    state: str
    reason: str
    nodes: str
    comment: str


def queue(jobs: Sequence[str] = ()) -> list[Queued]:
    """These jobs, or all of this user, including ended ones that SLURM still remembers. One call."""
    which = ["--jobs=" + ",".join(jobs)] if jobs else ["--me"]
    try:
        text = call("squeue", "--noheader", "--array", "--states=all", "--format=%F|%K|%T|%r|%N|%k", *which)
    except EngineError as error:
        if "Invalid job id" in str(error):  # all of them are forgotten
            return []
        raise
    lines = [line.split("|", 5) for line in text.splitlines()]
    return [Queued(job, int(task) if task.isdecimal() else None, *rest) for job, task, *rest in lines]
