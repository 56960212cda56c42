"""From a run config to live objects: datasets, backbone, method. Shared by training, evaluation and (later) export."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..config import RunConfig, TrainSet
from ..data.loader import Fields
from ..data.order import mix
from ..data.table import Dataset
from ..errors import ConfigError, DataError
from ..methods import base
from ..methods.base import Method, Stage
from ..models.backbones import build_backbone


def seed_all(*parts: int | str) -> None:
    """Set torch's generators (CPU and accelerator) to a pure function of `parts`: random state is arithmetic, never saved."""
    torch.manual_seed(mix(*parts) & (2**63 - 1))


def learnt_languages(config: RunConfig) -> tuple[str, ...]:
    """The target languages that some stage of the method trains on."""
    stages = base.get(config.method.name).stages(config.method)
    return tuple(config.data.targets) if any("target_text" in stage.needs for stage in stages.values()) else ()


def train_sets(config: RunConfig, stage: str) -> tuple[TrainSet, ...]:
    return config.stages[stage].train or config.data.train


def open_datasets(sets: Iterable[TrainSet]) -> list[Dataset]:
    return [Dataset.open(entry.path) for entry in sets]


def fields_for(config: RunConfig, stage: Stage) -> Fields:
    """The columns that a stage reads; what it does not need is not read."""
    data = config.data
    if "target_text" in stage.needs and not data.targets:
        raise ConfigError(f"{config.name}: data.targets is empty, but method {config.method.name!r} learns from translated captions")
    cached = "source_feature" in stage.needs and data.source_feature is not None
    return Fields(
        visual=data.visual if "visual" in stage.needs else None,
        source=data.source if {"source_text", "source_feature", "target_text"} & stage.needs else None,
        targets=dict(data.targets) if "target_text" in stage.needs else {},
        source_feature=data.source_feature if cached else None,
        description=data.description if "description" in stage.needs else None,
        group=data.group if "visual" in stage.needs else None,
    )


def build_method(config: RunConfig, *, texts: Iterable[str] | None = None, state: Mapping[str, Any] | None = None) -> Method:
    """Backbone and method of a run, with the start that its seed fixes.

    Args:
        texts: target-language training texts, for methods that size themselves by their vocabulary; not needed with `state`.
        state: `method.state()` of an earlier start of the same run.
    """
    seed_all(config.seed, "build")
    backbone = build_backbone(config.backbone)
    kind = base.get(config.method.name)
    return kind(config.method, backbone, learnt_languages(config), texts=texts, state=dict(state) if state is not None else None)


def training_texts(config: RunConfig) -> Iterator[str]:
    """Every target-language caption that any stage trains on, in a fixed order."""
    kind = base.get(config.method.name)
    seen: set[tuple[Path, str]] = set()
    for name, stage in kind.stages(config.method).items():
        if "target_text" not in stage.needs:
            continue
        for entry, column in itertools.product(train_sets(config, name), config.data.targets.values()):
            dataset = Dataset.open(entry.path)
            if (dataset.root, column) in seen:
                continue
            seen.add((dataset.root, column))
            captions = dataset.column(column)
            captions.require_complete()
            for shard, rows in enumerate(dataset.shard_rows):
                for row in range(rows):
                    for text in captions.value(shard, row) or ():
                        if text:
                            yield text


def check_columns(config: RunConfig) -> None:
    """Say early, with the command that helps, which dataset or column of the config is missing. Reads metadata only."""
    kind = base.get(config.method.name)
    wanted: list[tuple[str, str]] = []
    for name, stage in kind.stages(config.method).items():
        fields = fields_for(config, stage)
        columns = [fields.visual, fields.source, *fields.targets.values(), fields.source_feature, fields.description, fields.group]
        wanted += [(entry.path, column) for entry in train_sets(config, name) for column in columns if column]
    for path in filter(None, (config.data.val, config.data.test)):
        wanted += [(path, column) for column in (config.data.visual, *config.data.queries.values(), config.data.group) if column]
    for path, column in dict.fromkeys(wanted):
        try:
            Dataset.open(path).column(column).require_complete()
        except DataError as error:
            raise type(error)(f"{config.name}: {error}") from None
