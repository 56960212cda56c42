"""mteb's task form for datasets of this project: texts find pictures or videos, and the reverse, a subset a language.

Queries, candidates and what counts as a text are those of `ccr-dist evaluate`: items without a picture are no
candidates, and blank captions are neither queries nor candidates. The pictures are written to a temporary Arrow file
once, which all subsets share; any model that mteb can load can be measured on it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset as Arrow
from datasets import Features, Image, Value, Video
from datasets.arrow_writer import ArrowWriter
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata

from ccr_dist.data.storage.store import digest_json
from ccr_dist.data.stream.sweep import Sweep
from ccr_dist.data.table.dataset import Dataset, open_all
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.generate.text import languages
from ccr_dist.standard.published import CORPORA, Corpus
from ccr_dist.standard.subsets import written

DIRECTIONS = ("T2V", "V2T")
SUFFIX = "Retrieval"


def task_names() -> list[str]:
    """The tasks that read a dataset of one's own: NAME=FOLDER."""
    return list(_named())


def dataset_task(dataset: Dataset, title: str, direction: str, corpus: Corpus) -> DatasetRetrieval:
    """A task over a dataset.

    Args:
        dataset: whose rows are the items.
        title: first part of the task's name.
        direction: T2V or V2T.
        corpus: which columns are read, and what is said of them.

    Raises:
        DataError: a column is missing or incomplete.
    """
    metadata = _metadata(dataset, title, direction, corpus)
    about = {"metadata": metadata, "source": dataset, "direction": direction, "visual": corpus.visual}
    made: DatasetRetrieval = type(metadata.name, (DatasetRetrieval,), about)()
    return made


def own_task(name: str, folder: str | Path) -> DatasetRetrieval:
    """A task over a dataset.

    Args:
        name: one of `task_names()`; or T2V or V2T, for any dataset with pictures or videos and captions.
        folder: the dataset; or the folder of several, of which `test` is taken.

    Raises:
        ConfigError: no such name, or a dataset that another recipe made.
        DataError: no dataset, or one that lacks a column.
    """
    known = _named()
    if name not in (*DIRECTIONS, *known):
        raise ConfigError(
            f"--mteb {name}={folder}: expected one of {', '.join([*DIRECTIONS, *known])} before a dataset"
        )
    dataset = _test_split(folder)
    if name in DIRECTIONS:
        title = re.sub(r"[^\w.-]", "_", dataset.name)  # a part of the name of mteb's result file
        return dataset_task(dataset, title, name, _any_corpus(dataset))
    title, direction = known[name]
    corpus = CORPORA[title]
    if dataset.name != corpus.recipe or dataset.split != "test":
        raise ConfigError(
            f"--mteb {name}={folder}: {dataset.place} is the split {dataset.split!r} of {dataset.name!r}; expected the"
            f" test split that `ccr-dist shards build {corpus.recipe}` makes. {direction}={folder} measures on any"
            " dataset, under its own name"
        )
    return dataset_task(dataset, title, direction, corpus)


class DatasetRetrieval(AbsTaskRetrieval):
    """Retrieval between the captions of a dataset and its pictures or videos. `dataset_task` makes a subclass for each
    dataset: mteb keeps the description of a task at its class.

    Attributes:
        metadata: mteb's description. The revision is a digest of all columns that are read.
        source: the dataset, whose rows are the items.
        direction: T2V or V2T.
        visual: image or video.
    """

    metadata: TaskMetadata
    source: Dataset
    direction: str
    visual: str
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Read everything into mteb's form; `num_proc` is not used."""
        if self.data_loaded:
            return
        self._folder = tempfile.TemporaryDirectory(prefix="ccr-mteb-")
        numbers, items = _items(self.source, self.visual, Path(self._folder.name) / "items.arrow")
        self.dataset = {lang: {self.source.split: self._subset(lang, numbers, items)} for lang in self.hf_subsets}
        self.data_loaded = True

    def unload_data(self) -> None:
        """Forget the data, and remove the temporary file."""
        super().unload_data()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _subset(self, lang: str, numbers: dict[int, int], items: Arrow) -> RetrievalSplitData:
        """One language. numbers: row of the dataset -> row of `items`."""
        ids = items["id"][:]
        texts, item_of = {}, {}
        for row, part, text in _values(self.source, f"caption.{lang}"):
            if row in numbers:
                item = ids[numbers[row]]
                texts[f"{item}#{part}"], item_of[f"{item}#{part}"] = text, item
        if not texts:
            raise DataError(f"{self.source.place}: no caption in {lang!r} belongs to an item with a {self.visual}")
        captions = Arrow.from_dict({"id": list(texts), "text": list(texts.values())})
        if self.direction == "T2V":
            relevant = {text: {item: 1} for text, item in item_of.items()}
            return RetrievalSplitData(corpus=items, queries=captions, relevant_docs=relevant, top_ranked=None)
        right: dict[str, dict[str, int]] = {}
        for text, item in item_of.items():
            right.setdefault(item, {})[text] = 1
        asked = items.select([at for at, item in enumerate(ids) if item in right])
        return RetrievalSplitData(corpus=captions, queries=asked, relevant_docs=right, top_ranked=None)


