"""Checks before anything is queued: every input of a step exists or an earlier step makes it; enough disk space is
free; the environment is complete; the site's warning leaves time to save. `submit.py` asks SLURM whether it accepts the
scripts.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccr_dist.cluster import attempts
from ccr_dist.cluster.made import ancestors, inside, is_url, makers, provides
from ccr_dist.cluster.pipeline import RANKS, Plan
from ccr_dist.cluster.preflight import lacking
from ccr_dist.cluster.profile import Profile
from ccr_dist.commands import uses_of
from ccr_dist.data.storage.json_lines import has_types, read_lines
from ccr_dist.data.table.dataset import Dataset, open_all
from ccr_dist.declare import File, Folder, Item, Place, Run, Table, Uses
from ccr_dist.errors import ConfigError, DataError, StorageError
from ccr_dist.extras import advice
from ccr_dist.resources import LAUNCH, hint

GIB = 2**30


@dataclass
class Checked:
    """The result of the checks.

    Attributes:
        uses: What each step reads and makes, by step.
        notes: Messages for the user; none of them prevents a start.
    """

    uses: dict[str, Uses]
    notes: list[str] = field(default_factory=list)


def check(plan: Plan, *, free_disk_gib: float | None) -> Checked:
    """Check all steps of a pipeline.

    Args:
        plan: The pipeline.
        free_disk_gib: GiB that must be free wherever a step writes. None: the steps run where this machine's files are
            not; an input that is missing here is a note, and no disk is looked at.

    Returns:
        What the steps use, and notes for the user.

    Raises:
        ConfigError: Something is wrong; lists all problems, one per line, each with its place in the pipeline.
    """
    wrong: list[str] = []
    uses: dict[str, Uses] = {}
    for name, job in plan.jobs.items():
        place = plan.document.place(("steps", name, "command"))
        try:
            uses[name] = uses_of(job.command, f"{place}: step {name}")
        except ConfigError as error:
            wrong.append(str(error))
        if job.kind in RANKS and (problem := _launch_problem(job.step.launch)):
            wrong.append(f"{plan.document.place(('steps', name, 'launch'))}: step {name}: launch: {problem}")
    checked = Checked(uses)
    for name, of_step in uses.items():
        place = plan.document.place(("steps", name, "command"))
        before = {other: uses[other] for other in ancestors(plan, name) if other in uses}
        others = {other: uses[other] for other in uses if other not in before and other != name}
        for read in of_step.reads:
            own = any(provides(made, read) for made in of_step.makes)
            late = next(makers(others, read), None) if not own else None
            problems = list(_missing(read, before))
            if of_step.fills and is_url(of_step.fills.path):
                try:
                    problems += _missing_in_store(read, before)
                except (ConfigError, StorageError) as error:  # this machine need not reach the store
                    checked.notes.append(f"{place}: step {name}: {_named(read)} was not checked: {error}")
            if problems and late:
                problems = [
                    f"{_named(read)} is made by step {late}, which does not run before it: put that step above, and"
                    " name it in `after`"
                ]
            elif late and not any(makers(before, read)):
                checked.notes.append(
                    f"{place}: step {name} reads {_named(read)} as it is now; step {late}, which makes it, does not"
                    " run before it"
                )
            if free_disk_gib is None:
                checked.notes += [f"{place}: step {name}: on this machine, {problem}" for problem in problems]
            else:
                wrong += [f"{place}: step {name}: {problem}" for problem in problems]
        wrong += [f"{place}: step {name}: {problem}" for made in of_step.makes for problem in _unwritable(made)]
        if of_step.device is not None and not plan.jobs[name].step.gpus:
            checked.notes.append(
                f"{place}: step {name}: its command needs the device {of_step.device}, but the step requests no"
                " GPU (gpus: 0)"
            )
    wrong += _filled_twice(plan, uses)
    wrong += _trained_twice(plan, uses)
    if free_disk_gib is not None:
        wrong += _room(plan, uses, free_disk_gib)
    if wrong:
        raise ConfigError("\n".join(dict.fromkeys(wrong)))
    return checked


def _filled_twice(plan: Plan, uses: Mapping[str, Uses]) -> Iterator[str]:
    """Problems of columns that two steps make by different commands: the second would be refused, or mix its rows with
    those of the first.
    """
    earlier: dict[str, Table] = {}
    for name, of_step in uses.items():
        made = of_step.fills
        if made is None:
            continue
        for other, theirs in earlier.items():
            if plan.jobs[other].command != plan.jobs[name].command and (
                provides(made, theirs) or provides(theirs, made)
            ):
                yield (
                    f"{plan.document.place(('steps', name, 'command'))}: step {name}: step {other} makes"
                    f" {_named(made)}, too: give each its own --column, or leave one of them out"
                )
        earlier[name] = made


def _trained_twice(plan: Plan, uses: Mapping[str, Uses]) -> Iterator[str]:
    """Problems of run folders that two steps train by different commands: the second would be refused, or resume the
    first.
    """
    earlier: dict[Path, str] = {}
    for name, of_step in uses.items():
        for folder in (made.path for made in of_step.makes if isinstance(made, Run)):
            other = earlier.setdefault(Path(folder).resolve(), name)
            if plan.jobs[other].command != plan.jobs[name].command:
                yield (
                    f"{plan.document.place(('steps', name, 'command'))}: step {name}: step {other} makes"
                    f" {folder}, too: give each its own name=, seed= or out=, or leave one of them out"
                )


def _launch_problem(launch: str) -> str | None:
    """What is wrong with a step's launch profile, or None."""
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


