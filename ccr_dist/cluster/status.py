"""The progress of a pipeline, from its run folder, from what its steps have committed, and from one call to SLURM.
Changes nothing.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ccr_dist.cluster import attempts, slurm
from ccr_dist.cluster.identity import Standing
from ccr_dist.cluster.ledger import OVER, Ledger, recorded
from ccr_dist.cluster.pipeline import Job
from ccr_dist.cluster.progress import Progress, progress
from ccr_dist.errors import DONE, STOPPED

LOG_TAIL = 2**20  # bytes at the end of a log that are read
RANK = re.compile(r"^\[rank\d+\]:\s*")
RAISED = re.compile(r"[\w.]*(Error|Exception|Interrupt|Exit)\b")


def status(run: Path) -> dict[str, Any]:
    """Describe the progress of a pipeline.

    Args:
        run: The run folder.

    Returns:
        {"run", "stop", "steps": [{"step", "states", "attempts", "done", "total", "unit", "rate", "eta_s", "jobs",
        "nodes", "why", "logs"}]}. `rate` is in units per second since the running attempts began. `states` counts
        tasks by state: done, running, queued, held (SLURM or a person keeps it from running; `resume` releases it),
        waiting (for other steps), failed, cancelled, interrupted (without SLURM), SLURM's state of a job that has
        ended, outdated (done, but the step has changed since), or none (not queued).

    Raises:
        ConfigError: It is no run of a pipeline.
    """
    plan, profile = recorded(run)
    known = Ledger.read(run)
    queued = slurm.queue(known.jobs()) if profile is not None and known.jobs() else []
    lines: dict[tuple[str, int], slurm.Queued] = {}
    for submitted in known.submitted:  # the last submission of a task counts
        lines |= {
            (submitted.step, submitted.offset + (line.task or 0)): line for line in queued if line.job == submitted.job
        }
    standing = Standing(plan)
    steps = [
        _step(standing, job, {task: line for (step, task), line in lines.items() if step == job.name})
        for job in plan.jobs.values()
    ]
    return {"run": str(run), "stop": (run / "stop").exists(), "steps": steps}


def _step(standing: Standing, job: Job, lines: dict[int, slurm.Queued]) -> dict[str, Any]:
    run = standing.plan.run
    tried = {task: attempts.read(attempts.path_of(run, job.name, task)) for task in range(job.step.tasks)}
    states: Counter[str] = Counter()
    why: list[str] = []
    uses, share = standing.uses[job.name], job.step.tasks
    now, rate = progress(uses), 0.0
    errors = (
        errors_in(attempts.step_folder(run, job.name) / "logs", job.name) if any(map(_failed, tried.values())) else {}
    )
    for task in tried:
        path = attempts.path_of(run, job.name, task)
        if lines_lost := attempts.damaged(path):
            which = ", ".join(map(str, lines_lost[:5]))
            why.append(f"{path}: damaged in line {which}, which is left out: what was done may be done once more")
    for task, of_task in tried.items():
        state, reason = _state(standing, job, task, of_task, lines.get(task))
        if state != "done" and _failed(of_task) and (said := errors.get(of_task[-1].name)):
            reason += f": {said}"
        states[state] += 1
        if reason:
            why.append(f"task {task}: {reason}" if share > 1 else reason)
        if state == "running" and of_task and of_task[-1].end is None:
            made = progress(uses, (task, share)).done - Progress.from_json(of_task[-1].start["progress"]).done
            rate += made / max(1e-3, time.time() - of_task[-1].start["time"])
    return {
        "step": job.name,
        "states": dict(states),
        "attempts": sum(map(len, tried.values())),
        "done": now.done,
        "total": now.total,
        "unit": now.unit,
        "rate": rate or None,
        "eta_s": (now.total - now.done) / rate if rate else None,
        "jobs": sorted({line.job for line in lines.values()}),
        "nodes": sorted({line.nodes for line in lines.values() if line.nodes and line.state not in OVER}),
        "why": why,
        "logs": str(attempts.step_folder(run, job.name) / "logs"),
    }


def _state(
    standing: Standing, job: Job, task: int, tried: list[attempts.Attempt], line: slurm.Queued | None
) -> tuple[str, str]:
    """The state of a task, and the reason if there is one to report."""
    if task not in standing.undone(job.name):
        return "done", ""
    last = tried[-1] if tried else None
    ended = f"attempt {last.name}: {last.end['why']} (exit code {last.end['code']})" if last and last.end else ""
    if line is not None and line.state not in OVER:
        if line.state != "PENDING":
            return "running", ended
        if "held" in line.reason.lower():
            return "held", f"{line.reason}; `ccr-dist resume {standing.plan.run}` releases it"
        return ("waiting", "") if line.reason == "Dependency" else ("queued", ended or line.reason)
    if last is not None and last.end is not None and last.end["decision"] == "fail":
        return "failed", ended
    if standing.outdated(job.name, task):
        return (
            "outdated",
            (
                "done, but its command, a file that it names or a step before it has changed since: the next start does"
                " it again"
            ),
        )
    if line is not None:
        return ("cancelled" if line.state == "CANCELLED" else line.state.lower()), ended
    return ("interrupted" if tried else "none"), ended


def _failed(tried: list[attempts.Attempt]) -> bool:
    return bool(tried) and tried[-1].end is not None and tried[-1].end["code"] not in (DONE, STOPPED)


def errors_in(logs: Path, step: str) -> dict[str, str]:
    """Find the errors of attempts in a step's logs.

    Args:
        logs: Folder of the logs.
        step: Name of the step.

    Returns:
        By name of the attempt: the last message of `ccr-dist`, or the last line of a traceback, or the last line.
    """
    found = {}
    for path in logs.glob("*.log"):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL))
            lines = [RANK.sub("", line.strip()) for line in file.read().decode(errors="replace").splitlines()]
        begin = 0
        for number, line in enumerate(lines):
            if match := re.match(rf"attempt (\S+) of {re.escape(step)}: exit code ", line):
                part = [line for line in lines[begin:number] if line]
                kinds = (
                    [line for line in part if line.startswith("error: ")],
                    [line for line in part if RAISED.match(line)],
                    part,
                )
                if said := next((kind[-1] for kind in kinds if kind), None):
                    found[match[1]] = said.removeprefix("error: ")[:500]
                begin = number + 1
    return found


def text(found: dict[str, Any]) -> str:
    """Format a description for a terminal: one line per step, then the reasons."""
    rows = [("step", "state", "attempts", "progress", "rate", "left", "jobs", "nodes")]
    for step in found["steps"]:
        states = step["states"]
        rows.append(
            (
                step["step"],
                (
                    next(iter(states))
                    if sum(states.values()) == 1
                    else ", ".join(f"{count} {state}" for state, count in states.items())
                ),
                str(step["attempts"]),
                f"{step['done']}/{step['total']} {step['unit']}" if step["total"] else "",
                f"{step['rate']:.3g}/s" if step["rate"] else "",
                _span(step["eta_s"]) if step["eta_s"] is not None else "",
                ",".join(step["jobs"]),
                ",".join(step["nodes"]),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{step['step']}: {reason}" for step in found["steps"] for reason in step["why"]]
    if found["stop"]:
        lines.append(f"{found['run']}/stop exists: everything saves and stops; remove it, then resume")
    lines.append(f"logs: {found['run']}/steps/STEP/logs")
    return "\n".join(lines)


def _span(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