def _named() -> dict[str, tuple[str, str]]:
    """Name of a task -> key of its corpus, direction."""
    return {_name(title, way, corpus.visual): (title, way) for title, corpus in CORPORA.items() for way in DIRECTIONS}


def _name(title: str, direction: str, visual: str) -> str:
    return f"{title}{direction.replace('V', visual[0].upper())}{SUFFIX}"


def _test_split(folder: str | Path) -> Dataset:
    found = open_all(folder)
    chosen = next((dataset for dataset in found if dataset.split == "test"), found[0] if len(found) == 1 else None)
    if chosen is None:
        raise ConfigError(
            f"{folder} holds the datasets {', '.join(dataset.split for dataset in found)}, and no test split: name one"
        )
    return chosen


def _any_corpus(dataset: Dataset) -> Corpus:
    """What can be said of a dataset that is not one of `CORPORA`: captions that were not made by a machine."""
    there = dataset.columns()
    visual = next((name for name in ("image", "video") if name in there), None)
    named = (name.split(".") for name in there)
    spoken = tuple(
        parts[1] for parts in named if len(parts) == 2 and parts[0] == "caption" and languages.known(parts[1])
    )
    if visual is None or not spoken:
        raise DataError(
            f"{dataset.place}: expected a column image or video, and columns of captions such as caption.de; it has"
            f" {', '.join(there) or 'no columns'}"
        )
    about = f"The split {dataset.split} of the dataset {dataset.name}: {dataset.rows} items."
    return Corpus(dataset.name, visual, spoken, about, "", 0)


def _metadata(dataset: Dataset, title: str, direction: str, corpus: Corpus) -> TaskMetadata:
    names = (corpus.visual, *(f"caption.{lang}" for lang in corpus.languages))
    columns = {name: dataset.column(name) for name in names}
    for column in columns.values():
        column.require_complete()
    digests = {name: column.digest for name, column in columns.items()}
    letter = corpus.visual[0]
    return TaskMetadata(
        name=_name(title, direction, corpus.visual),
        description=corpus.about,
        reference=corpus.reference or None,
        dataset={"path": f"ccr-dist/{corpus.recipe}", "revision": digest_json(digests)},
        type="Any2AnyMultilingualRetrieval",
        category=f"t2{letter}" if direction == "T2V" else f"{letter}2t",
        eval_splits=[dataset.split],
        eval_langs={lang: [written(lang)] for lang in corpus.languages},
        main_score="ndcg_at_10",
        date=(f"{corpus.year}-01-01", f"{corpus.year}-12-31") if corpus.year else None,
        task_subtypes=["Image Text Retrieval"] if corpus.visual == "image" else ["Caption Pairing"],
        license=corpus.licence,
        modalities=["text", corpus.visual],
        sample_creation="found" if corpus.year else None,
        bibtex_citation=corpus.bibtex,
    )


def _items(dataset: Dataset, visual: str, path: Path) -> tuple[dict[int, int], Arrow]:
    """Row of the dataset -> row of the result, and the items: `id` and the picture or video."""
    features = Features({"id": Value("string"), visual: Image() if visual == "image" else Video()})
    numbers: dict[int, int] = {}
    keys = [key for shard in range(len(dataset.shards)) for key in dataset.keys(shard)]
    with ArrowWriter(features=features, path=str(path)) as writer:
        for row, _, data in _values(dataset, visual):
            numbers[row] = len(numbers)
            writer.write({"id": keys[row], visual: {"bytes": data, "path": None}})
        writer.finalize()
    if not numbers:
        raise DataError(f"{dataset.place}: no item has a {visual}")
    return numbers, Arrow.from_file(str(path))


def _values(dataset: Dataset, column: str) -> Iterator[tuple[int, int, Any]]:
    """Row, number of the value in it, value: bytes, or a text; null rows and blank texts are left out."""
    source = Sweep(dataset, column)
    for block in (source[i] for i in range(len(source))):
        yield from zip(block.rows.tolist(), block.parts.tolist(), block.values, strict=True)
