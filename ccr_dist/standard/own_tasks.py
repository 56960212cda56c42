"""mteb's task form for datasets of this project: texts find pictures or videos, and the reverse, a subset a language.

Queries, candidates and what counts as a text are those of `ccr-dist evaluate`: items without a picture are no
candidates, and blank captions are neither queries nor candidates. The pictures are written to a temporary Arrow file
once, which all subsets share; any model that mteb can load can be measured on it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
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
from ccr_dist.standard.subsets import written

DIRECTIONS = {"T2V": "from texts", "V2T": "to texts"}
SUFFIX = "Retrieval"


@dataclass(frozen=True)
class Corpus:
    """A published corpus, for which a recipe makes the dataset.

    Attributes:
        recipe: that makes it; the name of the dataset.
        visual: image or video.
        languages: of its test split, which papers report.
        about: one sentence.
        reference: where it is described.
        year: of publication.
        bibtex: "" where mteb's authors ask for none, too.
        licence: as mteb writes it.
    """

    recipe: str
    visual: str
    languages: tuple[str, ...]
    about: str
    reference: str
    year: int
    bibtex: str = ""
    licence: str = "not specified"


_MULTI30K = r"""
@inproceedings{elliott2016multi30k,
  address = {Berlin, Germany},
  author = {Elliott, Desmond and Frank, Stella and Sima'an, Khalil and Specia, Lucia},
  booktitle = {Proceedings of the 5th Workshop on Vision and Language},
  pages = {70--74},
  publisher = {Association for Computational Linguistics},
  title = {Multi30K: Multilingual English-German Image Descriptions},
  year = {2016},
}
"""
_VATEX = r"""
@inproceedings{wang2019vatex,
  author = {Wang, Xin and Wu, Jiawei and Chen, Junkun and Li, Lei and Wang, Yuan-Fang and Wang, William Yang},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  title = {VATEX: A Large-Scale, High-Quality Multilingual Dataset for Video-and-Language Research},
  year = {2019},
}
"""
# What mteb has not. Its own Multi30k tasks have one caption a picture in each language; its VATEX and MSR-VTT are
# English.
CORPORA = {
    "Multi30kTask2": Corpus(
        "multi30k-task2",
        "image",
        ("en", "de", "fr", "cs"),
        "Multi30K's test set of 2016: 1,000 Flickr30K pictures with five English and five German captions, written"
        " independently, and one French and one Czech translation.",
        "https://aclanthology.org/W16-3210/",
        2016,
        _MULTI30K,
    ),
    "XTD10": Corpus(
        "xtd10",
        "image",
        ("en", "de", "fr", "es", "it", "ja", "ko", "pl", "ru", "tr", "zh"),
        "1,000 MSCOCO pictures with one caption in each of eleven languages.",
        "https://github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10",
        2020,
    ),
    "VATEXZh": Corpus(
        "vatex",
        "video",
        ("zh",),
        "One half of VATEX's validation set, as papers on cross-lingual retrieval use it: 1,500 clips with ten Chinese"
        " captions each.",
        "https://arxiv.org/abs/1904.03493",
        2019,
        _VATEX,
        "cc-by-4.0",
    ),
    "MSRVTTCN": Corpus(
        "msrvtt-cn",
        "video",
        ("zh",),
        "MSR-VTT's test videos with Chinese captions (MSR-VTT-CN), as NRCCR publishes them.",
        "https://github.com/LiJiaBei-7/nrccr",
        2022,
    ),
}


def task_names() -> list[str]:
    """The tasks that read a dataset of one's own: NAME=FOLDER."""
    return [_name(corpus, direction, CORPORA[corpus].visual) for corpus in CORPORA for direction in DIRECTIONS]


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
    dataset = _test_split(folder)
    known = {_name(corpus, way, CORPORA[corpus].visual): (corpus, way) for corpus in CORPORA for way in DIRECTIONS}
    if name in DIRECTIONS:
        return dataset_task(dataset, dataset.name, name, _any_corpus(dataset))
    if name not in known:
        raise ConfigError(
            f"--mteb {name}={folder}: expected one of {', '.join([*DIRECTIONS, *known])} before a dataset"
        )
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
        ids = items["id"]
        texts, item_of = {}, {}
        for row, part, text in _captions(self.source, f"caption.{lang}"):
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
    spoken = tuple(parts[1] for parts in named if len(parts) == 2 and parts[0] == "caption" and _is_language(parts[1]))
    if visual is None or not spoken:
        raise DataError(
            f"{dataset.place}: expected a column image or video, and columns of captions such as caption.de; it has"
            f" {', '.join(there) or 'no columns'}"
        )
    about = f"The split {dataset.split} of the dataset {dataset.name}: {dataset.rows} items."
    return Corpus(dataset.name, visual, spoken, about, "", 0)


def _is_language(tag: str) -> bool:
    return languages.known(tag)


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


def _captions(dataset: Dataset, column: str) -> Iterator[tuple[int, int, str]]:
    """Row, number of the caption in it, caption; blank ones are left out."""
    return _values(dataset, column)


def _values(dataset: Dataset, column: str) -> Iterator[tuple[int, int, Any]]:
    source = Sweep(dataset, column)
    for block in (source[i] for i in range(len(source))):
        yield from zip(block.rows.tolist(), block.parts.tolist(), block.values, strict=True)
