"""What a step's output depends on, as one digest: its command, what is in the files that the command names, and which
attempts of the steps before it were done.

An attempt writes down the digest with which it starts. A step is done when its last attempt has the digest that holds
now and ended well: an edited command or file makes it run again, and so all that comes after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ccr_dist import yamlfile
from ccr_dist.cluster import attempts
from ccr_dist.cluster.facts import Facts, facts_of, run_folders
from ccr_dist.cluster.pipeline import Job, Plan
from ccr_dist.cluster.progress import progress
from ccr_dist.data.storage.store import digest_json, sha256_file
from ccr_dist.errors import ConfigError

WHOLE = 64 * 2**20  # bytes up to which a file is read; larger ones (weights) are told by size and time
OUTPUTS = ("--out", "-o", "out")  # options that name what a command makes


class Standing:
    """Which tasks of a plan's steps are done, as the plan and its files are now. Raises ConfigError where a command is
    wrong.

    planned: of each step a digest of what is asked for, which does not change while the pipeline runs.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.facts = {
            name: facts_of(job.command, f"{plan.place(name)}: step {name}") for name, job in plan.jobs.items()
        }
        self.planned: dict[str, str] = {}
        self._now: dict[str, str | None] = {}  # None: a step before it is not done
        self._undone: dict[str, list[int]] = {}
        made = _made(plan, self.facts)
        for name, job in plan.jobs.items():
            files = _contents(job, made)
            self.planned[name] = _digest(job, files, {before: self.planned[before] for before in job.after})
            ready = not any(self._undone[before] for before in job.after)
            self._now[name] = _digest(job, files, _done_before(plan, job)) if ready else None
            self._undone[name] = [task for task in range(job.step.tasks) if not self._ended_well(job, task)]

    def undone(self, step: str) -> list[int]:
        return self._undone[step]

    def outdated(self, step: str, task: int) -> bool:
        """It was done, but not as it is asked for now."""
        tried = attempts.read(attempts.path_of(self.plan.run, step, task))
        return task in self._undone[step] and any(attempt.done for attempt in tried)

    def _ended_well(self, job: Job, task: int) -> bool:
        """As it is asked for now; nothing else was tried since, and what it made is there."""
        for attempt in reversed(attempts.read(attempts.path_of(self.plan.run, job.name, task))):
            if not self._same(job, attempt):
                return False
            if attempt.done:
                return _is_there(self.facts[job.name], (task, job.step.tasks))
        return False

    def _same(self, job: Job, attempt: attempts.Attempt) -> bool:
        now = self._now[job.name]
        if attempt.identity is not None or now is None:
            return now is not None and attempt.identity == now
        # Written before attempts had digests: by the command, unless a step before it was run anew since.
        done = [last for before in job.after for last in _last_done(self.plan, before) if last is not None]
        return attempt.start["command"] == list(job.command) and all(other.identity is None for other in done)


def _is_there(facts: Facts, share: tuple[int, int]) -> bool:
    """What a done step has made was not removed since: its column, its trained weights."""
    if facts.name == "train":
        return all((run / "model.safetensors").exists() for run in run_folders(facts))
    made = progress(facts, share)
    return made.done >= made.total


def of_attempt(plan: Plan, step: str) -> str:
    """The digest of an attempt that starts now."""
    facts, job = {}, plan.jobs[step]
    for name, other in plan.jobs.items():
        with contextlib.suppress(ConfigError):  # of another step: no reason for this one to fail
            facts[name] = facts_of(other.command, f"{plan.place(name)}: step {name}")
    return _digest(job, _contents(job, _made(plan, facts)), _done_before(plan, job))


def _done_before(plan: Plan, job: Job) -> dict[str, Any]:
    """Which attempts of the steps before it were done last."""
    return {
        before: [(last.name, last.identity) if last else None for last in _last_done(plan, before)]
        for before in job.after
    }


def _last_done(plan: Plan, step: str) -> list[attempts.Attempt | None]:
    """Of each task."""
    tried = [attempts.read(attempts.path_of(plan.run, step, task)) for task in range(plan.jobs[step].step.tasks)]
    return [next((attempt for attempt in reversed(of_task) if attempt.done), None) for of_task in tried]


def _digest(job: Job, files: Mapping[str, str], before: Mapping[str, Any]) -> str:
    return digest_json({"command": job.command, "files": files, "after": before})


def _contents(job: Job, made: Sequence[Path]) -> dict[str, str]:
    return {name: _content(Path(name)) for name in sorted(set(_files(job.command, made)))}


def _made(plan: Plan, facts: Mapping[str, Facts]) -> list[Path]:
    """Folders of what the pipeline makes: their files change as it runs, and are told by the steps that make them."""
    folders = {plan.run, *(Path(run) for of_step in facts.values() for run in of_step.makes_runs)}
    folders |= {Path(folder) for of_step in facts.values() for folder, _ in of_step.makes}
    folders |= {Path(name) for of_step in facts.values() for name in of_step.writes}
    return [folder.absolute() for folder in folders]


def _files(command: Sequence[str], made: Sequence[Path]) -> Iterator[str]:
    """Those that a command names as inputs, by a word of it or in a YAML file."""
    for before, word in zip(("", *command), command, strict=False):
        key, sign, value = word.partition("=")
        if before not in OUTPUTS and (not sign or key not in OUTPUTS):
            yield from _named(value if sign and not _is_file(word) else word, Path(), made, deep=True)


def _named(text: str, folder: Path, made: Sequence[Path], *, deep: bool) -> Iterator[str]:
    path = folder / text
    if not _is_file(str(path)) or any(path.absolute().is_relative_to(place) for place in made):
        return
    yield str(path)
    if deep and path.suffix in (".yaml", ".yml"):
        for leaf in _texts(_merged(path)):
            for place in {Path(), path.parent}:
                yield from _named(leaf, place, made, deep=False)


def _is_file(text: str) -> bool:
    try:
        return bool(text) and Path(text).is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _merged(path: Path) -> Any:
    try:
        return yamlfile.load(path).data
    except ConfigError:  # a file of another kind
        return None


def _content(path: Path) -> str:
    """Of YAML what it says, its bases included, however it is written."""
    said = _merged(path) if path.suffix in (".yaml", ".yml") else None
    if said is not None:
        return digest_json(said) if _is_json(said) else repr(said)
    facts = path.stat()
    return sha256_file(path) if facts.st_size <= WHOLE else f"{facts.st_size} bytes of {facts.st_mtime_ns}"


def _is_json(value: Any) -> bool:
    try:
        digest_json(value)
    except (TypeError, ValueError):  # dates, NaN
        return False
    return True
