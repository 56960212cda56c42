"""What an export is checked on: held-out queries and pictures of the run, and the rule by which it passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ccr_dist.data.media.decode import decode_image
from ccr_dist.data.media.text import has_text, texts_of
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataError, MismatchError
from ccr_dist.retriever.retriever import Retriever

LEAST = 0.9999  # cosine of a row with the run's
SHARE = 0.05  # of the distance between two different texts that a row may be off
TEXTS, PICTURES = 64, 16


@dataclass(frozen=True)
class Sample:
    """Held-out queries by language, pictures, where they come from, and what records, which travel, call that."""

    texts: Mapping[str, list[str]]
    pictures: Sequence[Any] = ()
    where: str = ""
    name: str = ""


@dataclass
class Measured:
    """How close an export is to the run, by what was compared ("text.pt", "pictures")."""

    found: dict[str, dict[str, float]] = field(default_factory=dict)

    def compare(self, what: str, theirs: np.ndarray, ours: np.ndarray) -> None:
        """Notes how far rows are from the run's, both of unit length.

        Raises:
            MismatchError: a cosine is below `LEAST`, or a row is further off than `SHARE` of the usual distance
                between two rows: with a model whose rows are all alike, the first says little.
        """
        if theirs.shape != ours.shape:
            raise MismatchError(f"{what}: the export gives rows of shape {theirs.shape}, the model {ours.shape}")
        rows, model = theirs.astype(np.float64), ours.astype(np.float64)
        sizes = np.linalg.norm(rows, axis=1), np.linalg.norm(model, axis=1)
        cosines = (rows * model).sum(1) / np.maximum(sizes[0] * sizes[1], 1e-30)
        off = np.linalg.norm(rows - model, axis=1)
        spread = _spread(model)
        least, furthest = float(cosines.min()), float(off.max())
        if not np.isfinite(rows).all() or least < LEAST or (spread and furthest > SHARE * spread):
            worst = int(np.where(np.isfinite(cosines), -off, -np.inf).argmin())
            raise MismatchError(
                f"{what}: the export does not give what the model gives: of {len(rows)} rows the worst (number {worst})"
                f" has a cosine of {least:.6f} with the model's and is {furthest:.2e} away from it; allowed are"
                f" {LEAST} and {SHARE:.0%} of {spread:.2e}, the usual distance between two. Nothing was written"
            )
        self.found[what] = {"rows": len(rows), "least_cosine": round(least, 8), "largest_distance": furthest}


def _spread(rows: np.ndarray) -> float:
    """Median distance of a row from another; 0 where there is one alone."""
    some = rows[:64]
    apart = np.linalg.norm(some[:, None] - some[None], axis=2)[~np.eye(len(some), dtype=bool)]
    return float(np.median(apart)) if len(apart) else 0.0


def held_out(retriever: Retriever, place: str | None, languages: Sequence[str], *, pictures: bool) -> Sample:
    """Queries and pictures that the model was not trained with.

    Args:
        retriever: the model.
        place: a dataset, or a text file of lines `language<TAB>query`; None: the run's own validation split.
        languages: whose queries are wanted.
        pictures: pictures are wanted, too, where there are some.

    Raises:
        ConfigError: there are none, with what to give.
        DataError: the dataset is damaged or has no captions of a language.
    """
    config = retriever.config
    where = place or next((each for each in (config.data.val, config.data.test) if each and _there(each)), None)
    if where is None:
        raise ConfigError(
            "an export is checked on held-out queries, and the run's validation split"
            f" ({config.data.val or 'none'}) is not there: name a dataset, or a text file of lines"
            " `language<TAB>query`, with --check"
        )
    if Path(where).is_file():
        return _of_file(Path(where), languages)
    dataset = Dataset.open(where)
    columns, name = config.method.query_columns(config.data), f"{dataset.name}/{dataset.split}"
    texts: dict[str, list[str]] = {}
    for lang in languages:
        column = columns.get(lang, f"caption.{lang}")
        if column in dataset.columns():
            texts[lang] = _texts(dataset, column)
        if not texts.get(lang):
            raise DataError(
                f"{where}: no captions in {lang!r} (column {column}) to check the export on; leave the language out"
                " (--lang), or give --check another dataset"
            )
    return Sample(texts, _pictures(dataset, config.data.visual) if pictures else (), where, name)


def _there(place: str) -> bool:
    return (Path(place) / "dataset.json").is_file()


def _rows(dataset: Dataset) -> list[tuple[int, int]]:
    """(shard, row) from all over the dataset, at most a few thousand."""
    every = [(shard, row) for shard, count in enumerate(dataset.shard_rows) for row in range(min(count, 500))]
    return every[:: max(1, len(every) // 2000)]


def _texts(dataset: Dataset, name: str) -> list[str]:
    column, found = dataset.column(name), dict[str, None]()
    for shard, row in _rows(dataset):
        found |= dict.fromkeys(text for text in texts_of(column.value(shard, row)) if has_text(text))
        if len(found) >= TEXTS:
            break
    return list(found)[:TEXTS]


def _pictures(dataset: Dataset, visual: str) -> list[Any]:
    """Of the run's column of pictures, or where it trained on features, of one that is called `image`."""
    for name in (visual, "image"):
        if name not in dataset.columns() or dataset.column(name).kind != "image":
            continue
        column, found = dataset.column(name), list[Any]()
        for shard, row in _rows(dataset):
            if (data := column.value(shard, row)) is not None:
                found.append(decode_image(data, f"{name} of {dataset.key(shard, row)}"))
            if len(found) >= PICTURES:
                break
        if found:
            return found
    return []


def _of_file(path: Path, languages: Sequence[str]) -> Sample:
    texts: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        lang, tab, query = line.partition("\t")
        if not tab or not has_text(query):
            raise ConfigError(f"{path}, line {number}: expected `language<TAB>query`")
        texts.setdefault(lang.strip(), []).append(query)
    if missing := [lang for lang in languages if not texts.get(lang)]:
        raise ConfigError(f"{path}: no queries in {', '.join(missing)}; add some, or leave the language out (--lang)")
    return Sample({lang: texts[lang][:TEXTS] for lang in languages}, (), str(path), path.name)
