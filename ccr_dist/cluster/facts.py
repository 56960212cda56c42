"""What a `ccr-dist` command of a pipeline reads and makes: parsed as the command line does, so that mistakes are told before
queueing.

No dataset is opened here; whether what is read is there is asked in `checks.py`.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from ..config import RunConfig, load_config
from ..data.names import check_column_name
from ..errors import ConfigError, DataError
from .pipeline import SHARED

JOBS = (*SHARED, "replay")


@dataclass(frozen=True)
class Facts:
    """Of a command. columns: (dataset, column or None for the dataset alone); runs: run folders."""

    name: str  # `train`, `shards build`
    configs: tuple[RunConfig, ...] = ()  # of train and evaluate, one a seed
    reads: tuple[tuple[str, str | None], ...] = ()
    makes: tuple[tuple[str, str | None], ...] = ()  # column None: datasets in that folder, with columns that only the recipe knows
    reads_runs: tuple[str, ...] = ()
    makes_runs: tuple[str, ...] = ()


def facts_of(command: Sequence[str], place: str) -> Facts:
    """Raises ConfigError, beginning with `place`, for what the command line or a run config refuses."""
    name, given = _parse(command, place)
    if name in JOBS:
        return _of_job(name, given, place)
    if name in ("train", "evaluate"):
        return _of_training(name, given, place)
    if name in ("shards build", "shards index"):
        return Facts(name, makes=((str(given["out"]), None),))
    if name in ("report", "scale"):
        return Facts(name, reads_runs=tuple(str(run) for run in given["runs"]))
    return Facts(name)


@functools.cache
def _commands() -> Any:
    from ..cli import app

    return typer.main.get_command(app)


def _parse(command: Sequence[str], place: str) -> tuple[str, dict[str, Any]]:
    current = _commands()
    names: list[str] = []
    while isinstance(current, typer.core.TyperGroup):
        word = command[len(names)] if len(names) < len(command) else ""
        if word not in current.commands:
            near = difflib.get_close_matches(word, current.commands, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(current.commands))}"
            raise ConfigError(f"{place}: {' '.join(['ccr-dist', *names])} has no command {word!r}; {hint}")
        current = current.commands[word]
        names.append(word)
    name = " ".join(names)
    try:
        return name, current.make_context(f"ccr-dist {name}", list(command[len(names) :])).params
    except typer.Exit:
        raise ConfigError(f"{place}: {' '.join(command)!r} does nothing but print") from None
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer raises for wrong options; its classes moved between versions
            raise
        raise ConfigError(f"{place}: ccr-dist {name}: {error.format_message()}") from None


def _of_job(name: str, given: dict[str, Any], place: str) -> Facts:
    dataset, column = str(given["dataset"]), given["column"]
    if column is None:
        raise ConfigError(f"{place}: --column is missing: in a pipeline a job names the column that it makes")
    try:
        check_column_name(column)
    except DataError as error:
        raise ConfigError(f"{place}: {error}") from None
    if given.get("back"):
        raise ConfigError(f"{place}: --back: in a pipeline the way back is a step of its own, after the column is complete")
    if given["share"] != "0/1":
        raise ConfigError(f"{place}: --share is what `tasks` is for: each task of the array gets its own")
    source = None if name == "replay" else given["source"]
    if name == "featurise" and given["config"] is not None:
        load_config(given["config"], [f"backbone.{option}" for option in given["options"] or []])
    captions = given.get("captions")
    reads = [(dataset, source)] + ([(dataset, captions)] if captions else [])
    return Facts(name, reads=tuple(reads), makes=((dataset, column),))


def _of_training(name: str, given: dict[str, Any], place: str) -> Facts:
    from ..cli import configs_of
    from ..train.columns import wanted

    if given["world"] is not None:
        raise ConfigError(f"{place}: --world is what `nodes` and `ranks` are for")
    try:
        configs = tuple(configs_of(given["config"], given["overrides"], given["seeds"]))
        if name == "train" and not configs[0].stages:
            raise ConfigError(f"method {configs[0].method.name!r} has nothing to train; use `evaluate`")
        reads = tuple(dict.fromkeys(key for config in configs for key in wanted(config)))
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    runs = [run for config in configs for run in (config.init_from, getattr(config.backbone, "weights", None)) if run]
    own = tuple(str(config.folder) for config in configs)
    if name == "evaluate" and configs[0].stages:
        return Facts(name, configs, reads, (), tuple(dict.fromkeys((*runs, *own))))
    return Facts(name, configs, reads, (), tuple(dict.fromkeys(runs)), own)


def run_folders(facts: Facts) -> list[Path]:
    return [config.folder for config in facts.configs]
