"""Searching a large index without looking at every row: inverted lists of faiss, and how much they miss.

    INDEX/ann/000003.faiss     the rows of one state in lists, 16 bits a number
    INDEX/ann/000003.json      how many lists are read for a query, and the recall that this gives

What the lists give is scored again with the float32 rows: scores are exact, only items may be missing. The recall is
measured when the lists are made, with pictures of the index as queries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccr_dist.data.storage import store
from ccr_dist.data.storage.checked import read_checked
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.scoring.bounds import scores
from ccr_dist.scoring.topk import top_k
from ccr_dist.search.state import numbered
from ccr_dist.search.vectors import Vectors

ANN = "ann"
WANTED = 0.98  # recall at which no more lists are read
K = 10  # of the recall
_QUERIES = 200
_ROWS = 1 << 16  # added at a time
_TRAINING = 64  # rows a list, from which the lists are found
_LEAST = 39  # rows a list
_MORE = 4  # candidates for each item that is asked for


class Lists(NamedTuple):
    """How an approximate index was made.

    Attributes:
        items: that are in it.
        lists: how many there are.
        probes: how many are read for a query.
        recall: share of the exact 10 best that are found, on average.
        queries: pictures of the index that it was measured with.
    """

    items: int
    lists: int
    probes: int
    recall: float
    queries: int


def is_made(root: Path) -> bool:
    """Whether the index has lists, of whatever state."""
    return any((root / ANN).glob("[0-9]*.json"))


def make(root: Path, generation: int, vectors: Vectors, live: np.ndarray) -> Lists:
    """Makes the lists of a state, unless they are there, and removes those of earlier ones.

    Args:
        root: the index.
        generation: of the state.
        vectors: of that state.
        live: (total,) bool: the numbers that can be found; at least one.

    Raises:
        ModuleNotFoundError: faiss is not installed.
    """
    path = numbered(root / ANN, generation, ".faiss")
    if path.with_suffix(".json").exists():
        return _read(path)
    import faiss

    assert vectors.gallery is not None
    path.parent.mkdir(exist_ok=True)
    store.tidy(path.parent)
    dice = np.random.default_rng(0)
    places = np.flatnonzero(live[vectors.numbers])
    count = max(1, min(int(4 * len(places) ** 0.5), len(places) // _LEAST))
    width = vectors.gallery.width
    coarse = faiss.IndexFlatIP(width)
    half, product = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFScalarQuantizer(coarse, width, count, half, product)
    index.cp.seed = 1
    index.cp.min_points_per_centroid = 1  # faiss would print a warning about a small index
    some = np.sort(dice.choice(places, min(len(places), _TRAINING * count), replace=False))
    index.train(vectors.gallery.take(some))
    for start in range(0, len(places), _ROWS):
        part = places[start : start + _ROWS]
        index.add_with_ids(vectors.gallery.take(part), part)
    with store.staged(path) as tmp:
        faiss.write_index(index, str(tmp))
        tmp.replace(path)
    store.sync_folder(path.parent)
    asked = np.sort(dice.choice(places, min(len(places), _QUERIES), replace=False))
    probes, recall = _measured(index, vectors, live[vectors.numbers], asked)
    found = Lists(len(places), count, probes, recall, len(asked))
    about = {**found._asdict(), "bytes": path.stat().st_size}
    store.replace_atomic(path.with_suffix(".json"), store.pretty_json(store.with_digest(about)))
    for old in path.parent.glob("[0-9]*"):
        if int(old.name[:6]) < generation:
            old.unlink(missing_ok=True)
    return found


def _measured(index: Any, vectors: Vectors, allowed: np.ndarray, asked: np.ndarray) -> tuple[int, float]:
    """(lists that have to be read for the wanted recall, that recall). A picture's own row does not count."""
    assert vectors.gallery is not None
    rows = vectors.gallery.take(asked)
    exact, _ = top_k(rows, vectors.gallery, K + 1, allowed=allowed)
    probes = 1
    while True:
        found, _ = _searched(index, vectors, rows, K + 1, probes)
        shares = [
            len({*wanted.tolist()} & {*got.tolist()} - {own}) / max(1, len({*wanted.tolist()} - {own}))
            for own, wanted, got in zip(asked.tolist(), exact, found, strict=True)
        ]
        recall = float(np.mean(shares)) if len(allowed) > 1 else 1.0
        if recall >= WANTED or probes >= index.nlist:
            return probes, round(recall, 4)
        probes = min(2 * probes, index.nlist)


def _searched(index: Any, vectors: Vectors, rows: np.ndarray, k: int, probes: int) -> tuple[np.ndarray, np.ndarray]:
    """Places (q, k) int64 and exact scores (q, k); place -1 where nothing more was found."""
    import faiss

    assert vectors.gallery is not None
    queries = np.ascontiguousarray(rows, np.float32)
    _, near = index.search(queries, _MORE * k, params=faiss.SearchParametersIVF(nprobe=probes))  # type: ignore[call-arg]
    query, column = np.nonzero(near >= 0)
    exact = np.full(near.shape, -np.inf, np.float32)
    exact[query, column] = scores(vectors.gallery.take(near[query, column]), queries[query])
    order = np.lexsort((near, -exact))[:, :k]
    return np.take_along_axis(near, order, 1), np.take_along_axis(exact, order, 1)


def _read(path: Path) -> Lists:
    record = path.with_suffix(".json")
    try:
        about, sealed = read_checked(record, error=DataError)
    except FileNotFoundError:
        raise ConfigError(
            f"{path.parent.parent}: approximate search was not made for the newest state of this index:"
            " `ccr-dist index ... --ann` makes it"
        ) from None
    size = about.pop("bytes", None)
    if not sealed or not path.exists() or path.stat().st_size != size:
        raise DataError(f"{path}: missing or damaged; remove {record} and run `ccr-dist index ... --ann` again")
    return Lists(**about)


class Approximate:
    """The lists of one state, opened.

    Args:
        root: the index.
        generation: of the state.
        vectors: of that state.

    Attributes:
        lists: how it was made, and its recall.

    Raises:
        ConfigError: there are none for this state.
        DataError: they are damaged.
    """

    def __init__(self, root: Path, generation: int, vectors: Vectors) -> None:
        import faiss

        path = numbered(root / ANN, generation, ".faiss")
        self.lists = _read(path)
        self._vectors = vectors
        self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)

    def search(self, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (q, k) int64 and exact scores (q, k) float32 of the best that the lists give; fewer columns where a
        query finds fewer.
        """
        k = min(k, self.lists.items)
        places, values = _searched(self._index, self._vectors, rows, k, self.lists.probes)
        whole = int((places >= 0).all(axis=0).sum())
        return self._vectors.numbers[places[:, :whole]], values[:, :whole]
