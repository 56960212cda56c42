"""What the order draws from: the eligible rows of a dataset, and the endless stream of them in one language, divided
into lanes.

A stream passes over its eligible rows again and again. Pass e permutes the shards, divides the concatenated rows into L
equal segments, one per lane, and shuffles each segment in windows. Positions count the rows of a lane from the start of
the run, over all passes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from ccr_dist.data.storage.lru import Recent
from ccr_dist.data.stream.chance import mix, permutation
from ccr_dist.errors import DataError


class Eligible:
    """The rows of a source that may be drawn: a count per shard, and packed bits for shards with ineligible rows.

    Args:
        shard_rows: Rows of each shard.
        present: For each shard a bool array (rows,), or None where all rows are eligible; None: all rows of all shards.

    Raises:
        DataError: The number or length of the arrays does not fit.
    """

    def __init__(self, shard_rows: Sequence[int], present: Iterable[np.ndarray | None] | None) -> None:
        self.shard_rows = np.asarray(shard_rows, dtype=np.int64)
        self.counts = self.shard_rows.copy()
        self.bits: dict[int, np.ndarray] = {}
        shards = 0
        for shard, mask in enumerate([None] * len(shard_rows) if present is None else present):
            shards += 1
            if mask is None:
                continue
            if shards > len(shard_rows) or len(mask) != shard_rows[shard]:
                raise DataError(f"the bitmap of shard {shard} has {len(mask)} rows; it must have those of the shard")
            mask = np.asarray(mask, dtype=bool)
            if not mask.all():
                self.bits[shard], self.counts[shard] = np.packbits(mask), mask.sum()
        if shards != len(shard_rows):
            raise DataError(f"{shards} bitmaps for {len(shard_rows)} shards; there must be one per shard")
        self.total = int(self.counts.sum())

    def rows(self, shard: int) -> np.ndarray:
        """The eligible rows of a shard, ascending."""
        n = int(self.shard_rows[shard])
        return np.flatnonzero(np.unpackbits(self.bits[shard], count=n)) if shard in self.bits else np.arange(n)

    def digest(self) -> str:
        """Identifies which rows are eligible."""
        digest = hashlib.sha256(self.shard_rows.astype("<i8").tobytes())
        for shard in sorted(self.bits):
            digest.update(b"%d:" % shard + self.bits[shard].tobytes())
        return digest.hexdigest()


class Source:
    """One dataset in the mixture.

    Args:
        digest: Identifies the dataset.
        shard_rows: Rows of each shard.
        weight: Share of the samples, relative to other sources.
        present: Eligible rows by language, each as for `Eligible`; iterables are consumed shard by shard and kept as
            packed bits. A language that is missing has no rows here. None: every row in every language.
        name: For messages.
    """

    def __init__(
        self,
        digest: str,
        shard_rows: Sequence[int],
        weight: float = 1.0,
        present: Mapping[str, Iterable[np.ndarray | None] | None] | None = None,
        name: str = "",
    ) -> None:
        self.digest, self.weight, self.name = digest, float(weight), name or digest[:12]
        self.shard_rows = tuple(int(n) for n in shard_rows)
        self._all = Eligible(self.shard_rows, None)
        self._present = (
            None if present is None else {lang: Eligible(self.shard_rows, masks) for lang, masks in present.items()}
        )

    def eligible(self, lang: str) -> Eligible | None:
        """The eligible rows in a language; None where there are none."""
        return self._all if self._present is None else self._present.get(lang)


class Stream:
    """The eligible rows of one source in one language, pass after pass, divided into lanes.

    Args:
        eligible: The rows.
        seed: Decides all shuffling.
        batch: Rows of a global batch.
        lanes: How many.
        window_rows: Rows of a lane that are shuffled together.
        drop_last: Every pass leaves out the rows that do not fill a global batch.
    """

    def __init__(
        self, eligible: Eligible, seed: int, *, batch: int, lanes: int, window_rows: int, drop_last: bool
    ) -> None:
        self.eligible, self.seed, self.lanes, self.window_rows = eligible, seed, lanes, window_rows
        self.equal_rows = eligible.total // batch * (batch // lanes) if drop_last else None
        self._lane_rows = [self.lane(lane)[1] for lane in range(lanes)]
        self._shards: Recent[tuple[np.ndarray, np.ndarray]] = Recent(4)  # lanes may be one pass apart

    def lane(self, lane: int) -> tuple[int, int]:
        """(first row, number of rows) of a lane in every pass."""
        start, stop = (at * self.eligible.total // self.lanes for at in (lane, lane + 1))
        rows = stop - start if self.equal_rows is None else self.equal_rows
        return start, rows

    def shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(shards in the order of a pass, position after the last row of each), both (shards,) int64."""

        def make() -> tuple[np.ndarray, np.ndarray]:
            order = permutation(mix(self.seed, "shards", epoch), len(self.eligible.counts))
            return order, np.cumsum(self.eligible.counts[order])

        return self._shards.made(epoch, make)

    def at(self, lane: int, position: int) -> tuple[int, int, int]:
        """(pass, window in it, place in the window) of a position."""
        epoch, inside = divmod(position, self._lane_rows[lane])
        return epoch, *divmod(inside, self.window_rows)

    def window(self, lane: int, epoch: int, window: int) -> np.ndarray:
        """(n, 2) int32: shard and row at each place of a window."""
        start, rows = self.lane(lane)
        first = start + window * self.window_rows
        parts = [
            np.stack([np.full(len(rows), shard), rows], axis=1).astype(np.int32)
            for shard, rows in self._segment(epoch, first, min(first + self.window_rows, start + rows))
        ]
        found = np.concatenate(parts)
        return found[permutation(mix(self.seed, "window", epoch, lane, window), len(found))]

    def run(self, lane: int, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """(shard, ascending rows) of the positions [start, stop) in the order of the payloads, before shuffling."""
        first, rows = self.lane(lane)
        while start < stop:
            epoch, inside = divmod(start, rows)
            n = min(stop - start, rows - inside)
            yield from self._segment(epoch, first + inside, first + inside + n)
            start += n

    def _segment(self, epoch: int, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """(shard, rows) of the rows [start, stop) of a pass, counted over all lanes."""
        order, ends = self.shards(epoch)
        for i in range(int(np.searchsorted(ends, start, side="right")), len(order)):
            if start >= stop:
                return
            shard, end = int(order[i]), int(ends[i])
            rows = self.eligible.rows(shard)
            if not len(rows):
                continue
            yield shard, rows[start - end + len(rows) : min(stop, end) - end + len(rows)]
            start = max(start, min(stop, end))
