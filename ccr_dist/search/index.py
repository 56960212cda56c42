"""An index: the rows of the pictures of folders and datasets, searched."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ccr_dist.data.media import pictures
from ccr_dist.data.storage import store
from ccr_dist.data.storage.lru import Recent
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.scoring.topk import top_k
from ccr_dist.search import nearest
from ccr_dist.search.listing import is_below
from ccr_dist.search.names import Line
from ccr_dist.search.state import FORMAT, INDEX, Source, is_index, name_of, names_of, read_identity, read_state
from ccr_dist.search.vectors import Dtype, Vectors, reduce

if TYPE_CHECKING:
    from ccr_dist.retriever.retriever import Retriever
    from ccr_dist.search.approximate import Approximate, Lists
    from ccr_dist.search.plan import Others
    from ccr_dist.search.update import JobSettings, Update

FOLDER = "folder"  # the label of files: the folder that they lie in
_DATASETS_HELD = 64


@dataclass(frozen=True)
class Item:
    """A picture or video of an index.

    Attributes:
        number: names it in this index, also after updates.
        key: its path in its folder, or its key in its dataset.
        kind: image or video.
        name: for people: the same as the key.
        path: the file, or the dataset that holds it.
        names: all its names; files of the same content are one item.
        captions: by language (and engine): `en`, `es.apertium`.
        labels: by name; files have the label `folder`.
    """

    number: int
    key: str
    kind: str
    name: str
    path: str
    names: tuple[str, ...] = ()
    captions: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


class Index:
    """The rows of a retriever for the pictures and videos of folders and datasets. `open` and `build` make one.

    It shows the state that it had when it was opened; `reload` shows the newest one. Reading is safe in threads.

    Attributes:
        path: its folder.
        dtype: of the rows that are searched; scores are always those of the float32 rows.
        model: {"name", "digest", "path"} of the retriever.
        languages: of queries.
        frames: of a video.
        cosine: rows are unit vectors, and their dot product is the score.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        identity = read_identity(path)
        try:
            model = identity["model"]
            self.model: dict[str, Any] = {name: model[name] for name in ("name", "digest", "path")}
            self.languages: tuple[str, ...] = tuple(model["languages"])
            self.cosine: bool = model["cosine"]
            self.text_width: int = model["text_width"]
            self.visual_width: int = model["visual_width"]
            self.dtype: Dtype = identity["dtype"]
            self.frames: int = identity["frames"]
            self._pictures: int = identity["pictures"]
        except (KeyError, TypeError) as error:
            raise DataError(f"{path / INDEX}: damaged ({error}); make a new index") from None
        self.reload()

    @staticmethod
    def open(path: str | Path) -> Index:
        """Opens an index.

        Raises:
            DataError: there is none, or it is damaged.
        """
        index = Index(Path(path))
        _ = index._vectors
        return index

    @staticmethod
    def build(
        path: str | Path,
        retriever: Retriever,
        pictures: str | Path | Sequence[str | Path],
        *,
        dtype: Dtype | None = None,
        frames: int | None = None,
        workers: int | None = None,
        ann: bool = False,
        progress: bool = True,
    ) -> Index:
        """Makes an index, or brings one up to date.

        Args:
            path: its folder.
            retriever: encodes what is new.
            pictures: folders of pictures and videos, datasets (or URLs of them), tars.
            dtype: of the rows that are searched: float32, float16 or int8. The best of the smaller ones are scored
                again with the float32 rows. None: that of the index; float32 for a new one.
            frames: of a video; None: as the index has it; 8 for a new one.
            workers: processes that read pictures; None: what suits the device.
            ann: make approximate search, too; see `search`.
            progress: whether to show a bar.

        Raises:
            ConfigError: the index is one of another model, dtype or pictures; it says what to do.
            DataError: nothing can be found in `pictures`.
        """
        index = begin(Path(path), retriever, dtype=dtype, frames=frames)
        index.update(retriever, _words(pictures), ann=ann, settings=_settings(workers=workers, progress=progress))
        return index

    def add(
        self, pictures: str | Path | Sequence[str | Path], retriever: Retriever, *, progress: bool = True
    ) -> Update:
        """Adds pictures, and brings those of the same places up to date. Other sources are kept as they are.

        Args:
            pictures, progress: as for `build`.
            retriever: the one that the index was made with.
        """
        return self.update(retriever, _words(pictures), others="keep", settings=_settings(progress=progress))

    def update(
        self,
        retriever: Retriever,
        words: Sequence[str],
        *,
        column: str | None = None,
        others: Others = "refuse",
        check: bool = False,
        ann: bool = False,
        settings: JobSettings | None = None,
    ) -> Update:
        """Makes the index hold what the places `words` hold now; see `update.update`. ann: with approximate search;
        where there is some, it is made anew in any case.

        Raises:
            ConfigError: another model, or other places, and `others` is refuse.
            DataError: nothing can be found, or a place is gone.
        """
        from ccr_dist.search.sources import sources_of
        from ccr_dist.search.update import update

        settings = settings or _settings()
        self.require(retriever)
        if self._pictures != pictures.VERSION:
            raise ConfigError(
                f"{self.path}: its pictures were read by rule {self._pictures}, they are now read by rule"
                f" {pictures.VERSION} (ccr_dist/data/media/pictures.py): it can be searched, and is not continued; make"
                " a new index with another --out"
            )
        sources = sources_of(words, self.path, retriever, column=column, progress=settings.progress)
        done = update(
            self.path,
            retriever,
            sources,
            frames=self.frames,
            others=others,
            check=check,
            settings=settings,
            finish=lambda root, segment: reduce(root, segment, self.dtype),
        )
        self.reload()
        if not done.stopped and not self.items:
            raise DataError(_nothing(words, done))
        if not done.stopped and (ann or self.has_ann):
            done.ann = self.make_ann()._asdict()
        return done

    def require(self, retriever: Retriever) -> None:
        """Raises ConfigError unless the index was made with this retriever."""
        if retriever.digest != self.model["digest"]:
            raise ConfigError(
                f"{self.path}: an index of the model {self.model['name']} ({self.model['digest'][:12]},"
                f" {self.model['path']}), and not of {retriever.name} ({retriever.digest[:12]}): rows of two models"
                " cannot be compared. Name that model, or make an index of this one with another --out"
            )

    def reload(self) -> None:
        """Shows the newest state from now on."""
        while True:
            state = read_state(self.path)
            try:
                self._names = names_of(self.path, state)
                break
            except DataError:
                if read_state(self.path).generation == state.generation:
                    raise
        self._state = state
        self._opened: Vectors | None = None
        self._lists: Approximate | None = None
        self._datasets: Recent[Dataset] = Recent(_DATASETS_HELD)
        self._labels: dict[str, np.ndarray] = {}

    @property
    def _vectors(self) -> Vectors:
        """Opened when they are first needed: an update mends what is missing of them."""
        if self._opened is None:
            self._opened = Vectors(self.path, self._state.segments, self.dtype)
        return self._opened

    # What is in it.

    @property
    def items(self) -> int:
        """How many items can be found."""
        return self._state.items

    @property
    def generation(self) -> int:
        """Counts the updates."""
        return self._state.generation

    @property
    def sources(self) -> tuple[Source, ...]:
        """Its folders and datasets."""
        return self._state.sources

    def numbers(self) -> np.ndarray:
        """(items,) int64: the numbers of all items, ascending."""
        return np.flatnonzero(self._live)

    @property
    def _live(self) -> np.ndarray:
        return self._names.live if self._names else np.zeros(0, np.bool_)

    def _lines(self, number: int) -> list[Line]:
        if self._names is None:
            raise DataError(f"{self.path}: no item has the number {number}: the index is empty")
        return self._names.of(number)

    def named(self, number: int) -> Item:
        """An item as the index itself knows it: without the captions and labels of its dataset.

        Raises:
            DataError: no item has this number.
        """
        lines = self._lines(number)
        line, source = lines[0], self._state.sources[lines[0]["source"]]
        names = tuple(name_of(each, self._state.sources) for each in lines)
        if "path" not in line:
            return Item(number, line["key"], line["kind"], line["key"], source["path"], names)
        path = line["path"]
        return Item(number, path, line["kind"], path, names[0], names, labels={FOLDER: _folder(path)})

    def item(self, number: int) -> Item:
        """An item with its captions and labels. Raises DataError where no item has this number."""
        item, line = self.named(number), self._lines(number)[0]
        if "key" not in line:
            return item
        dataset = self._dataset(self._state.sources[line["source"]])
        captions, labels = _described(dataset, line["shard"], line["row"])
        return replace(item, captions=captions, labels=labels)

    def picture(self, number: int) -> bytes:
        """The bytes of a picture or video, as it was indexed.

        Raises:
            DataError: it is gone, or has changed since, or no item has this number.
        """
        why = ""
        for line in self._lines(number):
            source = self._state.sources[line["source"]]
            if "key" in line:
                return self._media(source, line)
            try:
                return _unchanged(Path(source["path"]), line)
            except DataError as error:
                why = str(error)
        raise DataError(why)

    def _media(self, source: Source, line: Line) -> bytes:
        dataset = self._dataset(source)
        names = [source["visual"], *(name for name in ("image", "video") if name in dataset.columns())]
        for name in names:
            column = dataset.column(name)
            if column.kind in ("image", "video"):
                data: bytes | None = column.value(line["shard"], line["row"])
                if data:
                    return data
        raise DataError(f"{source['path']}: item {line['key']!r} has no picture or video there, only features")

    def rows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, visual_width) float32, the rows of n ≥ 1 numbers."""
        return self._vectors.rows(numbers)

    def _dataset(self, source: Source) -> Dataset:
        return self._datasets.made(source["path"], lambda: Dataset(source["path"]))

    # Searching.

    def search(
        self,
        rows: np.ndarray,
        k: int,
        *,
        where: Mapping[str, str] | None = None,
        score: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
        ann: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best items for some queries, exactly: every row is scored.

        Args:
            rows: (q, text_width) float32: `Retriever.encode_text`.
            k: how many; fewer where there are fewer.
            where: label -> value: only items that have all of them.
            score: gives the scores (q, m) of the queries with m rows. None: their dot products.
            ann: look at some rows only, by lists that `make_ann` has made: items may be missing, scores are exact.
                Not with `where` or `score`.

        Returns:
            Numbers (q, k) int64 and scores (q, k) float32, best first; of equal scores the smaller number first.

        Raises:
            DataError: rows of another width, a label that no item has, or rows whose dot product is no score.
            ConfigError: `ann` without lists for this state, or with `where` or `score`.
        """
        if score is None and not self.cosine:
            raise DataError(
                f"{self.path}: scores of {self.model['name']} have several parts: give its `similarity` as `score`, or"
                " search with a Searcher"
            )
        if rows.ndim != 2 or rows.shape[1] not in (self.text_width, self.visual_width):
            raise DataError(f"queries of shape {rows.shape}; expected (q, {self.text_width})")
        if ann:
            if where or score is not None:
                raise ConfigError("approximate search knows no labels, and no scores of several parts: leave out --ann")
            return self._approximate().search(rows, k)
        allowed = self._live & self._where(where) if where else self._live
        if score is not None:
            own = score
            return nearest.best(self._vectors, allowed, lambda block: own(rows, block), len(rows), k)
        if self._vectors.gallery is None:
            return np.zeros((len(rows), 0), np.int64), np.zeros((len(rows), 0), np.float32)
        at, scores = top_k(rows, self._vectors.gallery, k, allowed=allowed[self._vectors.numbers])
        return self._vectors.numbers[at], scores

    def _approximate(self) -> Approximate:
        from ccr_dist.search.approximate import Approximate

        if self._lists is None:
            self._lists = Approximate(self.path, self.generation, self._vectors)
        return self._lists

    @property
    def has_ann(self) -> bool:
        """Whether approximate search was ever made for this index."""
        from ccr_dist.search.approximate import is_made

        return is_made(self.path)

    def make_ann(self) -> Lists:
        """Makes approximate search for the state that is open, unless it is there.

        Returns:
            How it was made, and its recall.

        Raises:
            ConfigError: scores have several parts.
            ModuleNotFoundError: faiss is not installed.
        """
        from ccr_dist.search.approximate import make

        if not self.cosine:
            raise ConfigError(
                f"{self.path}: scores of {self.model['name']} have several parts, which faiss cannot search: leave out"
                " --ann"
            )
        return make(self.path, self.generation, self._vectors, self._live)

    def _where(self, where: Mapping[str, str]) -> np.ndarray:
        """(total,) bool: the numbers that have all of these labels."""
        mask = np.ones(self._state.total, np.bool_)
        for name, value in where.items():
            values = self._label(name)
            mask &= values == value
            if not (values[self._live] == value).any():
                there = sorted({each for each in values[self._live] if each is not None})
                some = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
                raise DataError(f"{self.path}: no item has {name}={value!r}; there are: {some or 'no values'}")
        return mask

    def _label(self, name: str) -> np.ndarray:
        if name not in self._labels:
            self._labels[name] = self._read_label(name)
        return self._labels[name]

    def _read_label(self, name: str) -> np.ndarray:
        """(total,) of str or None."""
        values = np.full(self._state.total, None, object)
        known = False
        columns: dict[int, Any] = {}
        for at, source in enumerate(self._state.sources):
            if source["kind"] == "dataset" and f"label.{name}" in self._dataset(source).columns():
                columns[at] = self._dataset(source).column(f"label.{name}")
                known = True
        for line in self._names.all() if self._names else ():
            if "path" in line and name == FOLDER:
                values[line["number"]], known = _folder(line["path"]), True
            elif "key" in line and line["source"] in columns:
                values[line["number"]] = columns[line["source"]].value(line["shard"], line["row"])
        if not known:
            raise DataError(
                f"{self.path}: no label {name!r}; files have the label {FOLDER}, datasets those of their columns"
            )
        return values