def _named(read: Item) -> str:
    return f"column {read.column} of {read.path}" if isinstance(read, Table) and read.column is not None else read.path


def _missing(read: Item, before: Mapping[str, Uses]) -> Iterator[str]:
    """Problems of one input: it must exist, or one of the steps `before` must make it."""
    if any(makers(before, read)) or is_url(read.path):
        return
    if isinstance(read, Table):
        yield from _missing_table(read, before)
        return
    path, what = Path(read.path), _kind(read)
    if isinstance(read, Run) and path.is_dir():
        if not (path / "model.safetensors").exists():
            yield f"{path}: the run is not complete (no model.safetensors), and no step before trains it"
    elif not path.exists():
        maker = "trains" if isinstance(read, Run) else "makes"
        then = f"; {read.advice}" if isinstance(read, File) and read.advice else ""
        yield f"{path}: there is no such {what}, and no step before {maker} it{then}{_unexpanded(read.path)}"
    elif (isinstance(read, File) and not path.is_file()) or (isinstance(read, Folder) and not path.is_dir()):
        yield f"{path}: expected a {what}, and this is a {'folder' if path.is_dir() else 'file'}"


def _missing_in_store(read: Item, before: Mapping[str, Uses]) -> Iterator[str]:
    """Problems of a dataset in the object store that a step works on, or of each dataset in a folder there.
    ConfigErrors and StorageErrors of the store pass.
    """
    if not (isinstance(read, Table) and is_url(read.path)) or any(makers(before, read)):
        return
    try:
        for dataset in open_all(read.path):
            if read.column is not None:
                dataset.column(read.column).require_complete()
    except DataError as error:
        yield f"no step before makes {read.column or 'it'}, and {error}"


def _kind(read: Item) -> str:
    kinds: dict[type[Item], str] = {Run: "run", Folder: "folder", Place: "file or folder"}
    return kinds.get(type(read), "file")


def _unexpanded(path: str) -> str:
    """A hint for a path that a shell would have expanded; empty if folders of that name exist."""
    new = next((up for up in reversed([Path(path), *Path(path).parents]) if not up.exists()), Path())
    said = "; `~` and shell variables are not expanded in a command: write the full path"
    return said if new.name.startswith("~") or "$" in new.name else ""


def _unwritable(made: Item) -> Iterator[str]:
    if not is_url(made.path) and (said := _unexpanded(made.path)):
        yield f"{made.path}: a folder of exactly this name would be made{said}"


def _missing_table(read: Table, before: Mapping[str, Uses]) -> Iterator[str]:
    """Problems of a dataset, or of each dataset in a folder: it and its column must exist, or be made before."""
    makes = [
        made
        for of_step in before.values()
        for made in of_step.makes
        if isinstance(made, Table) and inside(made.path, read.path)
    ]
    roots = {Path(read.path)} if (Path(read.path) / "dataset.json").exists() else set()
    if not roots and not read.single:
        roots = {path.parent for path in Path(read.path).glob("*/dataset.json")}
        roots |= {Path(made.path) for made in makes}
    if not roots:
        if list(Path(read.path).glob("*/dataset.json")):
            yield (
                f"{read.path}: a folder of several datasets, and the command reads one: name it, such as"
                f" {Path(read.path) / 'train'}"
            )
        else:
            yield f"{read.path}: there is no dataset, and no step before builds one there{_unexpanded(read.path)}"
    for root in sorted(roots):
        here = Table(str(root), read.column)
        if read.column is None or any(makers(before, here)):
            continue
        try:
            Dataset.open(root).column(read.column).require_complete()
        except (ConfigError, DataError) as error:
            yield f"no step before makes {read.column}, and {error}"


def _room(plan: Plan, uses: Mapping[str, Uses], free_disk_gib: float) -> Iterator[str]:
    places = {plan.run, *(Path(made.path) for each in uses.values() for made in each.makes if not is_url(made.path))}
    for folder in sorted(
        {next(up for up in (place.absolute(), *place.absolute().parents) if up.is_dir()) for place in places}
    ):
        free = shutil.disk_usage(folder).free / GIB
        if free < free_disk_gib:
            yield f"{folder}: {free:.1f} GiB are free, {free_disk_gib:g} are expected (profile: free_disk_gib)"


