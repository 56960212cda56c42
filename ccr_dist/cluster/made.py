"""Finds which step of a pipeline makes what another step reads, by the declarations of their commands, before anything
exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ccr_dist.cluster.pipeline import Plan
from ccr_dist.commands import uses_of
from ccr_dist.data.storage.object_store import as_url
from ccr_dist.data.table.names import is_column_name
from ccr_dist.data.table.splits import SPLITS
from ccr_dist.declare import File, Item, Table, Uses

DATASET = ("dataset.json", "recipe.json", "keys")  # what a dataset's folder holds besides its columns


def uses_by_step(plan: Plan) -> dict[str, Uses]:
    """What each step reads and makes. Raises ConfigError, with the place in the pipeline, if a command is wrong."""
    return {name: uses_of(job.command, f"{plan.place(name)}: step {name}") for name, job in plan.jobs.items()}


def ancestors(plan: Plan, step: str) -> list[str]:
    """The steps that finish before this one starts, in order."""
    found: set[str] = set()
    waiting = [*plan.jobs[step].after]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += plan.jobs[name].after
    return [name for name in plan.jobs if name in found]


def makers(uses: Mapping[str, Uses], read: Item) -> Iterator[str]:
    """The steps that make an input, or a part of it."""
    for name, of_step in uses.items():
        if any(provides(made, read) for made in of_step.makes):
            yield name


def provides(made: Item, read: Item) -> bool:
    """Whether an output of one command is, or contains, an input of another."""
    if not isinstance(read, Table):
        return holds(made, read.path)
    if not isinstance(made, Table) or not inside(read.path, made.path):
        return False
    return read.column is None or made.column in (None, read.column)


def holds(made: Item, path: str) -> bool:
    """Whether an output of a command is, or contains, a file or folder."""
    if not inside(path, made.path) or is_url(made.path):
        return False
    parts = Path(path).resolve().relative_to(Path(made.path).resolve()).parts
    if not isinstance(made, Table):
        return not parts or not isinstance(made, File)
    if parts and parts[0] in SPLITS:
        if made.column is None:
            return True
        parts = parts[1:]
    # The folder may hold other files: the pictures that it is built from, the configs of a whole project.
    if made.column is None:
        return not parts or parts[0] in DATASET or is_column_name(parts[0])
    return parts[:1] == (made.column,)


def inside(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies inside it, links resolved."""
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def is_url(path: str) -> bool:
    """Whether a path is the URL of an object store."""
    return as_url(path) is not None
