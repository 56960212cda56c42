"""What can be known before queueing: is all that the steps of a pipeline read there, or made by a step before; is there
room; is the environment whole; does the site's warning leave time to save. What SLURM thinks of the scripts is asked in
`submit.py`.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ccr_dist.cluster import attempts
from ccr_dist.cluster.facts import Facts, facts_of, run_folders
from ccr_dist.cluster.pipeline import RANKS, Plan
from ccr_dist.cluster.profile import Profile
from ccr_dist.data.storage.store import read_lines
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.resources import LAUNCH, hint

GIB = 2**30


@dataclass
class Checked:
    """facts: by step. notes: what a person should read; nothing of it stands in the way."""

    facts: dict[str, Facts]
    notes: list[str] = field(default_factory=list)


def check(plan: Plan, *, free_disk_gib: float) -> Checked:
    """Raises ConfigError with everything that is wrong, each line with the place in the pipeline."""
    wrong: list[str] = []
    facts: dict[str, Facts] = {}
    for name, job in plan.jobs.items():
        place = plan.document.place(("steps", name, "command"))
        try:
            facts[name] = facts_of(job.command, f"{place}: step {name}")
        except ConfigError as error:
            wrong.append(str(error))
        if job.kind in RANKS and (problem := _launch_problem(job.step.launch)):
            wrong.append(f"{plan.document.place(('steps', name, 'launch'))}: step {name}: launch: {problem}")
    checked = Checked(facts)
    for name, of_step in facts.items():
        before = [facts[other] for other in ancestors(plan, name) if other in facts]
        place = plan.document.place(("steps", name, "command"))
        wrong += [f"{place}: step {name}: {problem}" for problem in _missing(of_step, before)]
    wrong += _room(plan, facts, free_disk_gib)
    if wrong:
        raise ConfigError("\n".join(wrong))
    return checked


def _launch_problem(launch: str) -> str | None:
    """What is wrong with a step's launch profile, if anything."""
    try:
        file = LAUNCH.find(launch)
    except ConfigError as error:
        return str(error)
    known = ", ".join(LAUNCH.files())
    return (
        None
        if file.is_file()
        else f"{file}: no such file{hint(file)}; those that come with ccr-dist have names: {known}"
    )


def ancestors(plan: Plan, step: str) -> list[str]:
    """The steps that are done before this one starts, in order."""
    found: set[str] = set()
    waiting = [*plan.jobs[step].after]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += plan.jobs[name].after
    return [name for name in plan.jobs if name in found]


def _missing(facts: Facts, before: list[Facts]) -> Iterator[str]:
    made = [each for other in before for each in other.makes]
    for dataset, column in facts.reads:
        if any(_inside(dataset, folder) and makes in (None, column) for folder, makes in made):
            continue
        try:
            if not _is_dataset(dataset):
                yield from _missing_below(dataset, column)
            elif column is not None:
                Dataset.open(dataset).column(column).require_complete()
        except DataError as error:
            yield f"no step before makes {column}, and {error}"
    for need in facts.needs:
        if not Path(need).exists() and not any(_inside(need, folder) for folder, _ in made):
            yield f"{need}: there is no such file or folder, and no step before makes it"
    runs = {Path(run).resolve() for other in before for run in other.makes_runs}
    for run in facts.reads_runs:
        if Path(run).resolve() not in runs and not Path(run).exists():
            yield f"{run}: there is no such run, and no step before trains it"


def _missing_below(folder: str, column: str | None) -> Iterator[str]:
    """A folder of datasets: all of them have the column."""
    splits = [path.parent for path in Path(folder).glob("*/dataset.json")]
    if not splits:
        yield f"{folder}: there is no dataset, and no step before builds one there"
    for split in splits:
        try:
            if column is not None:
                Dataset.open(split).column(column).require_complete()
        except DataError as error:
            yield f"no step before makes {column}, and {error}"


def _is_dataset(path: str) -> bool:
    return "://" in path or (Path(path) / "dataset.json").exists()


def _inside(path: str, folder: str) -> bool:
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def _room(plan: Plan, facts: dict[str, Facts], free_disk_gib: float) -> Iterator[str]:
    places = {plan.run, *(Path(folder) for each in facts.values() for folder, _ in each.makes)}
    places |= {run for each in facts.values() for run in run_folders(each)}
    for folder in sorted(
        {next(up for up in (place.absolute(), *place.absolute().parents) if up.is_dir()) for place in places}
    ):
        free = shutil.disk_usage(folder).free / GIB
        if free < free_disk_gib:
            yield f"{folder}: {free:.1f} GiB are free, {free_disk_gib:g} are expected (profile: free_disk_gib)"


def environment(profile: Profile) -> dict[str, str] | None:
    """Versions that the nodes are to have: those of the profile's interpreter, here. None: it is in a container, and
    was not asked.

    Raises ConfigError where it is missing or damaged.
    """
    if profile.prefix:
        return None
    say = "import json; from ccr_dist.cluster.preflight import software; print(json.dumps(software()))"
    ask = shlex.join([profile.python, "-c", say])
    exports = [f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()]
    done = subprocess.run(["bash", "-c", "\n".join([*exports, *profile.setup, ask])], capture_output=True, text=True)
    try:
        found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConfigError(
            f"the profile's python, {profile.python}: cannot use ccr_dist: {last}; name another one, or see `setup`"
        ) from None
    return found


def grace(plan: Plan, checked: Checked, profile: Profile) -> None:
    """Notes where the warning that the site gives is shorter than what a step and a save took so far, or where that is
    not known.
    """
    for name, facts in checked.facts.items():
        if facts.name != "train":
            continue
        took = _measured(plan, name, facts)
        if took is None:
            checked.notes.append(
                f"step {name}: how long a step and a save take was not measured yet; the site gives"
                f" {profile.grace_s:g} s"
            )
            continue
        for seconds, what in (
            (profile.grace_s, "between SIGTERM and SIGKILL (grace_s)"),
            (profile.lead_s, "before the time limit (lead_s)"),
        ):
            if took >= seconds:
                checked.notes.append(
                    f"warning: step {name}: a step and a save took {took:.1f} s, the site gives {seconds:g} s {what}:"
                    " up to a checkpoint interval of work is lost then; a smaller runtime.checkpoint_every bounds that"
                )


def _measured(plan: Plan, step: str, facts: Facts) -> float | None:
    """Seconds from a signal to the saved checkpoint in earlier attempts, or the slowest step and stall in the runs'
    logs.
    """
    times = [
        a.end["saved_s"] for a in attempts.read(attempts.path_of(plan.run, step, 0)) if a.end and a.end.get("saved_s")
    ]
    for run in run_folders(facts):
        lines = read_lines(run / "log.jsonl").values[-200:]
        steps = [line["step_s"] for line in lines if "step_s" in line]
        times += (
            [max(steps) + max((line["stall_s"] for line in lines if "stall_s" in line), default=0.0)] if steps else []
        )
    return max(times, default=None)
