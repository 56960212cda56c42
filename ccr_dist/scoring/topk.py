"""The best k rows of a gallery for every query: exact, whatever the rows are stored in.

A block of the gallery is multiplied in float32. What could be among the best, by the bounds on rounding and on the
distance of a reduced row from its exact one, is a candidate; in the end the candidates' exact scores decide. So the
answer is that of exact float32 rows, also where int8 is read: no number of candidates is guessed.

Memory holds a block of scores and the candidates, of which there are never more than `MOST_CANDIDATES` at once, however
large the gallery is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ccr_dist.errors import DataError, NonFiniteError
from ccr_dist.scoring.bounds import product_error, scores
from ccr_dist.scoring.gallery import Floats, Gallery, Numbers, row_lengths

BLOCK_QUERIES = 1024
BLOCK_SCORES = 1 << 22  # 16 MiB
MOST_CANDIDATES = 1 << 20
PAIRS_AT_ONCE = 1 << 13  # exact scores at a time
BLOCK_ROWS = 1 << 16
FEW_ROWS = 1 << 12  # of them for one query after another, while they are in the cache
READ_VALUES = 1 << 21  # values at a time that are made float32: 8 MiB
FEW_QUERIES = 4  # row by row is faster than a matrix product of so few
CROWDED = 16  # of one score in so many a candidate, it is cheaper to ask the block itself for its best


def top_k(
    queries: Floats, gallery: Gallery, k: int, *, allowed: NDArray[np.bool_] | None = None
) -> tuple[Numbers, Floats]:
    """The k rows that score best, best first, ties by the lower number.

    Args:
        queries: (q, D) float32.
        gallery: N rows.
        k: at least 1.
        allowed: (N,) bool: the rows that may be found; None: all.

    Returns:
        Numbers (q, m) int64 and scores (q, m) float32, where m is k, or the number of allowed rows where that is less.

    Raises:
        DataError: shapes that do not fit.
        NonFiniteError: a query that is not finite.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != gallery.width:
        raise DataError(f"queries have shape {queries.shape}, the gallery's rows are {gallery.width} wide")
    if k < 1:
        raise DataError(f"the best {k} rows: expected 1 or more")
    if allowed is not None and (allowed.shape != (len(gallery),) or allowed.dtype != np.bool_):
        raise DataError(f"`allowed` has shape {allowed.shape}, expected one bool a row of {len(gallery)} rows")
    if not np.isfinite(queries).all():
        at = int(np.flatnonzero(~np.isfinite(queries).all(axis=1))[0])
        raise NonFiniteError(f"query {at} is not finite: the features or the method diverged")
    k = min(k, len(gallery) if allowed is None else int(allowed.sum()))
    numbers, values = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    if k:
        size = max(1, min(BLOCK_QUERIES, MOST_CANDIDATES // (4 * k)))
        for start in range(0, len(queries), size):
            rows = slice(start, start + size)
            numbers[rows], values[rows] = _Search(queries[rows], gallery, k, allowed).best()
    return numbers, values


@dataclass
class _Pool:
    """Candidates: which query, which row; its score is between low and high."""

    query: Numbers
    number: Numbers
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def joined(cls, pools: list[_Pool]) -> _Pool:
        return cls(*(np.concatenate([getattr(pool, name) for pool in pools]) for name in cls.__annotations__))

    def kept(self, which: NDArray) -> _Pool:
        return _Pool(self.query[which], self.number[which], self.low[which], self.high[which])

    def __len__(self) -> int:
        return len(self.query)


class _Piece(NamedTuple):
    """Rows of a segment.

    Attributes:
        segment: which.
        at: its rows.
        numbers: theirs in the gallery.
        allowed: which of them may be found; None: all.
    """

    segment: int
    at: slice | Numbers
    numbers: Numbers
    allowed: NDArray[np.bool_] | None

    @property
    def rows(self) -> int:
        return len(self.numbers)


class _Search:
    def __init__(self, queries: Floats, gallery: Gallery, k: int, allowed: NDArray[np.bool_] | None) -> None:
        self.queries, self.gallery, self.k, self.allowed = queries, gallery, k, allowed
        self.lengths = row_lengths(queries)
        self.least = np.full(len(queries), -np.inf)  # a row that scores less is not among the best k
        empty = np.zeros(0, np.int64)
        scores = max(BLOCK_SCORES, len(queries))
        self.found, self.near = np.empty(scores, np.float32), np.empty(scores, np.bool_)
        self.room = np.empty(max(READ_VALUES, gallery.width), np.float32)
        self.pools = [_Pool(empty, empty, empty.astype(np.float64), empty.astype(np.float64))]
        self.fresh = 0  # candidates since `least` was last raised

    def best(self) -> tuple[Numbers, Floats]:
        longest = max(self.gallery.longest(at) for at in range(len(self.gallery.segments)))
        if longest * self.lengths.max() > np.finfo(np.float32).max / 2:
            raise DataError(
                f"rows are too long for float32 scores: up to {longest:.3g} in the gallery, and "
                f"{self.lengths.max():.3g} among the queries"
            )
        for block in self._blocks():
            self._score(block)
        self._raise_least()
        pool = self._settled(self.pools[0])
        order = np.lexsort((pool.number, -pool.low, pool.query))
        starts = np.searchsorted(pool.query[order], np.arange(len(self.queries)))
        picked = order[starts[:, None] + np.arange(self.k)]
        return pool.number[picked], pool.low[picked].astype(np.float32)

    def _blocks(self) -> Iterator[list[_Piece]]:
        """Pieces of segments that are looked at together: many small segments cost no more than a few large ones."""
        most = max(1, min(BLOCK_ROWS, BLOCK_SCORES // len(self.queries)))
        pieces: list[_Piece] = []
        left = most
        for at, segment in enumerate(self.gallery.segments):
            widened = segment.values.dtype != np.float32
            start = 0
            while start < len(segment):
                size = min(left, max(1, READ_VALUES // self.gallery.width)) if widened else left
                stop = min(start + size, len(segment))
                if piece := self._piece(at, start, stop):
                    pieces.append(piece)
                    left -= piece.rows
                if not left:
                    yield pieces
                    pieces, left = [], most
                start = stop
        if pieces:
            yield pieces

    def _piece(self, at: int, start: int, stop: int) -> _Piece | None:
        """Of a segment; None where nothing in it may be found."""
        first, whole = int(self.gallery.starts[at]), slice(start, stop)
        numbers = np.arange(first + start, first + stop)
        if self.allowed is None:
            return _Piece(at, whole, numbers, None)
        allowed = self.allowed[first + start : first + stop]
        count = np.count_nonzero(allowed)
        if count > len(allowed) // 2:
            return _Piece(at, whole, numbers, None if count == len(allowed) else allowed)
        return _Piece(at, start + np.flatnonzero(allowed), numbers[allowed], None) if count else None

    def _score(self, pieces: list[_Piece]) -> None:
        longest = max(self.gallery.longest(piece.segment) for piece in pieces)
        rounding = self.lengths * longest * product_error(self.gallery.width)
        errors = self._errors(pieces)
        margin = rounding if errors is None else rounding + self.lengths * errors.max()
        if self.fresh > len(self.queries) * self.k:
            self._raise_least()
        count = sum(piece.rows for piece in pieces)
        found = self.found[: len(self.queries) * count].reshape(len(self.queries), count)
        barred = []
        end = 0
        for piece in pieces:
            start, end = end, end + piece.rows
            self._multiply(piece, found[:, start:end])
            if piece.allowed is not None:
                barred.append(start + np.flatnonzero(~piece.allowed))
        if barred:
            found[:, np.concatenate(barred)] = -np.inf
        near = self._near(found, margin)
        if count >= self.k and np.count_nonzero(near) > near.size // CROWDED:
            here = np.partition(found, count - self.k, axis=1)[:, count - self.k] - margin
            self.least = np.maximum(self.least, here)
            near = self._near(found, margin)
        if barred:
            near[:, np.concatenate(barred)] = False
        query, column = np.divmod(_places(near), count)
        score = found[query, column].astype(np.float64)
        off = rounding[query] if errors is None else rounding[query] + self.lengths[query] * errors[column]
        number = np.concatenate([piece.numbers for piece in pieces])[column]
        self.pools.append(_Pool(query, number, score - off, score + off))
        self.fresh += len(query)

    def _errors(self, pieces: list[_Piece]) -> NDArray[np.float64] | None:
        """How far each row may be from its exact one; None where all are exact."""
        segments = [self.gallery.segments[piece.segment] for piece in pieces]
        if all(segment.errors is None for segment in segments):
            return None
        errors = [
            np.zeros(piece.rows, np.float32) if segment.errors is None else segment.errors[piece.at]
            for piece, segment in zip(pieces, segments, strict=True)
        ]
        return np.concatenate(errors).astype(np.float64)

    def _multiply(self, piece: _Piece, into: Floats) -> None:
        """(q, m) products in float32. Memory is used again: fresh pages cost as much as a part of the product."""
        segment = self.gallery.segments[piece.segment]
        values = segment.unscaled(piece.at, self.room)
        if len(self.queries) <= FEW_QUERIES:
            for start in range(0, len(values), FEW_ROWS):
                part = slice(start, start + FEW_ROWS)
                for query, row in zip(self.queries, into, strict=True):
                    np.vecdot(values[part], query, out=row[part])
        else:
            np.matmul(self.queries, values.T, out=into)
        if segment.scales is not None:
            np.multiply(into, segment.scales[piece.at], out=into)

    def _near(self, found: Floats, margin: NDArray[np.float64]) -> NDArray[np.bool_]:
        """What may be among the best."""
        least = np.nextafter((self.least - margin).astype(np.float32), np.float32(-np.inf))
        return np.greater_equal(found, least[:, None], out=self.near[: found.size].reshape(found.shape))

    def _raise_least(self) -> None:
        """Raises `least` to the k-th best low of each query, and drops what cannot reach it."""
        pool = self._reached(_Pool.joined(self.pools))
        if len(pool) > MOST_CANDIDATES:
            pool = self._reached(self._settled(pool))
        self.pools, self.fresh = [pool], 0

    def _reached(self, pool: _Pool) -> _Pool:
        order = np.lexsort((-pool.low, pool.query))
        starts = np.searchsorted(pool.query[order], np.arange(len(self.queries) + 1))
        full = np.flatnonzero(np.diff(starts) >= self.k)
        self.least[full] = pool.low[order[starts[full] + self.k - 1]]
        return pool.kept(pool.high >= self.least[pool.query])

    def _settled(self, pool: _Pool) -> _Pool:
        """The best k of every query by exact scores."""
        exact = np.empty(len(pool), np.float32)
        order = np.argsort(pool.number, kind="stable")  # rows are read in the order of the file
        for start in range(0, len(pool), PAIRS_AT_ONCE):
            part = order[start : start + PAIRS_AT_ONCE]
            rows = self.gallery.take(pool.number[part])
            self.gallery.check_lengths(rows, pool.number[part])
            exact[part] = scores(rows, self.queries[pool.query[part]])
        order = np.lexsort((pool.number, -exact, pool.query))
        query = pool.query[order]
        place = np.arange(len(query)) - np.searchsorted(query, query)
        kept = order[place < self.k]
        values = exact[kept].astype(np.float64)
        return _Pool(pool.query[kept], pool.number[kept], values, values)


def _places(mask: NDArray[np.bool_]) -> Numbers:
    """As `numpy.flatnonzero`, and faster where few are True: eight of them at once are seen to be False."""
    flat = mask.reshape(-1)
    whole = flat.size // 8 * 8
    words = np.flatnonzero(flat[:whole].view(np.uint64))
    word, byte = np.nonzero(flat[:whole].reshape(-1, 8)[words])
    return np.concatenate([8 * words[word] + byte, whole + np.flatnonzero(flat[whole:])])
