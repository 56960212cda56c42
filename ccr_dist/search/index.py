"""An index: the rows of the pictures of folders and datasets, searched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ccr_dist.data.media import pictures
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.scoring.topk import top_k
from ccr_dist.search import nearest
from ccr_dist.search.begin import make_empty
from ccr_dist.search.items import Item, Items
from ccr_dist.search.state import INDEX, Source, names_of, read_identity, read_state
from ccr_dist.search.vectors import Dtype, Vectors, reduce

if TYPE_CHECKING:
    from ccr_dist.retriever.retriever import Retriever
    from ccr_dist.search.approximate import Approximate, Lists
    from ccr_dist.search.plan import Others
    from ccr_dist.search.update import JobSettings, Update


class Index:
    """The rows of a retriever for the pictures and videos of folders and datasets. `open` and `build` make one.

    It shows the state that it had when it was opened; `reload` shows the newest one. Reading is safe in threads.

    Attributes:
        path: its folder.
        dtype: of the rows that are searched; scores are always those of the float32 rows.
        model: {"name", "digest", "path"} of the retriever.
        languages: of queries.
        any_language: the model reads queries in others, too.
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
            self.any_language: bool = model.get("any_language", False)
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
        if ann:
            self._require_one_part()
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
        if retriever.reads_descriptions and any(not source.get("description") for source in sources):
            done.notes.append(
                f"{retriever.name} reads a description of each picture; files have none, so they are encoded without"
            )
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
                names = names_of(self.path, state)
                break
            except DataError:
                if read_state(self.path).generation == state.generation:
                    raise
        self._state = state
        self._opened: Vectors | None = None
        self._lists: Approximate | None = None
        self._items = Items(self.path, state, names)

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
        return np.flatnonzero(self._items.live)

    def named(self, number: int) -> Item:
        """An item as the index itself knows it: without the captions and labels of its dataset.

        Raises:
            DataError: no item has this number.
        """
        return self._items.named(number)

    def item(self, number: int) -> Item:
        """An item with its captions and labels. Raises DataError where no item has this number."""
        return self._items.item(number)

    def picture(self, number: int) -> bytes:
        """The bytes of a picture or video, as it was indexed.

        Raises:
            DataError: it is gone, or has changed since, or no item has this number.
        """
        return self._items.picture(number)

    def labels(self) -> dict[str, dict[str, int]]:
        """What items can be chosen by (`where`): label -> value -> how many items have it. All labels are read, once.

        Raises:
            DataError: a dataset is gone or damaged, or one of its columns of labels is not complete.
        """
        return self._items.labels()

    def rows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, visual_width) float32, the rows of n ≥ 1 numbers."""
        return self._vectors.rows(numbers)

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
        if isinstance(k, bool) or not isinstance(k, int | np.integer):
            raise DataError(f"k {k!r}: expected a whole number, at least 1")
        rows = np.asarray(rows)
        if rows.dtype.kind not in "fiu" or rows.ndim != 2 or rows.shape[1] not in (self.text_width, self.visual_width):
            raise DataError(f"queries of {rows.dtype} {rows.shape}; expected numbers (q, {self.text_width})")
        if ann:
            if where or score is not None:
                raise ConfigError("approximate search knows no labels, and no scores of several parts: leave out --ann")
            return self._approximate().search(rows, k)
        allowed = self._items.where(where) if where else self._items.live
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

    def _require_one_part(self) -> None:
        if not self.cosine:
            raise ConfigError(
                f"{self.path}: scores of {self.model['name']} have several parts, which faiss cannot search: leave out"
                " --ann"
            )

    def make_ann(self) -> Lists:
        """Makes approximate search for the state that is open, unless it is there.

        Returns:
            How it was made, and its recall.

        Raises:
            ConfigError: scores have several parts.
            ModuleNotFoundError: faiss is not installed.
        """
        from ccr_dist.search.approximate import make

        self._require_one_part()
        return make(self.path, self.generation, self._vectors, self._items.live)


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
    make_empty(path, retriever, dtype, frames, model)
    index = Index(path)
    index.require(retriever)
    for name, there, asked in (("dtype", index.dtype, dtype), ("frames", index.frames, frames)):
        if asked is not None and there != asked:
            raise ConfigError(
                f"{path}: an index with {name} {there}, and not {asked}: leave the option out, or make another index"
                " with another --out"
            )
    return index


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