def environment(profile: Profile, uses: Mapping[str, Uses]) -> tuple[dict[str, str] | None, list[str]]:
    """Ask the profile's interpreter, on this machine, for its versions and for missing packages.

    Args:
        profile: The site profile.
        uses: What the steps that still have to run use.

    Returns:
        The versions that the nodes must have, None if the interpreter is in a container and was not asked; and those of
        the steps' packages and programs that are missing.

    Raises:
        ConfigError: The interpreter is missing or damaged.
    """
    if profile.prefix:
        return None, []
    say = (
        "import json, sys; from ccr_dist.cluster.preflight import lacking, software; "
        "print(json.dumps([software(), lacking(*map(json.loads, sys.argv[1:]))]))"
    )
    ask = shlex.join([profile.python, "-c", say, *map(json.dumps, _wanted(uses))])
    exports = [f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()]
    done = subprocess.run(["bash", "-c", "\n".join([*exports, *profile.setup, ask])], capture_output=True, text=True)
    try:
        software, absent = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConfigError(
            f"the profile's python, {profile.python}: cannot use ccr_dist: {last}; name another one, or see `setup`"
        ) from None
    return software, absent


def absent_here(uses: Mapping[str, Uses]) -> list[str]:
    """Those of the steps' packages and programs that are missing here."""
    return lacking(*_wanted(uses))


def _wanted(uses: Mapping[str, Uses]) -> tuple[list[str], list[str]]:
    """The packages and programs that steps need."""
    modules = {module for each in uses.values() for module in each.packages}
    return sorted(modules), sorted({tool for each in uses.values() for tool in each.tools})


def lines_of(plan: Plan, uses: Mapping[str, Uses], absent: Sequence[str], python: str) -> tuple[list[str], list[str]]:
    """Messages about missing packages, and about missing programs.

    Args:
        plan: The pipeline.
        uses: What its steps use.
        absent: Names of the missing packages and programs.
        python: What messages call the interpreter.
    """
    packages, tools = list[str](), list[str]()
    for name, of_step in uses.items():
        place = f"{plan.document.place(('steps', name, 'command'))}: step {name}"
        packages += [
            f"{place}: {python}: {advice(module) or f'there is no package {module}: pip install {module}'}"
            for module in of_step.packages
            if module in absent
        ]
        tools += [f"{place}: there is no program {tool} on this machine" for tool in of_step.tools if tool in absent]
    return list(dict.fromkeys(packages)), tools


def gpus(plan: Plan, profile: Profile) -> None:
    """Raise ConfigError for steps that ask a site without GPUs for some."""
    if profile.gpus is None and (asking := [name for name, job in plan.jobs.items() if job.step.gpus]):
        raise ConfigError(
            "\n".join(
                f"{plan.document.place(('steps', name, 'gpus'))}: step {name}: gpus: {plan.jobs[name].step.gpus}, and"
                " the profile says that the site has none (gpus: null)"
                for name in asking
            )
        )


def grace(plan: Plan, checked: Checked, profile: Profile, *, lead: bool = True) -> None:
    """Add notes on steps for which the site's warning is shorter than the longest step and save so far, or for which
    these were not measured. `lead`: whether it warns before a time limit.
    """
    for name, uses in checked.uses.items():
        if not uses.steps:
            continue
        took = _measured(plan, name, uses)
        if took is None:
            checked.notes.append(
                f"step {name}: the time of a step and a save was not measured yet; the site gives {profile.grace_s:g} s"
            )
            continue
        for seconds, what in (
            (profile.grace_s, "between SIGTERM and SIGKILL (grace_s)"),
            *([(profile.lead_s, "before the time limit (lead_s)")] if lead else []),
        ):
            if took >= seconds:
                checked.notes.append(
                    f"warning: step {name}: a step and a save took {took:.1f} s, the site gives {seconds:g} s {what}:"
                    " up to one checkpoint interval of work is lost; a smaller runtime.checkpoint_every limits that"
                )


_SECONDS: dict[str, Any] = {"step_s": int | float, "stall_s": int | float}


def _measured(plan: Plan, step: str, uses: Uses) -> float | None:
    """Seconds from a signal to the saved checkpoint in earlier attempts, or the slowest step and stall in the runs'
    logs.
    """
    times = [
        a.end["saved_s"] for a in attempts.read(attempts.path_of(plan.run, step, 0)) if a.end and a.end.get("saved_s")
    ]
    for run in uses.runs:
        lines = read_lines(run / "log.jsonl", lambda line: has_types(line, _SECONDS)).values[-200:]
        steps = [line["step_s"] for line in lines if "step_s" in line]
        times += (
            [max(steps) + max((line["stall_s"] for line in lines if "stall_s" in line), default=0.0)] if steps else []
        )
    return max(times, default=None)