def begin(
    path: Path,
    retriever: Retriever,
    *,
    dtype: Dtype | None = None,
    frames: int | None = None,
    model: str | None = None,
) -> Index:
    """Opens an index that is to be updated; makes an empty one where there is none.

    Args:
        path: its folder.
        retriever: that it is made with.
        dtype, frames: as for `Index.build`; None: those of the index, float32 and 8 for a new one.
        model: what `ccr_dist.load` was given; None: the retriever's folder.

    Raises:
        ConfigError: the folder holds something else, or an index of another model, dtype or number of frames.
    """
    if dtype not in (None, "float32", "float16", "int8"):
        raise ConfigError(f"dtype {dtype!r}: expected float32, float16 or int8")
    if frames is not None and frames < 1:
        raise ConfigError(f"{frames} frames of a video: expected at least 1")
    if dtype not in (None, "float32") and not retriever.cosine:
        raise ConfigError(
            f"dtype {dtype}: scores of {retriever.name} have several parts, which are computed from float32 rows: leave"
            " the option out"
        )
    if not is_index(path):
        if path.exists() and not _is_free(path) and not is_index(path):
            raise ConfigError(f"{path}: not an index, and not empty; name a new folder with --out")
        path.mkdir(parents=True, exist_ok=True)
        about_model = {
            "name": retriever.name,
            "digest": retriever.digest,
            "path": _place(model, retriever),
            "languages": list(retriever.languages),
            "cosine": retriever.cosine,
            "text_width": retriever.text_width,
            "visual_width": retriever.visual_width,
        }
        about = {"format": FORMAT, "model": about_model, "dtype": dtype or "float32", "frames": frames or 8}
        about["pictures"] = pictures.VERSION
        store.create_once(path / INDEX, store.pretty_json(store.with_digest(about)))
    index = Index(path)
    index.require(retriever)
    for name, there, asked in (("dtype", index.dtype, dtype), ("frames", index.frames, frames)):
        if asked is not None and there != asked:
            raise ConfigError(
                f"{path}: an index with {name} {there}, and not {asked}: leave the option out, or make another index"
                " with another --out"
            )
    return index


