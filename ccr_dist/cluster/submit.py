"""`ccr-dist submit`, `resume` and `cancel`: turns a pipeline into a chain of SLURM jobs. Steps that are done or queued
are not queued again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ccr_dist.cluster import checks, ledger, slurm
from ccr_dist.cluster.attempts import step_folder
from ccr_dist.cluster.identity import Standing
from ccr_dist.cluster.ledger import Ledger, Submitted
from ccr_dist.cluster.pipeline import Job, Plan
from ccr_dist.cluster.profile import Profile
from ccr_dist.cluster.render import render
from ccr_dist.data.storage.store import digest_json, replace_atomic
from ccr_dist.errors import ConfigError
from ccr_dist.resources import LAUNCH, is_path

Say = Callable[[str], None]


def submit(plan: Plan, profile: Profile, *, dry_run: bool, say: Say) -> None:
    """Check everything, write the scripts, try them out, queue them.

    Args:
        plan: The pipeline.
        profile: The site profile.
        dry_run: Whether to queue nothing. If SLURM's controller does not answer, what is possible without it is
            checked.
        say: Prints a message for the user.

    Raises:
        ConfigError: Something is wrong, or SLURM refuses a script; if possible, before anything is queued.
    """
    with ledger.held(plan.run):
        ledger.forbid_stopped(plan.run)
        checks.gpus(plan, profile)
        checked = checks.check(plan, free_disk_gib=profile.free_disk_gib)
        missing = slurm.not_at_hand() if dry_run else None
        at_hand = missing is None
        standing = Standing(plan)
        software = _environment(checked, profile, standing, strict=at_hand)
        checks.grace(plan, checked, profile)
        known = Ledger.read(plan.run)
        queued = slurm.queue() if known.submitted and at_hand else []
        _adopt(known, queued)
        _forbid_changed(known, queued, standing)
        limit = profile.max_array or (slurm.array_limit() if at_hand else slurm.ARRAY_LIMIT)
        parts = {name: _parts(known, queued, standing, name, limit) for name in plan.jobs}
        scripts = {
            (name, offset): _write(plan, plan.jobs[name], profile, tasks, offset)
            for name, of_step in parts.items()
            for offset, tasks in of_step.items()
        }
        for (name, _), script in scripts.items() if at_hand else ():
            try:
                slurm.try_out(script)
            except slurm.ScriptRefused as error:
                raise slurm.ScriptRefused(f"{plan.place(name)}: step {name}: SLURM refuses {script}: {error}") from None
        for note in checked.notes:
            say(note)
        if dry_run:
            for (name, offset), script in scripts.items():
                say(f"{name}: {len(parts[name][offset])} task(s): {script}")
            if not at_hand:
                say(
                    f"{missing}: SLURM was not asked whether it takes these scripts"
                    + (", nor which jobs of this pipeline it has queued" if known.submitted else "")
                    + "; ask on a login node"
                )
            return
        ledger.record(plan, profile, software)
        _release(known, queued, say)
        for name, job in plan.jobs.items():
            _queue(
                known,
                queued,
                job,
                {offset: (parts[name][offset], scripts[name, offset]) for offset in parts[name]},
                _asked(standing, name),
                say,
            )


def _environment(
    checked: checks.Checked, profile: Profile, standing: Standing, *, strict: bool
) -> dict[str, str] | None:
    """Versions on the nodes, if known.

    Raises ConfigError (if not `strict`, adds a note) if they lack a package that a step still needs. A program that is
    missing here is only noted, since the nodes may have it.
    """
    plan = standing.plan
    uses = {name: of_step for name, of_step in checked.uses.items() if standing.undone(name)}
    software, absent = checks.environment(profile, uses)
    packages, tools = checks.lines_of(plan, uses, absent, f"the profile's python, {profile.python}")
    if packages and strict:
        raise ConfigError("\n".join(packages))
    checked.notes += [f"warning: {line}" for line in (*packages, *tools)]
    return software


def _asked(standing: Standing, step: str) -> dict[str, str]:
    """Digests that are recorded with a queued job, for comparison by later submissions."""
    values = standing.plan.jobs[step].step.model_dump(mode="json")
    if not is_path(values["launch"]):  # earlier versions named `ddp` by this path
        values["launch"] = f"{LAUNCH.where}/{values['launch']}{LAUNCH.suffix}"
    return {"step": digest_json(values), "planned": standing.planned[step]}


def _forbid_changed(known: Ledger, queued: list[slurm.Queued], standing: Standing) -> None:
    """Raise ConfigError if a queued or running step has changed: the old version would run, and count as done."""
    changed = []
    for each in known.submitted:
        if each.asked is None or not ledger.alive(queued, each):
            continue
        if each.step not in standing.planned:
            changed.append(f"step {each.step} (job {each.job}) was removed from it")
            continue
        asked, place = _asked(standing, each.step), standing.plan.place(each.step)
        if not standing.is_planned(each.step, each.asked["planned"]):
            changed.append(
                f"{place}: step {each.step} (job {each.job}): its command, a file that it names, or a step before it"
            )
        elif asked["step"] != each.asked["step"]:
            changed.append(f"{place}: step {each.step} (job {each.job}): what it asks SLURM for")
    if changed:
        raise ConfigError(
            f"{known.run} is queued or running, and the pipeline has changed since:\n  "
            + "\n  ".join(dict.fromkeys(changed))
            + f"\n`ccr-dist cancel {known.run}` first, undo the change, or use another `name`"
        )


def _parts(
    known: Ledger, queued: list[slurm.Queued], standing: Standing, step: str, limit: int
) -> dict[int, list[int]]:
    """The tasks to queue, by the offset of their array."""
    waiting = {task for each in known.submitted if each.step == step for task in ledger.alive(queued, each)}
    parts: dict[int, list[int]] = {}
    for task in standing.undone(step):
        if task not in waiting:
            parts.setdefault(task // limit * limit, []).append(task)
    return parts


def _write(plan: Plan, job: Job, profile: Profile, tasks: Sequence[int], offset: int) -> Path:
    folder = step_folder(plan.run, job.name)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    path = folder / (f"script-{offset}.sbatch" if offset else "script.sbatch")
    replace_atomic(path, render(plan, job, profile, root=Path.cwd(), tasks=tasks, offset=offset).encode())
    return path


def _queue(
    known: Ledger,
    queued: list[slurm.Queued],
    job: Job,
    parts: dict[int, tuple[list[int], Path]],
    asked: Mapping[str, str],
    say: Say,
) -> None:
    before = [
        each.job
        for each in known.submitted
        if each.step in job.after and each.job and (each.fresh or ledger.alive(queued, each))
    ]
    for offset, (tasks, script) in parts.items():
        entry = Submitted(f"ccr-{secrets.token_hex(6)}", job.name, tasks, offset, fresh=True, asked=asked)
        known.write(
            event="submitting", token=entry.token, step=entry.step, tasks=tasks, offset=offset, asked=dict(asked)
        )
        dependency = [f"--dependency=afterok:{':'.join(before)}", "--kill-on-invalid-dep=yes"] if before else []
        entry.job = slurm.submit(script, f"--comment={entry.token}", *dependency)
        known.write(event="submitted", token=entry.token, job=entry.job)
        known.submitted.append(entry)
        say(f"{job.name}: job {entry.job}, {len(tasks)} task(s)" + (f", after {', '.join(before)}" if before else ""))
    if not parts:
        say(f"{job.name}: nothing to queue: it is done, or queued already")


def _adopt(known: Ledger, queued: list[slurm.Queued]) -> None:
    """Record jobs of a submission that was killed before it could record their numbers."""
    jobs = {line.comment: line.job for line in queued}
    for each in known.submitted:
        if each.job is None and each.token in jobs:
            each.job = jobs[each.token]
            known.write(event="submitted", token=each.token, job=each.job)


def _release(known: Ledger, queued: list[slurm.Queued], say: Say) -> None:
    """Release jobs that SLURM holds, such as after a launch failed on a broken node."""
    for line in queued:
        if line.job in known.jobs() and line.state == "PENDING" and "held" in line.reason.lower():
            job = line.job if line.task is None else f"{line.job}_{line.task}"
            slurm.call("scontrol", "release", job)
            say(f"job {job} was held ({line.reason}): released")


def cancel(run: Path, say: Say) -> None:
    """End all queued and running jobs of a run. Running jobs receive SIGTERM, and save.

    Args:
        run: The run folder.
        say: Prints a message for the user.

    Raises:
        ConfigError: It is no run of a pipeline.
    """
    ledger.recorded(run)
    known = Ledger.read(run)
    queued = slurm.queue() if known.submitted else []
    _adopt(known, queued)
    jobs = [each.job for each in known.submitted if each.job and ledger.alive(queued, each)]
    if jobs:
        slurm.call("scancel", *reversed(jobs))
        known.write(event="cancelled", jobs=jobs)
    say(f"{run}: {'cancelled ' + ', '.join(jobs) if jobs else 'nothing is queued'}")
