"""Calls SLURM's commands, as rarely as possible: one call per question, and never in a loop that waits for a job."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ccr_dist.errors import ConfigError, EngineError

# seconds between attempts while slurmctld does not answer; each may take SLURM's own timeout as well
PAUSES_S = (2, 5, 10, 20, 40, 80, 160)
AWAY = re.compile(
    r"Unable to contact|Connection refused|Socket timed out|Transport endpoint|Zero Bytes|connection failure", re.I
)
# SLURM's commands are installed, but not configured to find the controller.
UNSET = re.compile(r"establish a? ?configuration source|Unable to establish config|could not load slurm.conf", re.I)


ARRAY_LIMIT = 1000  # tasks in an array, if the site reports no limit


class ScriptRefused(ConfigError):
    """sbatch rejects a script: no such partition, more than a node has, ..."""


def call(*command: str) -> str:
    """Run a command of SLURM; retries for some minutes while slurmctld does not answer.

    Args:
        command: Its words.

    Returns:
        What it prints.

    Raises:
        ConfigError: The command is not on the PATH.
        EngineError: The command fails, or slurmctld does not answer.
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
    """Why SLURM cannot be used here, or None if its controller answers. Asks once, without retries."""
    if shutil.which("sbatch") is None:
        return "sbatch is not on the PATH"
    done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True)
    return None if done.returncode == 0 and " UP" in done.stdout else _no_answer(done.stderr or done.stdout)


def submit(script: Path, *options: str) -> str:
    """Submit a script. Returns the job's id; raises ScriptRefused with SLURM's reason."""
    try:
        return call("sbatch", "--parsable", *options, str(script)).strip().partition(";")[0]
    except EngineError as error:
        raise ScriptRefused(str(error)) from None


def try_out(script: Path) -> None:
    """Ask SLURM whether it accepts a script (`sbatch --test-only`). Raises ScriptRefused with its reason."""
    try:
        call("sbatch", "--test-only", str(script))
    except EngineError as error:
        raise ScriptRefused(re.sub(r"^.*?--test-only \S+: (sbatch: error: )?", "", str(error))) from None


@dataclass(frozen=True)
class SlurmJob:
    """A job in SLURM.

    Attributes:
        state: As scontrol reports it: RUNNING, COMPLETING, PENDING, ...
        restarts: How often it was requeued so far.
        preempted: Whether SLURM takes its nodes back.
        timed_out: Whether it reached its time limit.
        excluded: Excluded nodes in SLURM's notation, or None.
    """

    state: str
    restarts: int
    preempted: bool
    timed_out: bool
    excluded: str | None


def job(number: str) -> SlurmJob:
    """The job of an id."""
    text = call("scontrol", "show", "job", "-o", number)
    # The first of repeated keys counts: paths, which may contain anything, come after the keys that are read here.
    fields = dict(part.partition("=")[::2] for part in reversed(text.split()) if "=" in part)
    excluded = fields.get("ExcNodeList", "(null)")
    return SlurmJob(
        state=fields.get("JobState", "?"),
        restarts=int(fields.get("Restarts", "0")),
        preempted=fields.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"),
        timed_out=fields.get("Reason") == "TimeLimit",
        excluded=None if excluded == "(null)" else excluded,
    )


def requeue(number: str, exclude: Sequence[str], excluded: str | None) -> None:
    """Requeue a job, then exclude nodes: SLURM accepts that only for waiting jobs, and this process has KillWait
    seconds.

    Args:
        number: Id of the job.
        exclude: Nodes to exclude in addition.
        excluded: Nodes already excluded, in SLURM's notation.
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
    """Most tasks of an array at this site."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"))
    return max(1, int(match[1]) - 1) if match else ARRAY_LIMIT


@dataclass(frozen=True)
class Queued:
    """A line of squeue; each array task has its own."""

    job: str
    task: int | None
    state: str
    reason: str
    nodes: str
    comment: str


def queue(jobs: Sequence[str] = ()) -> list[Queued]:
    """The given jobs, or all of this user, including ended ones that SLURM still remembers. One call."""
    which = ["--jobs=" + ",".join(jobs)] if jobs else ["--me"]
    try:
        text = call("squeue", "--noheader", "--array", "--states=all", "--format=%F|%K|%T|%r|%N|%k", *which)
    except EngineError as error:
        if "Invalid job id" in str(error):  # SLURM remembers none of them
            return []
        raise
    lines = [line.split("|", 5) for line in text.splitlines()]
    return [Queued(job, int(task) if task.isdecimal() else None, *rest) for job, task, *rest in lines]
