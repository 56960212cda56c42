"""`ccr-dist run`: runs a pipeline on this machine, without SLURM: the same steps in the same order, with the same files
and decisions.

Tasks of an array run one after another, and a step for several nodes runs on this one; the order of batches depends on
neither.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from ccr_dist import errors, resources, stopfile
from ccr_dist.cluster import attempts, checks, job, ledger
from ccr_dist.cluster.attempts import step_folder
from ccr_dist.cluster.decide import Decision
from ccr_dist.cluster.identity import Standing
from ccr_dist.cluster.pipeline import RANKS, Job, Plan
from ccr_dist.cluster.preflight import gpus_here
from ccr_dist.cluster.status import errors_in
from ccr_dist.places import folder_to_make

Say = Callable[[str], None]
FREE_DISK_GIB = 1.0
POLL_S = 0.2


class _Heard:
    """Passes the first signal to this process on to the running step, as its stop file."""

    def __init__(self) -> None:
        self.name = ""

    @contextlib.contextmanager
    def passed_on(self) -> Iterator[None]:
        def hear(number: int, frame: FrameType | None) -> None:
            self.name = self.name or signal.Signals(number).name

        before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(plan: Plan, say: Say, *, dry_run: bool = False) -> int:
    """Run the steps that are not done.

    Args:
        plan: The pipeline.
        say: Prints a message for the user.
        dry_run: Whether to run and write nothing, and only check and say which steps would run, and why.

    Returns:
        The exit code: DONE, STOPPED (the same command resumes it), or that of the step that failed.

    Raises:
        ConfigError: Before anything runs: `checks.py` found problems, or SLURM still runs the same pipeline.
    """
    if dry_run:
        _tell(plan, say)
        return errors.DONE
    heard = _Heard()
    with ledger.held(plan.run), heard.passed_on():
        _check(plan, say)
        ledger.record(plan, None, None)
        for step in plan.jobs.values():
            waiting = Standing(plan).undone(step.name)  # asked for each step: files may have changed meanwhile
            if not waiting:
                say(f"{step.name}: done already")
            for task in waiting:
                code = _task(plan, step, task, heard, say)
                if code != errors.DONE:
                    say(f"{step.name}: {_ending(plan, step, code)}")
                    return code
    return errors.DONE


def _check(plan: Plan, say: Say) -> None:
    """Raise ConfigError if something prevents a run; print notes."""
    ledger.forbid_stopped(plan.run)
    checked = checks.check(plan, free_disk_gib=FREE_DISK_GIB)
    _forbid_lacking(plan, checked)
    for note in checked.notes:
        say(note)
    ledger.forbid_queued(plan.run)


def _tell(plan: Plan, say: Say) -> None:
    """Check the pipeline, and say for each step whether it would run, and why."""
    folder_to_make(plan.run)
    _check(plan, say)
    standing = Standing(plan)
    for step in plan.jobs.values():
        waiting = standing.undone(step.name)
        if not waiting:
            say(f"{step.name}: done already")
            continue
        say(
            f"{step.name}: {len(waiting)} task(s), {_why(standing, step, waiting)}: ccr-dist {shlex.join(step.command)}"
        )
    say("nothing was run (--dry-run)")


def _why(standing: Standing, step: Job, waiting: list[int]) -> str:
    """Why a step would run."""
    before = [name for name in step.after if standing.undone(name)]
    if before:
        return f"after {', '.join(before)}"
    if any(standing.outdated(step.name, task) for task in waiting):
        return "done before its command, a file that it names, or a step before it changed"
    tried = [attempts.read(attempts.path_of(standing.plan.run, step.name, task)) for task in waiting]
    return "begun and not finished" if any(tried) else "not done yet"


def _ending(plan: Plan, step: Job, code: int) -> str:
    """Why a step is not done, with the error at the end of its last attempt's log."""
    if code == errors.STOPPED:
        return "stopped; the same command resumes it"
    reasons = [
        found
        for task in range(step.step.tasks)
        for attempt in attempts.read(attempts.path_of(plan.run, step.name, task))[-1:]
        if (found := errors_in(step_folder(plan.run, step.name) / "logs", step.name).get(attempt.name))
    ]
    return ": ".join(["failed", *reasons[-1:]])


def _forbid_lacking(plan: Plan, checked: checks.Checked) -> None:
    """Raise ConfigError if packages or programs that unfinished steps need are missing here."""
    standing = Standing(plan)
    uses = {name: of_step for name, of_step in checked.uses.items() if standing.undone(name)}
    packages, tools = checks.lines_of(plan, uses, checks.absent_here(uses), sys.executable)
    if packages or tools:
        raise errors.ConfigError("\n".join((*packages, *tools)))


def _task(plan: Plan, step: Job, task: int, heard: _Heard, say: Say) -> int:
    """Repeat attempts until the task is done or given up. Returns the exit code."""
    folder, start = step_folder(plan.run, step.name), secrets.token_hex(4)
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    restart = 0
    while True:
        name = f"{start}.{restart}"
        here = job.Here(plan.run, step.name, task, step.step.tasks, name, job.RETRIES, folder / "notes" / name)
        here.notes.mkdir(parents=True)
        log = logs / f"{start}_{task}.log"
        decision: Decision | None = job.begin(here, step.command, nodes=[os.uname().nodename], job=None)
        code = errors.CRASH
        if decision is None:
            say(f"{step.name}{f' task {task}' if step.step.tasks > 1 else ''}: {log}")
            code = _attempt(step, here, log, heard)
            decision = job.end(here, step.command, code=code, heard=heard.name, job=None)
            with log.open("a", encoding="utf-8") as out:  # `status` finds an attempt's error by this line
                out.write(f"attempt {name} of {step.name}: exit code {code}: {decision.why}\n")
        if decision.action == "done":
            return errors.DONE
        if decision.action == "fail":
            return code or errors.CRASH
        if heard.name:
            return errors.STOPPED
        restart += 1


def _attempt(step: Job, here: job.Here, log: Path, heard: _Heard) -> int:
    words = [sys.executable, "-m"]
    processes = step.step.ranks or gpus_here() or 1
    if step.kind in RANKS and processes > 1:
        words += [
            "accelerate.commands.launch",
            "--config_file",
            str(resources.LAUNCH.find(step.step.launch)),
            "--num_processes",
            str(processes),
            "-m",
        ]
    words += ["ccr_dist.cluster.rank", *step.command]
    if step.kind in RANKS:
        words += ["--world", str(processes)]
    if step.step.tasks > 1:
        words += ["--share", f"{here.task}/{step.step.tasks}"]
    stop = here.notes / "stop"
    variables = {
        "CCR_NOTES": str(here.notes),
        stopfile.VARIABLE: f"{stop}{os.pathsep}{here.run / 'stop'}",
        "CCR_ATTEMPT": here.name,
    }
    # In its own session: Ctrl-C in a terminal reaches only this process, which passes it on.
    with (
        log.open("ab") as out,
        subprocess.Popen(
            words, stdout=out, stderr=out, start_new_session=True, env={**os.environ, **variables}
        ) as process,
    ):
        while process.poll() is None:
            if heard.name and not stop.exists():
                (here.notes / "heard").write_text(str(time.time()))
                stop.write_text(heard.name)
            time.sleep(POLL_S)
    code = process.returncode
    return 128 - code if code < 0 else code
