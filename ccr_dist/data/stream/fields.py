"""Which columns a stage reads, and which rows have them all. Reading them is in `rows.py`; of payloads, nothing is read
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ccr_dist.data.storage.store import retry_io
from ccr_dist.data.stream.streams import Source
from ccr_dist.data.table.column import Column
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The columns that a stage reads; what is None is not read. A row is eligible in a language when it has all of
    them.

    visual: pictures, or a matrix with one vector a row; with `many`, any number of vectors (tokens of a picture, frames
    of a video); source: English captions, or descriptions, whose views in order of their names count as the row's
    captions; targets: captions by language, aligned with the source caption by caption, as are backs (back-translations
    into English, by language); source_feature and back_features: matrices with one vector for each such caption;
    description: views or texts; group: labels, rows with the same label count as the same thing (default: each row is
    its own). Of a row's captions those are drawn that say something in every such column.
    """

    visual: str | None = None
    many: bool = False
    source: str | None = None
    targets: Mapping[str, str] = field(default_factory=dict)
    source_feature: str | None = None
    backs: Mapping[str, str] = field(default_factory=dict)
    back_features: Mapping[str, str] = field(default_factory=dict)
    description: str | None = None
    group: str | None = None

    def columns(self, lang: str) -> dict[str, tuple[str, tuple[str, ...]]]:
        """What a batch in `lang` reads: role -> (column name, allowed kinds). ConfigError for a language without a
        target column.
        """
        for what, columns in (
            ("target", self.targets),
            ("back-translation", self.backs),
            ("back-translation feature", self.back_features),
        ):
            if columns and lang not in columns:
                raise ConfigError(
                    f"no {what} column for language {lang!r}; there are columns for {', '.join(sorted(columns))}"
                )
        if self.source_feature and not self.source:
            raise ConfigError(
                f"source_feature {self.source_feature!r} needs the source column that its vectors were made from"
            )
        roles = {
            "visual": (self.visual, ("image", "matrix")),
            "source": (self.source, ("texts", "views")),
            "target": (self.targets.get(lang), ("texts",)),
            "source_feature": (self.source_feature, ("matrix",)),
            "back": (self.backs.get(lang), ("texts",)),
            "back_feature": (self.back_features.get(lang), ("matrix",)),
            "description": (self.description, ("views", "texts")),
            "group": (self.group, ("label",)),
        }
        used = {role: (name, kinds) for role, (name, kinds) in roles.items() if name}
        if not used:
            raise ConfigError("a stage must read at least one column; none is given")
        return used

    def open(self, dataset: Dataset, lang: str) -> dict[str, Column]:
        """The columns of a dataset by role. DataError when one is missing or incomplete, ConfigError when it is of the
        wrong kind.

        Empty for a dataset of a mixture that does not have the target column of this language.
        """
        opened: dict[str, Column] = {}
        if lang in self.targets and self.targets[lang] not in dataset.columns():
            return opened
        for role, (name, kinds) in self.columns(lang).items():
            column = dataset.column(name)
            if column.kind not in kinds:
                raise ConfigError(
                    f"{dataset.root}: column {name!r} is of kind {column.kind!r}; as {role} it must be"
                    f" {' or '.join(kinds)}"
                )
            column.require_complete()
            opened[role] = column
        return opened


def sources(
    datasets: Sequence[Dataset], weights: Sequence[float], fields: Fields, languages: Iterable[str]
) -> list[Source]:
    """The mixture for an `Order`: eligible in a language is a row that has every column the stage reads.

    Reads the columns' seals, or else the record of every shard and the indexes of those with null rows. ConfigError
    when a language has no such row anywhere; DataError, StorageError.
    """
    languages, made = list(languages), []
    for lang in languages:
        if not any(fields.open(dataset, lang) for dataset in datasets):
            datasets[0].column(fields.targets[lang])  # no dataset has it: says what there is
    for dataset, weight in zip(datasets, weights, strict=True):
        opened = {lang: list(fields.open(dataset, lang).values()) for lang in languages}
        present = {lang: _present(dataset, columns) for lang, columns in opened.items() if columns}
        made.append(Source(dataset.digest, dataset.shard_rows, weight, present, name=f"{dataset.name}/{dataset.split}"))
    for lang in languages:
        if not any(rows.total for source in made if (rows := source.eligible(lang))):
            filled = [f"{d.root} ({_filled(fields.open(d, lang).values())})" for d in datasets]
            raise ConfigError(
                f"language {lang!r} has no row with all the columns that are needed: rows filled are"
                f" {'; '.join(filled)}"
            )
    return made


def _present(dataset: Dataset, columns: Sequence[Column]) -> Iterator[np.ndarray | None]:
    def mask(shard: int) -> np.ndarray:
        return np.logical_and.reduce([column.present(shard) for column in columns if nulls[column.name][shard]])

    nulls = {column.name: retry_io(column.nulls, what=f"{column.folder}, commit records") for column in columns}
    for shard, some in enumerate(np.any(list(nulls.values()), axis=0)):
        yield (
            retry_io(partial(mask, shard), what=f"{dataset.root}, indexes of shard {dataset.shards[shard]}")
            if some
            else None
        )


def _filled(columns: Iterable[Column]) -> str:
    return ", ".join(
        f"{column.name}: {column.dataset.rows - column.nulls().sum()} of {column.dataset.rows}" for column in columns
    )


def content_digests(datasets: Sequence[Dataset], fields: Fields, languages: Iterable[str]) -> dict[str, str]:
    """{"name/split/column": digest of its content} of all that is read: what a resumed run must find again, beside the
    order's digest.
    """
    opened = (column for lang in languages for dataset in datasets for column in fields.open(dataset, lang).values())
    named = {f"{column.dataset.name}/{column.dataset.split}/{column.name}": column for column in opened}
    return {name: column.digest for name, column in named.items()}
