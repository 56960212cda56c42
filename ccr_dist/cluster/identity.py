"""Decides whether a step is done: its last attempt succeeded, with the digest (`step_digest.py`) that the step has now.

An attempt records the digest with which it starts. An edited command or file therefore makes a step run again, and all
steps after it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ccr_dist.cluster import attempts
from ccr_dist.cluster.made import is_url, uses_by_step
from ccr_dist.cluster.pipeline import Job, Plan
from ccr_dist.cluster.progress import progress
from ccr_dist.cluster.step_digest import Earlier, contents, digest
from ccr_dist.commands import uses_of
from ccr_dist.declare import Item, Run, Table, Uses
from ccr_dist.errors import ConfigError


class Standing:
    """Which tasks of a plan's steps are done, for the current plan and files.

    Attributes:
        plan: The pipeline.
        uses: What each step reads and makes.
        planned: A digest of each step's task, which does not change while the pipeline runs.

    Raises:
        ConfigError: A command is wrong.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.uses = uses_by_step(plan)
        self.planned: dict[str, str] = {}
        self._earlier = Earlier(plan, self.uses)
        # by the current rule and by the earlier one; None while a step before it is not done
        self._now: dict[str, tuple[str, str] | None] = {}
        self._undone: dict[str, list[int]] = {}
        for name, job in plan.jobs.items():
            files = contents(plan, self.uses, name)
            self.planned[name] = digest(job, files, {before: self.planned[before] for before in job.after})
            ready = not any(self._undone[before] for before in job.after)
            done = _done_before(plan, job)
            self._now[name] = (digest(job, files, done), self._earlier.digest(name, done)) if ready else None
            self._undone[name] = [task for task in range(job.step.tasks) if not self._ended_well(job, task)]

    def is_planned(self, step: str, known: str) -> bool:
        """Whether a submission with this digest asked for the same as the step now."""
        return known in (self.planned[step], self._earlier.planned[step])

    def undone(self, step: str) -> list[int]:
        """The tasks of a step that are not done, ascending."""
        return self._undone[step]

    def outdated(self, step: str, task: int) -> bool:
        """Whether a task was done, but not as the step is defined now."""
        tried = attempts.read(attempts.path_of(self.plan.run, step, task))
        return task in self._undone[step] and any(attempt.done for attempt in tried)

    def _ended_well(self, job: Job, task: int) -> bool:
        """Whether a task was done as defined now, nothing else was tried since, and its outputs still exist."""
        for attempt in reversed(attempts.read(attempts.path_of(self.plan.run, job.name, task))):
            if not self._same(job, attempt):
                return False
            if attempt.done:
                return _is_there(self.uses[job.name], (task, job.step.tasks))
        return False

    def _same(self, job: Job, attempt: attempts.Attempt) -> bool:
        now = self._now[job.name]
        if attempt.identity is not None or now is None:
            return now is not None and attempt.identity in now
        # Written before attempts had digests: by the command, unless a step before it has run again since.
        done = [last for before in job.after for last in _last_done(self.plan, before) if last is not None]
        return attempt.start["command"] == list(job.command) and all(other.identity is None for other in done)


def _is_there(uses: Uses, share: tuple[int, int]) -> bool:
    """Whether the outputs of a done step still exist."""
    made = progress(uses, share)
    filled = uses.steps > 0 or made.done >= made.total
    return filled and all(_exists(item) for item in uses.makes)


def _exists(item: Item) -> bool:
    # a column is looked at by its shards
    if is_url(item.path) or (isinstance(item, Table) and item.column is not None):
        return True
    path = Path(item.path)
    return (path / "model.safetensors").exists() if isinstance(item, Run) else path.exists()


def of_attempt(plan: Plan, step: str) -> str:
    """The digest of an attempt that starts now."""
    uses, job = {}, plan.jobs[step]
    for name, other in plan.jobs.items():
        with contextlib.suppress(ConfigError):  # an error of another step must not fail this one
            uses[name] = uses_of(other.command, f"{plan.place(name)}: step {name}")
    return digest(job, contents(plan, uses, step), _done_before(plan, job))


def _done_before(plan: Plan, job: Job) -> dict[str, Any]:
    """The last successful attempts of the steps before it."""
    return {
        before: [(last.name, last.identity) if last else None for last in _last_done(plan, before)]
        for before in job.after
    }


def _last_done(plan: Plan, step: str) -> list[attempts.Attempt | None]:
    """The last successful attempt of each task."""
    tried = [attempts.read(attempts.path_of(plan.run, step, task)) for task in range(plan.jobs[step].step.tasks)]
    return [next((attempt for attempt in reversed(of_task) if attempt.done), None) for of_task in tried]
