"""From a run config to what its training reads: datasets, and the texts that some methods are sized by."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from ccr_dist.config import RunConfig, TextSet, TrainSet
from ccr_dist.data.media.text import has_text, texts_of
from ccr_dist.data.stream.fields import Fields
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.train.inputs import check_columns, fields_for, fields_of, train_sets

__all__ = ["check_columns", "fields_for", "of_texts", "open_datasets", "train_sets", "training_texts"]


def open_datasets(sets: Iterable[TrainSet]) -> list[Dataset]:
    return [Dataset.open(entry.path) for entry in sets]


def of_texts(fields: Fields, sets: Iterable[TrainSet], datasets: Iterable[Dataset]) -> Fields:
    """The columns that a stage reads, which also say what it reads of the datasets without pictures. ConfigError where
    a dataset is there twice.
    """
    pairs = list(zip(sets, datasets, strict=True))
    seen = [dataset.digest for _, dataset in pairs]
    own = {dataset.digest: fields_of(fields, entry) for entry, dataset in pairs if isinstance(entry, TextSet)}
    for _, dataset in pairs:
        if dataset.digest in own and seen.count(dataset.digest) > 1:
            raise ConfigError(
                f"data.texts: {dataset.place} has the rows of another dataset of this run; name each dataset once"
            )
    return dataclasses.replace(fields, texts=own) if own else fields


def training_texts(config: RunConfig) -> Iterator[str]:
    """Every target-language caption that any stage trains on, in a fixed order."""
    seen: set[tuple[Path, str]] = set()
    for name, stage in config.method.learner().training_stages().items():
        if "target_text" not in stage.needs:
            continue
        named = config.data.targets
        targets = [(e, {**named, **e.targets} if isinstance(e, TextSet) else named) for e in train_sets(config, name)]
        for entry, column in ((entry, column) for entry, columns in targets for column in columns.values()):
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
