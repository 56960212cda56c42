"""What trainings and their measurements read and make, for pipelines: the declarations of `train/cli.py`'s commands. No
torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ccr_dist.config import RunConfig
from ccr_dist.config.base_files import reads
from ccr_dist.declare import File, Folder, Item, Run, Settings, Table, Uses
from ccr_dist.errors import ConfigError
from ccr_dist.hub import name_in, names_hub
from ccr_dist.methods.run_config import load_config
from ccr_dist.places import folder_to_make
from ccr_dist.retriever.kept_config import config_of_folder


def configs_of(path: Path, overrides: list[str] | None, seeds: str | None) -> list[RunConfig]:
    """The run configs of a command.

    Args:
        path: the run config's file.
        overrides: `key.sub=value`, any number.
        seeds: as `0,1,2`; default: the config's own.

    Returns:
        One config, or one per seed.

    Raises:
        ConfigError: as `load_config`, and if seeds are not whole numbers, or a file is where a run folder should be.
    """
    overrides = overrides or []
    if path.is_dir():
        if seeds is not None:
            raise ConfigError(f"--seeds {seeds}: {path} is the folder of one run or model, which has its seed")
        return [config_of_folder(path, overrides)]
    if seeds is None:
        return [_with_a_place(load_config(path, overrides))]
    numbers = seeds.split(",")
    if not all(number.strip().isdigit() for number in numbers):
        raise ConfigError(f"--seeds {seeds}: expected whole numbers with commas between them, like 0,1,2")
    return [_with_a_place(load_config(path, [*overrides, f"seed={number.strip()}"])) for number in numbers]


def _with_a_place(config: RunConfig) -> RunConfig:
    if not config.out:
        raise ConfigError("out: '': name the folder that the run folder is to lie in; out=. is the current folder")
    folder_to_make(config.folder)
    return config


def training(
    config: Path, overrides: list[str] | None, seeds: str | None, test: bool, world: int | None, strategy: str | None
) -> Uses:  # fmt: skip
    """What `train` reads and makes."""
    configs = _configs(config, overrides, seeds, world)
    first = configs[0]
    if not first.stages:
        raise ConfigError(f"method {first.method.name!r} has nothing to train; use `evaluate`")
    results = [result(each, "test") for each in configs] if test else []
    packages = ["torch"]
    if first.runtime.wandb is not None:
        packages.append("wandb")
    if strategy is not None and strategy.startswith("zero"):
        packages.append("deepspeed")
    return Uses(
        reads=(_settings(config, overrides), *inputs(configs)),
        makes=(*(Run(str(each.folder)) for each in configs), *results),
        runs=tuple(each.folder for each in configs),
        steps=sum(stage.steps for each in configs for stage in each.stages.values()),
        packages=tuple(packages),
    )


def check_evaluated(split: str, world: int | None, mteb: str | None, out: Path | None, langs: str | None) -> None:
    """Raises ConfigError for options of `evaluate` that do not go together."""
    if split not in ("val", "test"):
        raise ConfigError(f"--split {split}: expected val or test")
    if mteb is None:
        if given := [name for name, value in (("--out", out), ("--langs", langs)) if value is not None]:
            raise ConfigError(f"{' and '.join(given)}: only with --mteb")
    elif split != "test":
        raise ConfigError(f"--split {split}: the tasks of --mteb have their own splits")
    elif world is not None:
        raise ConfigError(f"--world {world}: --mteb runs in one process")


def evaluated_place(path: Path, overrides: list[str] | None, seeds: str | None) -> str | None:
    """The folder of a run or model, or the id of a hub, that --mteb measures; None: a run config is named.

    Raises:
        ConfigError: overrides or seeds with it.
    """
    place = name_in(path) or (str(path) if path.is_dir() else None)
    if place is not None and (given := [*(overrides or ()), *([f"--seeds {seeds}"] if seeds is not None else ())]):
        raise ConfigError(f"{place}: --mteb takes a run or model as it is, without {' '.join(given)}")
    return place


def evaluating(
    config: Path, overrides: list[str] | None, seeds: str | None, split: str, world: int | None,
    mteb: str | None, out: Path | None, langs: str | None,
) -> Uses:  # fmt: skip
    """What `evaluate` reads and makes."""
    check_evaluated(split, world, mteb, out, langs)
    if mteb is not None:
        return _evaluating_on_mteb(config, overrides, seeds, mteb, out)
    if config.is_dir():
        return _evaluating_folder(config, overrides, split)
    configs = _configs(config, overrides, seeds, world)
    own = [Run(str(each.folder)) for each in configs if each.stages]
    return Uses(
        reads=(_settings(config, overrides), *inputs(configs), *own),
        makes=tuple(result(each, split) for each in configs),
        runs=tuple(each.folder for each in configs),
        packages=("torch",),
    )


def _evaluating_on_mteb(
    path: Path, overrides: list[str] | None, seeds: str | None, words: str, out: Path | None
) -> Uses:
    place = evaluated_place(path, overrides, seeds)
    folders, items = [path], list[Item]()
    if place is None:
        configs = configs_of(path, overrides, seeds)
        folders = [config.folder for config in configs]
        items = [_settings(path, overrides), *(Run(str(config.folder)) for config in configs if config.stages)]
        items += [item for config in configs if not config.stages for item in reads(config)]
    elif not names_hub(place):
        items = [Folder(place)]
    elif out is None:
        raise ConfigError(f"{place}: not a folder, so --out FOLDER has to say where the results go")
    datasets = [word.partition("=")[2].strip() for word in words.split(",") if "=" in word]
    return Uses(
        reads=tuple(dict.fromkeys([*items, *map(Table, datasets)])),
        makes=tuple(dict.fromkeys(Folder(str(out or folder / "results" / "mteb")) for folder in folders)),
        packages=("torch", "mteb"),
    )


def _evaluating_folder(folder: Path, overrides: list[str] | None, split: str) -> Uses:
    from ccr_dist.train.inputs import asked

    config = config_of_folder(folder, overrides or [])
    path = getattr(config.data, split)
    if path is None:
        raise ConfigError(f"{config.name}: data.{split} names no dataset, and the command measures on it")
    tables = dict.fromkeys(Table(path, column, single=True) for _, column in asked(config))
    return Uses(
        reads=(Folder(str(folder)), *tables),
        makes=(File(str(folder / "results" / f"{split}.json")),),
        packages=("torch",),
    )


def inputs(configs: Sequence[RunConfig]) -> tuple[Item, ...]:
    """What runs with these configs read: columns of datasets, weights, models in folders. ConfigError."""
    from ccr_dist.train.inputs import wanted

    found: list[Item] = [Table(path, column, single=True) for config in configs for path, column in wanted(config)]
    for config in configs:
        found += [] if config.init_from is None else [Run(config.init_from)]
        found += reads(config)
    return tuple(dict.fromkeys(found))


def result(config: RunConfig, split: str) -> File:
    """The file of a run's results. ConfigError where the config names no such split."""
    if split == "test" and config.data.test is None:
        raise ConfigError(f"{config.name}: data.test names no dataset, and the command measures on it")
    return File(str(config.folder / "results" / f"{split}.json"))


def _configs(path: Path, overrides: list[str] | None, seeds: str | None, world: int | None) -> list[RunConfig]:
    if world is not None:
        raise ConfigError("--world: in a pipeline use `nodes` and `ranks` of the step")
    return configs_of(path, overrides, seeds)


def _settings(path: Path, overrides: list[str] | None) -> Settings:
    return Settings(str(path), overrides=tuple(overrides or ()))