def _place(model: str | None, retriever: Retriever) -> str | None:
    """Where the model is loaded from when the index is searched."""
    if model is not None and "://" in model:
        return model
    place = retriever.folder or model
    return None if place is None else str(Path(place).resolve())


def _is_free(path: Path) -> bool:
    """Whether an index may be made there: others may be making it right now."""
    return path.is_dir() and all(entry.name.startswith(store.TEMPORARY) for entry in path.iterdir())


def _settings(**given: Any) -> JobSettings:
    """Of the jobs. What updates need is imported by those that make one: a search starts sooner without it."""
    from ccr_dist.search.update import JobSettings

    return JobSettings(**given)


def _words(pictures: str | Path | Sequence[str | Path]) -> list[str]:
    return [str(pictures)] if isinstance(pictures, str | Path) else [str(each) for each in pictures]


def _nothing(words: Sequence[str], done: Update) -> str:
    place = ", ".join(words)
    reasons = [f"\n  {path}: {why}" for path, why in [*done.bad.items(), *done.passed.items()][:5]]
    if done.bad:
        return f"{place}: none of {len(done.bad)} pictures can be read. The first ones:{''.join(reasons)}"
    beside = f"; files that are neither: {len(done.passed)}{''.join(reasons)}" if done.passed else ""
    tars = (
        "; tars are named one by one or by a pattern, 'DIR/*.tar'"
        if any(p.endswith(".tar") for p in done.passed)
        else ""
    )
    return f"{place}: no pictures or videos{tars}{beside}"


def _folder(path: str) -> str:
    """The folder of a path with /, wherever this runs; "" at the top."""
    return path.rpartition("/")[0]


def _described(dataset: Dataset, shard: int, row: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions and labels of a row."""
    captions: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    for name in dataset.columns():
        kind, _, rest = name.partition(".")
        if kind in ("caption", "label") and not dataset.column(name).missing():
            value = dataset.column(name).value(shard, row)
            if value is not None and kind == "caption":
                captions[rest] = value
            elif value is not None:
                labels[rest] = value
    return captions, labels


def _unchanged(root: Path, line: Line) -> bytes:
    path = root / line["path"]
    try:
        if not is_below(os.path.realpath(path), os.path.realpath(root)):
            raise DataError(f"{path}: leads out of the folder {root}")
        about = path.stat()  # of a pipe, reading would never end; a file that has grown may not fit into memory
        if not stat.S_ISREG(about.st_mode) or about.st_size != line["bytes"]:
            raise DataError(f"{path}: changed since it was indexed; run `ccr-dist index` again")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); run `ccr-dist index` again") from None
    if hashlib.sha256(data).hexdigest() != line["sha256"]:
        raise DataError(f"{path}: changed since it was indexed; run `ccr-dist index` again")
    return data
