"""From a run config to live objects: datasets, backbone, method. Shared by training, evaluation and (later) export."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ccr_dist.config import RunConfig, TrainSet
from ccr_dist.data.media.text import has_text, texts_of
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import DataError
from ccr_dist.methods import registry
from ccr_dist.methods.base import Method
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.train.inputs import check_columns, fields_for, train_sets
from ccr_dist.train.step.seeding import seed_all

__all__ = [
    "build_method", "check_columns", "fields_for", "learnt_languages", "open_datasets", "train_sets",
    "training_texts",
]  # fmt: skip


def learnt_languages(config: RunConfig) -> tuple[str, ...]:
    """The target languages that some stage of the method trains on."""
    stages = config.method.training_stages()
    return tuple(config.data.targets) if any("target_text" in stage.needs for stage in stages.values()) else ()


def open_datasets(sets: Iterable[TrainSet]) -> list[Dataset]:
    return [Dataset.open(entry.path) for entry in sets]


def build_method(
    config: RunConfig, *, texts: Iterable[str] | None = None, state: Mapping[str, Any] | None = None
) -> Method:
    """Backbone and method of a run, with the start that its seed fixes.

    Args:
        config: the run config.
        texts: target-language training texts, for methods sized by their vocabulary; not needed with `state`.
        state: `method.state()` of an earlier start of the same run.
    """
    seed_all(config.seed, "build")
    backbone = build_backbone(config.backbone)
    kind = registry.method(config.method.name)
    return kind(
        config.method, backbone, learnt_languages(config), texts=texts, state=dict(state) if state is not None else None
    )


def training_texts(config: RunConfig) -> Iterator[str]:
    """Every target-language caption that any stage trains on, in a fixed order."""
    seen: set[tuple[Path, str]] = set()
    for name, stage in config.method.training_stages().items():
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
                    with contextlib.suppress(DataError):  # a bad item is counted and named when it is drawn
                        yield from filter(has_text, texts_of(captions.value(shard, row)))
