"""From a run config to what its training reads: datasets, and the texts that some methods are sized by."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from ccr_dist.config import RunConfig, TrainSet
from ccr_dist.data.media.text import has_text, texts_of
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import DataError
from ccr_dist.train.inputs import check_columns, fields_for, train_sets

__all__ = ["check_columns", "fields_for", "open_datasets", "train_sets", "training_texts"]


def open_datasets(sets: Iterable[TrainSet]) -> list[Dataset]:
    return [Dataset.open(entry.path) for entry in sets]


def training_texts(config: RunConfig) -> Iterator[str]:
    """Every target-language caption that any stage trains on, in a fixed order."""
    seen: set[tuple[Path, str]] = set()
    for name, stage in config.method.learner().training_stages().items():
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
