"""What a `ccr-dist` command of a pipeline reads and makes: parsed as the command line does, so that mistakes are told
before queueing.

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

from ccr_dist.cluster.pipeline import SHARED
from ccr_dist.config import RunConfig
from ccr_dist.data.table.names import check_column_name
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.methods.run_config import load_config

JOBS = (*SHARED, "replay")


@dataclass(frozen=True)
class Facts:
    """Of a command. columns: (dataset, column or None for the dataset alone); runs: run folders."""

    name: str  # `train`, `shards build`
    configs: tuple[RunConfig, ...] = ()  # of train and evaluate, one a seed
    reads: tuple[tuple[str, str | None], ...] = ()
    # column None: datasets in that folder, with columns that only the recipe knows
    makes: tuple[tuple[str, str | None], ...] = ()
    reads_runs: tuple[str, ...] = ()
    makes_runs: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # other files and folders that must be there
    writes: tuple[str, ...] = ()  # other files and folders that it makes, and that its options do not name


def facts_of(command: Sequence[str], place: str) -> Facts:
    """Raises ConfigError, beginning with `place`, for what the command line or a run config refuses."""
    name, given = _parse(command, place)
    if name in JOBS:
        return _of_job(name, given, place)
    if name in ("train", "evaluate"):
        return _of_training(name, given, place)
    if name == "shards build":
        return _of_build(given, place)
    if name == "shards index":
        plain = tuple(url for url in given["urls"] if not set("{*?[") & set(url) and "://" not in url)
        return Facts(name, makes=((str(given["out"]), None),), needs=plain)
    if name in ("report", "scale"):
        pictures = given.get("pictures")
        reads = ((str(pictures), None),) if pictures else ()
        return Facts(name, reads=reads, reads_runs=tuple(str(run) for run in given["runs"]))
    return Facts(name, writes=(str(given["out"]),) if name.startswith("checkpoint") and "out" in given else ())


@functools.cache
def _commands() -> Any:
    from ccr_dist.cli import app

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
        # what typer raises for wrong options; its classes moved between versions
        if not hasattr(error, "format_message"):
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
        raise ConfigError(
            f"{place}: --back: in a pipeline the way back is a step of its own, after the column is complete"
        )
    if given["share"] != "0/1":
        raise ConfigError(f"{place}: --share is what `tasks` is for: each task of the array gets its own")
    source = None if name == "replay" else given["source"]
    needs = [str(given["file"])] if name == "replay" else []
    try:
        if name == "featurise" and given["config"] is not None:
            load_config(given["config"], [f"backbone.{option}" for option in given["options"] or []])
        if name in ("describe", "translate"):
            needs += _of_engine(name, given)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    captions = given.get("captions")
    reads = [(dataset, source)] + ([(dataset, captions)] if captions else [])
    return Facts(name, reads=tuple(reads), makes=((dataset, column),), needs=tuple(needs))


def _of_engine(name: str, given: dict[str, Any]) -> list[str]:
    """The files of an engine. Raises ConfigError for a name, an option or a prompt that there is not. Nothing is
    loaded.
    """
    from ccr_dist.generate.cli import options_of
    from ccr_dist.generate.engines.base import EngineOptions, check_options, translators
    from ccr_dist.generate.engines.generator import generators
    from ccr_dist.generate.jobs import describe, llm_translate
    from ccr_dist.generate.jobs.prompts import load_prompt

    engine, dedicated = given["engine"], translators.names() if name == "translate" else []
    kind: type[EngineOptions]
    if engine in dedicated:
        kind = translators.get(engine).Options
    else:
        known = {f"{each}-llm" if each in dedicated else each: each for each in generators.names()}
        if engine not in known:
            names = [*dedicated, *known]
            near = difflib.get_close_matches(engine, names, 1)
            raise ConfigError(
                f"unknown engine {engine!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(names)}")
            )
        kind = generators.get(known[engine]).Options
        load_prompt(given["prompt"] or "translate", describe.FIELDS if name == "describe" else llm_translate.FIELDS)
    options = check_options(engine, kind, options_of(given["options"], given["model"]))
    return [options.path] if engine == "replay" else []  # type: ignore[attr-defined]


def _of_build(given: dict[str, Any], place: str) -> Facts:
    from ccr_dist.data.corpora.recipes.base import load_recipe

    try:
        recipe = load_recipe(given["recipe"], given["overrides"] or [])
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    needs = tuple(str(value) for _, value in recipe if isinstance(value, Path))
    return Facts("shards build", makes=((str(given["out"]), None),), needs=needs)


def _of_training(name: str, given: dict[str, Any], place: str) -> Facts:
    from ccr_dist.cli import configs_of
    from ccr_dist.train.inputs import wanted

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
