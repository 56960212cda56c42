"""The columns that a stage reads, and the rows that have all of them. Reads no payloads; `rows.py` does."""

from __future__ import annotations

import dataclasses
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
    """The columns that a stage reads. A row is eligible in a language if it has a value in all of them.

    Only captions that are not blank in any column of captions are drawn.

    Attributes:
        visual: Pictures, or a matrix with one vector per row.
        many: `visual` may have any number of vectors per row (tokens of a picture, frames of a video).
        source: English captions, or descriptions, whose views in the order of their names count as captions.
        targets: Captions by language, aligned with `source` caption by caption.
        source_feature: Matrix with one vector for each source caption.
        backs: Back-translations into English by language, aligned likewise.
        back_features: Matrices with one vector for each back-translation, by language.
        query_features: Matrices with one vector for each target caption, by language; for English, or without
            targets, for each source caption.
        description: Views or texts.
        group: Labels; rows with the same label count as the same thing. None: each row is its own group.
        texts: What is read of the datasets without pictures, by their digests.
    """

    visual: str | None = None
    many: bool = False
    source: str | None = None
    targets: Mapping[str, str] = field(default_factory=dict)
    source_feature: str | None = None
    backs: Mapping[str, str] = field(default_factory=dict)
    back_features: Mapping[str, str] = field(default_factory=dict)
    query_features: Mapping[str, str] = field(default_factory=dict)
    description: str | None = None
    group: str | None = None
    texts: Mapping[str, Fields] = field(default_factory=dict)

    def columns(self, lang: str) -> dict[str, tuple[str, tuple[str, ...]]]:
        """The columns that a batch in `lang` reads.

        Returns:
            Role -> (column name, allowed kinds).

        Raises:
            ConfigError: A column of this language is not named, or none is read at all.
        """
        for what, columns in (
            ("target", self.targets),
            ("back-translation", self.backs),
            ("back-translation feature", self.back_features),
            ("query feature", self.query_features),
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
            "query_feature": (self.query_features.get(lang), ("matrix",)),
            "description": (self.description, ("views", "texts")),
            "group": (self.group, ("label",)),
        }
        used = {role: (name, kinds) for role, (name, kinds) in roles.items() if name}
        if not used:
            raise ConfigError("a stage must read at least one column; none is given")
        return used

    def of(self, lang: str) -> Fields:
        """The columns of one language alone."""

        def own(columns: Mapping[str, str]) -> dict[str, str]:
            return {lang: columns[lang]} if lang in columns else {}

        return dataclasses.replace(
            self,
            targets=own(self.targets),
            backs=own(self.backs),
            back_features=own(self.back_features),
            query_features=own(self.query_features),
            texts={digest: fields.of(lang) for digest, fields in self.texts.items()},
        )

    def open(self, dataset: Dataset, lang: str) -> dict[str, Column]:
        """Opens the columns of a dataset.

        Returns:
            Role -> column. Empty for a dataset of a mixture without the target column of this language.

        Raises:
            DataError: A column is missing or incomplete.
            ConfigError: A column is of the wrong kind.
        """
        opened: dict[str, Column] = {}
        if (own := self.texts.get(dataset.digest)) is not None:
            return own.open(dataset, lang)
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
    """The mixture for an `Order`. Reads the columns' seals, or the records of all shards and the indexes of those with
    null rows.

    Args:
        datasets: The datasets of the mixture.
        weights: The weight of each dataset.
        fields: The columns that are read.
        languages: Languages of the run.

    Raises:
        ConfigError: A language has no eligible row in any dataset.
        DataError: A column is missing, incomplete or damaged.
        StorageError: Reading keeps failing.
    """
    languages, made = list(languages), []
    for lang in languages:
        if not any(fields.open(dataset, lang) for dataset in datasets):
            datasets[0].column(fields.targets[lang])  # raises an error that lists the columns
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
    """Digests of the content of all columns that are read, by "name/split/column".

    A resumed run must find the same, in addition to the order's digest.
    """
    opened = (column for lang in languages for dataset in datasets for column in fields.open(dataset, lang).values())
    named = {f"{column.dataset.name}/{column.dataset.split}/{column.name}": column for column in opened}
    return {name: column.digest for name, column in named.items()}
