"""Makes a step's script: a copy of slurm/KIND.sbatch in which only the block between `>>> settings` and `<<< settings`
is filled in.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from ccr_dist import resources
from ccr_dist.cluster.attempts import step_folder
from ccr_dist.cluster.pipeline import RANKS, Job, Plan
from ccr_dist.cluster.profile import Profile
from ccr_dist.errors import ConfigError

BEGIN, END = "# >>> settings", "# <<< settings"


def render(plan: Plan, job: Job, profile: Profile, *, root: Path, tasks: Sequence[int], offset: int) -> str:
    """The script of a step.

    Args:
        plan: The pipeline.
        job: The step.
        profile: The site profile.
        root: Folder that relative paths start from.
        tasks: Tasks of the step that this script runs.
        offset: Task number of the array's index 0.

    Raises:
        ConfigError: A path cannot be used in a script, or the template is damaged.
    """
    scripts = resources.folder("slurm")
    if any(set(str(each)) & set("\\\n\r") for each in (root, scripts)):
        raise ConfigError(
            f"{str(root)!r}: a path that SLURM's scripts cannot name: work in a folder without backslashes and line"
            " breaks"
        )
    path = scripts / f"{job.kind}.sbatch"
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        begin, end = lines.index(BEGIN), lines.index(END)
    except ValueError:
        raise ConfigError(f"{path}: expected the lines {BEGIN!r} and {END!r}") from None
    indices = [task - offset for task in tasks]
    settings = [*_directives(plan, job, profile, root, indices), *_variables(plan, job, profile, root, offset)]
    return "\n".join([*lines[: begin + 1], *settings, *lines[end:]]) + "\n"


def _directives(plan: Plan, job: Job, profile: Profile, root: Path, indices: Sequence[int]) -> Iterator[str]:
    step, array = job.step, job.step.tasks > 1
    # sbatch replaces %x and the like in names of logs; those in the folder's own name are literal
    logs = str(root / step_folder(plan.run, job.name) / "logs").replace("%", "%%")
    options = {
        "job-name": f"{plan.pipeline.name}.{job.name}",
        "chdir": root,
        "output": f"{logs}/{'%A_%a' if array else '%j'}.log",
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "array": _ranges(indices) + (f"%{profile.throttle}" if profile.throttle else "") if array else None,
        "nodes": step.nodes,  # no ntasks-per-node: SLURM then takes the least of a range
        "cpus-per-task": step.cpus,
        "mem": step.memory,
        "time": step.time or profile.time,
        "signal": f"B:USR1@{profile.lead_s}",
        "mail-user": profile.mail,
        "mail-type": profile.mail_type if profile.mail else None,
    }
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    words += shlex.split(profile.gpus.replace("{n}", str(step.gpus))) if step.gpus and profile.gpus else []
    words += ["--requeue", "--open-mode=append", *(word for option in profile.sbatch for word in shlex.split(option))]
    yield from (f"#SBATCH {_for_sbatch(word)}" for word in words)


def _for_sbatch(word: str) -> str:
    """A word as sbatch reads it: in double quotes if needed, with a backslash before quotes and backslashes."""
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./|&\[\]*()!-]+", word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _ranges(indices: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> 0-2,5"""
    parts: list[list[int]] = []
    for index in indices:
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def _variables(plan: Plan, job: Job, profile: Profile, root: Path, offset: int) -> Iterator[str]:
    step = job.step
    values: dict[str, object] = {
        "ROOT": root,
        "SCRIPTS": resources.folder("slurm"),
        "RUN": plan.run,
        "STEP": job.name,
        "PYTHON": profile.python,
    }
    values |= {"RETRIES": profile.retries, "TASKS": step.tasks, "OFFSET": offset}
    if profile.scratch:
        values["SCRATCH"] = profile.scratch
    if job.kind in RANKS:
        values |= {"LAUNCH": resources.LAUNCH.find(step.launch), "RANKS": step.ranks or ""}
        values["PREFLIGHT"] = (
            "off" if profile.preflight == "off" else profile.preflight.model_dump_json(exclude_defaults=True)
        )
    yield from (f"{name}={shlex.quote(str(value))}" for name, value in values.items())
    if profile.prefix:
        yield f"PREFIX=({shlex.join(shlex.split(profile.prefix))})"
    yield from (f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items())
    yield from profile.setup
    yield f"COMMAND=({shlex.join(job.command)})"
