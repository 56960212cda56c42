"""The run folder of a pipeline: what was requested, what was queued, what is done.

RUN/pipeline.yaml, profile.yaml     as submitted, with overrides applied
RUN/record.json                     by whom, when, from which commit, with which software
RUN/jobs.jsonl                      a line before each sbatch and one after it: a submission that dies in between is
                                    found by its token
RUN/steps/STEP/                     script.sbatch, logs/, attempts/TASK.jsonl (`attempts.py`)
RUN/stop                            made by a person: running commands save and stop, and are not restarted
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import getpass
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ccr_dist.cluster import slurm
from ccr_dist.cluster.pipeline import Plan, load_plan
from ccr_dist.cluster.profile import Profile, load_profile
from ccr_dist.cluster.slurm import Queued
from ccr_dist.data.storage.json_lines import append_line, has_types, read_lines
from ccr_dist.data.storage.store import pretty_json, replace_atomic
from ccr_dist.environment import commit
from ccr_dist.errors import ConfigError, DataError, HeldError
from ccr_dist.places import folder_to_make
from ccr_dist.redact import command_line

OVER = frozenset(
    {
        "COMPLETED",
        "FAILED",
        "CANCELLED",
        "TIMEOUT",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "BOOT_FAIL",
        "DEADLINE",
        "PREEMPTED",
        "REVOKED",
    }
)


@dataclass
class Submitted:
    """A job of a step, or an array of jobs.

    Attributes:
        token: Its comment in SLURM, by which it is found after a crash.
        step: Name of the step.
        tasks: Tasks of the step.
        offset: Task number of the array's index 0.
        job: Its id; None if it is not known whether it was queued.
        fresh: Whether this process queued it.
        asked: Digests of what was requested (`submit.py`); None for submissions of earlier versions.
    """

    token: str
    step: str
    tasks: list[int]
    offset: int
    job: str | None = None
    fresh: bool = False
    asked: Mapping[str, Any] | None = None


@dataclass
class Ledger:
    """The submissions of a run folder, from its jobs.jsonl."""

    run: Path
    submitted: list[Submitted] = field(default_factory=list)

    @classmethod
    def read(cls, run: Path) -> Ledger:
        """Read jobs.jsonl.

        Raises:
            DataError: A line is damaged, or not what `write` wrote. Without it a job might be queued twice.
        """
        found: dict[str, Submitted] = {}
        path = run / "jobs.jsonl"
        lines = read_lines(path, _sound)
        begun = {values["token"] for values in lines.values if values["event"] == "submitting"}
        lost = [each["job"] for each in lines.values if each["event"] == "submitted" and each["token"] not in begun]
        what = "which jobs of this pipeline there are, then take the line out"
        if lost:
            what = f"what job {lost[0]} is, then take its lines out"
        lines.require(path, f"see in the site's queue {what}", "so that a job may be unknown")
        if lost:
            raise DataError(f"{path}: the line before that of job {lost[0]} is gone; see in the site's queue {what}")
        for values in lines.values:
            if values["event"] == "submitting":
                found[values["token"]] = Submitted(
                    values["token"], values["step"], values["tasks"], values["offset"], asked=values.get("asked")
                )
            elif values["event"] == "submitted":
                found[values["token"]].job = values["job"]
        return cls(run, list(found.values()))

    def write(self, **line: Any) -> None:
        """Append a line, with the time."""
        append_line(
            self.run / "jobs.jsonl", {**line, "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
        )

    def jobs(self) -> list[str]:
        """The known ids of jobs."""
        return [each.job for each in self.submitted if each.job is not None]


_TYPES: dict[str, Any] = {"token": str, "step": str, "tasks": list, "offset": int, "job": str, "asked": dict}
_NEEDED = {"submitting": ("token", "step", "tasks", "offset"), "submitted": ("token", "job"), "cancelled": ()}


def _sound(values: dict[str, Any]) -> bool:
    needed = _NEEDED.get(str(values.get("event")))
    return needed is not None and all(key in values for key in needed) and has_types(values, _TYPES)


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Context manager: locks the run folder, so that only one process submits, resumes or runs the pipeline.

    Raises:
        HeldError: Another process holds the lock.
    """
    folder_to_make(run)
    run.mkdir(parents=True, exist_ok=True)
    with (run / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeldError(f"{run}: another process submits or runs this pipeline; wait for it") from None
        yield


def record(plan: Plan, profile: Profile | None, software: Mapping[str, str] | None) -> None:
    """Record what is requested, and from where.

    Args:
        plan: The pipeline.
        profile: The site profile; None without SLURM.
        software: Versions that the nodes must have, if known.
    """
    run = plan.run
    run.mkdir(parents=True, exist_ok=True)
    replace_atomic(run / "pipeline.yaml", _yaml(plan.pipeline.model_dump(mode="json", exclude_defaults=True)))
    if profile is not None:
        replace_atomic(run / "profile.yaml", _yaml(profile.model_dump(mode="json", exclude_defaults=True)))
    facts = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "user": getpass.getuser(),
        "host": socket.gethostname(),
        "folder": str(Path.cwd()),
        "commit": commit(),
        "command": command_line(),
        "software": dict(software) if software is not None else None,
    }
    replace_atomic(run / "record.json", pretty_json(facts))


def _yaml(values: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True).encode()


def forbid_stopped(run: Path) -> None:
    """Raise ConfigError while RUN/stop exists."""
    if (run / "stop").exists():
        raise ConfigError(f"{run / 'stop'} is there, which keeps everything from running: remove it first")


def forbid_queued(run: Path) -> None:
    """Raise ConfigError while SLURM has jobs of a run, since two would work on the same step. Without SLURM's commands,
    nothing is checked.
    """
    known = Ledger.read(run)
    if known.jobs() and shutil.which("squeue"):
        queued = slurm.queue(known.jobs())
        if jobs := [each.job for each in known.submitted if each.job and alive(queued, each)]:
            raise ConfigError(
                f"{run}: SLURM still has jobs of it ({', '.join(jobs)}): `ccr-dist cancel {run}` first, or wait for"
                " them"
            )


def recorded(run: Path, overrides: Iterable[str] = ()) -> tuple[Plan, Profile | None]:
    """The plan and profile of a run folder.

    Args:
        run: The run folder.
        overrides: Overrides of the pipeline.

    Returns:
        The plan, and the profile; None if it was run without SLURM.

    Raises:
        ConfigError: It is no run folder, or an override is wrong.
    """
    if not (run / "pipeline.yaml").exists():
        raise ConfigError(
            f"{run}: no run of a pipeline (no pipeline.yaml); `ccr-dist submit` and `ccr-dist run` make one, in"
            " FOLDER/NAME"
        )
    profile = run / "profile.yaml"
    try:
        load_plan(run / "pipeline.yaml", [f"folder={run.parent}"])
        known = load_profile(profile) if profile.exists() else None
    except ConfigError as error:
        raise ConfigError(
            f"{error}\nThis is a copy of what was submitted: start your own file once more with `ccr-dist submit` or"
            " `ccr-dist run`, and it is written again"
        ) from None
    return load_plan(run / "pipeline.yaml", [*overrides, f"folder={run.parent}"]), known


def alive(queued: list[Queued], submitted: Submitted) -> list[int]:
    """The tasks of a submission that are queued or running."""
    if submitted.job is None:
        return []
    mine = [line for line in queued if line.job == submitted.job and line.state not in OVER]
    return [submitted.offset + (line.task or 0) for line in mine]
