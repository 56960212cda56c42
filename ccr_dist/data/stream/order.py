"""Computes the rows of global batch k from (seed, dataset digests, eligible rows, weights), without iterator state.

Belongs here: the order, the lanes that let a rank read few shards, deterministic substitutes. Does not belong here:
reading rows (`loader.py`), torch, random generators (every random choice of a run is derived from `chance.mix`). Caches
only save time: a batch is found without the ones before it.

How a row is found. Batch k has a language (a weighted cycle over k) and L lanes; slot i belongs to lane i mod L and is
position q = j * batch / L + i // L of that lane, if k is the j-th batch of its language. A weighted cycle over q gives
the source and the position p in the lane's stream of (source, language), which `streams.py` turns into a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import numpy as np

from ccr_dist.data.storage.lru import Recent
from ccr_dist.data.storage.store import digest_json
from ccr_dist.data.stream.chance import WeightedCycle, mix, mixing, permutation
from ccr_dist.data.stream.streams import Eligible, Source, Stream
from ccr_dist.errors import ConfigError, DataError

CACHED_WINDOW_ROWS = 1 << 24  # 8 bytes each: at most 128 MiB per process


def rank_slots(batch: int, lanes: int, world: int, rank: int) -> tuple[int, ...]:
    """The slots of one rank: all slots, lane after lane, are divided into `world` contiguous parts of n or n + 1 slots,
    so that a rank reads few lanes.

    Raises:
        ConfigError: There is no such rank.
    """
    if not 0 <= rank < world:
        raise ConfigError(f"rank {rank} does not exist in a world of {world}; ranks are 0 to {world - 1}")
    start, stop = (r * (batch // world) + min(r, batch % world) for r in (rank, rank + 1))
    per_lane = batch // lanes
    return tuple(at // per_lane + lanes * (at % per_lane) for at in range(start, stop))


class Slot(NamedTuple):
    """A place in a global batch and the row in it.

    Attributes:
        slot: The place.
        source: Number of the dataset in the mixture.
        shard: Number of the row's shard.
        row: Number of the row in its shard.
        draw: A 64-bit number for choices about this slot (caption, augmentation).
        position: Position of the row in its lane's stream of (source, language).
    """

    slot: int
    source: int
    shard: int
    row: int
    draw: int
    position: int


class GlobalBatch(NamedTuple):
    """Global batch k, or some slots of it, in language `lang`."""

    k: int
    lang: str
    slots: tuple[Slot, ...]


class Order:
    """The sequence of global batches of a run. It does not depend on world size, workers or the starting batch.

    Args:
        sources: The mixture.
        batch: Rows of a global batch.
        seed: Any integer.
        languages: Weight of each language.
        lanes: A divisor of the batch. None: the largest power of two that divides it and is at most the number of
            shards of the smallest source (and of rows of the smallest stream).
        window_rows: Rows of a lane that are shuffled together.
        drop_last: Each pass leaves out the rows that do not fill a global batch, instead of continuing with the next
            pass.

    Attributes:
        digest: Covers all arguments.

    Raises:
        ConfigError: The arguments do not fit together, or a language has no rows.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        batch: int,
        seed: int,
        languages: Mapping[str, float],
        lanes: int | None = None,
        window_rows: int = 4096,
        drop_last: bool = False,
    ) -> None:
        if not sources or not languages:
            raise ConfigError(
                f"an order needs at least one dataset and one language, got {len(sources)} and {len(languages)}"
            )
        if batch < 1 or window_rows < 1:
            raise ConfigError(f"batch and window_rows must be at least 1, got {batch} and {window_rows}")
        self.sources, self.batch_size, self.seed = tuple(sources), batch, seed
        self.languages = {lang: float(languages[lang]) for lang in sorted(languages)}
        self._cycle = WeightedCycle(
            list(self.languages.values()), mix(seed, "language"), [f"language {lang!r}" for lang in self.languages]
        )
        usable: dict[str, list[tuple[int, Eligible]]] = {}
        for lang in self.languages:
            found = [(s, source.eligible(lang)) for s, source in enumerate(self.sources)]
            usable[lang] = [(s, rows) for s, rows in found if rows is not None and rows.total]
            if not usable[lang]:
                names = ", ".join(source.name for source in self.sources)
                raise ConfigError(
                    f"no row can be drawn in language {lang!r}: no dataset has a row with all needed columns ({names})"
                )
        self.lanes = self._lanes(batch, lanes, usable)
        if drop_last:
            self._require_full_batch(batch, usable)
        self._mixtures: dict[str, tuple[WeightedCycle, list[tuple[int, list[int]]]]] = {}
        self._streams: dict[str, list[tuple[int, Stream]]] = {}
        shape = {"batch": batch, "lanes": self.lanes, "window_rows": window_rows, "drop_last": drop_last}
        for lang, streams in usable.items():
            self._streams[lang] = [
                (s, Stream(rows, mix(seed, "stream", self.sources[s].digest, s, lang), **shape))  # type: ignore[arg-type]
                for s, rows in streams
            ]
            used = [self.sources[s] for s, _ in streams]
            cycle = WeightedCycle(
                [source.weight for source in used],
                mix(seed, "source", lang),
                [f"dataset {source.name}" for source in used],
            )
            # Lanes start evenly spread over the cycle: were they in step, a batch with one slot a lane would come from
            # a single source.
            starts = [lane * cycle.length // self.lanes for lane in range(self.lanes)]
            self._mixtures[lang] = cycle, [(start, cycle.counts(start).tolist()) for start in starts]
        self.window_rows = window_rows
        self._windows: Recent[np.ndarray] = Recent(max(16, CACHED_WINDOW_ROWS // window_rows))
        self.digest = digest_json(
            {
                "format": 1,
                "batch": batch,
                "seed": seed,
                "lanes": self.lanes,
                "window_rows": window_rows,
                "drop_last": drop_last,
                "languages": self.languages,
                "sources": [[source.digest, source.weight] for source in self.sources],
                "eligible": {lang: [[s, rows.digest()] for s, rows in streams] for lang, streams in usable.items()},
            }
        )

    def _lanes(self, batch: int, lanes: int | None, usable: Mapping[str, list[tuple[int, Eligible]]]) -> int:
        fewest = min((rows.total, lang, s) for lang, streams in usable.items() for s, rows in streams)
        if lanes is None:
            limit = min(fewest[0], min(len(source.shard_rows) for source in self.sources))
            return max(1 << i for i in range(batch.bit_length()) if batch % (1 << i) == 0 and 1 << i <= limit)
        if lanes < 1 or batch % lanes:
            raise ConfigError(
                f"{lanes} lanes do not divide a global batch of {batch}; choose a divisor, or leave lanes out"
            )
        if fewest[0] < lanes:
            raise ConfigError(
                f"{lanes} lanes, but dataset {self.sources[fewest[2]].name} has only {fewest[0]} rows in language"
                f" {fewest[1]!r}; choose at most {fewest[0]} lanes, or leave lanes out"
            )
        return lanes

    def _require_full_batch(self, batch: int, usable: Mapping[str, list[tuple[int, Eligible]]]) -> None:
        for lang, streams in usable.items():
            for s, rows in streams:
                if rows.total < batch:
                    raise ConfigError(
                        f"drop_last with a global batch of {batch} would drop all {rows.total} rows of dataset"
                        f" {self.sources[s].name} in language {lang!r}; make the batch smaller or leave drop_last out"
                    )

    @property
    def epoch_batches(self) -> int:
        """Global batches until every eligible row of every source and language was drawn at least once, at the average
        rates that follow from the weights.
        """
        passes = []
        for choice, (lang, streams) in enumerate(self._streams.items()):
            cycle = self._mixtures[lang][0]
            for i, (_, stream) in enumerate(streams):
                longest = max(stream.lane(lane)[1] for lane in range(self.lanes))
                drawn = self.batch_size // self.lanes * int(cycle.quotas[i]) * int(self._cycle.quotas[choice])
                passes.append(math.ceil(Fraction(longest * cycle.length * self._cycle.length, drawn)))
        return max(passes)

    def window_shards(self, lang: str) -> dict[int, int]:
        """Most shards that a window of a lane can touch, in any order of the shards, by source."""
        found = {}
        for source, stream in self._streams[lang]:
            counts = np.sort(stream.eligible.counts[stream.eligible.counts > 0])
            rows = min(self.window_rows, max(stream.lane(lane)[1] for lane in range(self.lanes)))
            # shards that lie completely inside, between the first and the last one
            inside = int(np.searchsorted(np.cumsum(counts), rows - 2, side="right"))
            found[source] = min(len(counts), rows, inside + 2)
        return found

    def batch(self, k: int, slots: Iterable[int] | None = None) -> GlobalBatch:
        """Global batch k, or only some of its slots, in the given order."""
        choice, turn = self._cycle.at(k)
        lang = list(self.languages)[choice]
        chosen = range(self.batch_size) if slots is None else slots
        return GlobalBatch(k, lang, tuple(self._slots(k, lang, turn * (self.batch_size // self.lanes), chosen)))

    def _slots(self, k: int, lang: str, first: int, slots: Iterable[int]) -> Iterator[Slot]:
        """first: the batch's first position in every lane of its language."""
        cycle, starts = self._mixtures[lang]
        streams, lanes, draw = self._streams[lang], self.lanes, mixing(self.seed, "draw", k)
        for slot in slots:
            row, lane = divmod(slot, lanes)
            start, before = starts[lane]
            choice, drawn = cycle.at(start + first + row)
            source, stream = streams[choice]
            position = drawn - before[choice]
            epoch, window, place = stream.at(lane, position)
            found = self._windows.made((lang, source, lane, epoch, window), partial(stream.window, lane, epoch, window))
            shard, at = found[place].tolist()
            yield Slot(slot, source, shard, at, draw(slot), position)

    def stream(self, lang: str, source: int) -> Stream | None:
        """The rows of a source in a language; None if it has none."""
        return next((stream for s, stream in self._streams[lang] if s == source), None)

    def substitute(self, k: int, slot: Slot, attempt: int) -> Slot:
        """The slot with another row instead of a broken one: an eligible row of the same shard.

        Depends only on the slot, not on the process that reads it.

        Args:
            k: Number of the batch.
            slot: The slot with the broken row.
            attempt: 1, 2, ...; each one gives another row.

        Raises:
            DataError: The shard has no further eligible row.
        """
        lang = list(self.languages)[self._cycle.at(k)[0]]
        eligible = self.sources[slot.source].eligible(lang)
        assert eligible is not None
        rows = eligible.rows(slot.shard)
        rows = rows[rows != slot.row]
        if not 1 <= attempt <= len(rows):
            raise DataError(
                f"dataset {self.sources[slot.source].name}, shard {slot.shard}: no row is left to replace broken"
                f" row {slot.row} (attempt {attempt}, {len(rows)} other rows in language {lang!r}); `ccr-dist shards"
                " verify` lists what is broken"
            )
        return slot._replace(
            row=int(rows[permutation(mix(self.seed, "substitute", k, slot.slot), len(rows))[attempt - 1]])
        )
