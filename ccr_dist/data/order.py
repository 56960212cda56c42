"""Which rows make up global batch k: arithmetic on (seed, dataset digests, eligible rows, weights), without iterator state.

Belongs here: the order, the lanes that let a rank read few shards, deterministic substitutes, and `mix`, from which every random choice of
a run is derived. Does not belong here: reading rows (`loader.py`), torch, random generators. Permutations are stable argsorts of our own
hashes, so that no library version can change them. Everything cached can be forgotten: a batch is found without the ones before it.

How a row is found. Batch k has a language (a weighted cycle over k) and L lanes; slot i belongs to lane i mod L and is position
q = j * batch / L + i // L of that lane, if k is the j-th batch of its language. A weighted cycle over q gives the source and the position
p in the lane's stream of (source, language). A stream passes over its eligible rows again and again: pass e permutes the shards, cuts the
concatenated rows in L equal segments, one a lane, and shuffles each segment in windows.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from ccr_dist.data.store import digest_json
from ccr_dist.errors import ConfigError, DataError

T = TypeVar("T")
LONGEST_CYCLE = 4096
CACHED_WINDOW_ROWS = 1 << 24  # 8 bytes each: at most 128 MiB a process


def mix(*parts: int | str) -> int:
    """A 64-bit number from all parts and their order: the seed for whatever the parts name, e.g. mix(seed, "dropout", k, rank)."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        text = (part if isinstance(part, str) else str(int(part))).encode()
        digest.update(b"%c%d:" % (b"s" if isinstance(part, str) else b"i", len(text)) + text)
    return int.from_bytes(digest.digest(), "little")


def hashes(seed: int, n: int) -> np.ndarray:
    """`(n,)` uint64: the splitmix64 sequence (Steele et al. 2014) that starts at `seed`."""
    x = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(seed: int, n: int) -> np.ndarray:
    """`(n,)` int64: a permutation of range(n), the same on every machine and numpy version.

    The stable argsort of the hashes' high bits; with the index as low bits all keys differ, so that numpy's fastest sort does.
    """
    low = np.uint64((1 << (n - 1).bit_length()) - 1) if n else np.uint64(0)
    keys = hashes(seed, n) & ~low | np.arange(n, dtype=np.uint64)
    keys.sort()
    return (keys & low).astype(np.int64)


def rank_slots(batch: int, lanes: int, world: int, rank: int) -> tuple[int, ...]:
    """The slots of one rank: lane after lane, cut in `world` contiguous parts of n or n + 1, so that a rank reads few lanes."""
    if not 0 <= rank < world:
        raise ConfigError(f"rank {rank} does not exist in a world of {world}; ranks are 0 to {world - 1}")
    start, stop = (r * (batch // world) + min(r, batch % world) for r in (rank, rank + 1))
    per_lane = batch // lanes
    return tuple(at // per_lane + lanes * (at % per_lane) for at in range(start, stop))


class Slot(NamedTuple):
    """One place in a global batch and the row in it. `draw` is a 64-bit number for choices about this slot (caption, augmentation)."""

    slot: int
    source: int
    shard: int
    row: int
    draw: int


class GlobalBatch(NamedTuple):
    k: int
    lang: str
    slots: tuple[Slot, ...]


class Recent(OrderedDict):
    """The values used last, at most `size`; pickled empty."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def __reduce__(self):
        return Recent, (self.size,)

    def made(self, key, make: Callable[[], T]) -> T:
        if key in self:
            self.move_to_end(key)
            return self[key]
        value = self[key] = make()
        if len(self) > self.size:
            self.popitem(last=False)
        return value


class Eligible:
    """The rows of a source that may be drawn: a count a shard, and a packed bitmap only for shards where some may not."""

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
                raise DataError(f"the bitmap of shard {shard} has {len(mask)} rows; it must have as many as the shard")
            mask = np.asarray(mask, dtype=bool)
            if not mask.all():
                self.bits[shard], self.counts[shard] = np.packbits(mask), mask.sum()
        if shards != len(shard_rows):
            raise DataError(f"{shards} bitmaps for {len(shard_rows)} shards; there must be one a shard")
        self.total = int(self.counts.sum())

    def rows(self, shard: int) -> np.ndarray:
        """The eligible rows of a shard, ascending."""
        n = int(self.shard_rows[shard])
        return np.flatnonzero(np.unpackbits(self.bits[shard], count=n)) if shard in self.bits else np.arange(n)

    def digest(self) -> str:
        digest = hashlib.sha256(self.shard_rows.astype("<i8").tobytes())
        for shard in sorted(self.bits):
            digest.update(b"%d:" % shard + self.bits[shard].tobytes())
        return digest.hexdigest()


class Source:
    """One dataset in the mixture.

    `digest` and `name` (for messages) identify the dataset. `present[lang]` gives one bool array `(rows,)` a shard, or None in place of an
    array, or of all arrays, where every row is eligible; iterables are consumed shard by shard and kept as packed bits. A language that is
    not in `present` has no rows here; `present=None`: every row in every language.
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
        self._present = None if present is None else {lang: Eligible(self.shard_rows, masks) for lang, masks in present.items()}

    def eligible(self, lang: str) -> Eligible | None:
        return self._all if self._present is None else self._present.get(lang)


class WeightedCycle:
    """A fixed schedule of choices in proportion to `weights`: the shortest exact cycle up to LONGEST_CYCLE, permuted by `seed`, repeated.

    Where no cycle is exact, the longest one gets quotas by largest remainder. `names` are for the ConfigError on an unusable weight.
    """

    def __init__(self, weights: Sequence[float], seed: int, names: Sequence[str]) -> None:
        for weight, name in zip(weights, names, strict=True):
            if not (math.isfinite(weight) and weight > 0):
                raise ConfigError(f"the weight of {name} is {weight}; it must be a finite number above 0 (leave {name} out to not use it)")
        share = np.array(weights, dtype=np.float64) / math.fsum(weights)
        for length in range(1, LONGEST_CYCLE + 1):
            quotas = np.rint(share * length).astype(np.int64)
            if quotas.sum() == length and np.abs(share * length - quotas).max() < 1e-9 * length:
                break
        else:
            quotas = np.floor(share * length).astype(np.int64)
            remainder = share * length - quotas
            quotas[np.argsort(-remainder, kind="stable")[: length - quotas.sum()]] += 1
        if quotas.min() < 1:
            name = names[int(quotas.argmin())]
            raise ConfigError(
                f"the weight of {name} is below 1/{LONGEST_CYCLE} of the total and would never be drawn; raise it or leave it out"
            )
        self.length, self.quotas = length, quotas
        self._choices = np.repeat(np.arange(len(quotas)), quotas)[permutation(seed, length)]
        self._before = np.empty(length, dtype=np.int64)
        for choice in range(len(quotas)):
            self._before[self._choices == choice] = np.arange(quotas[choice])

    def at(self, n: int) -> tuple[int, int]:
        """The n-th choice, and how often it was made before n."""
        cycle, offset = divmod(n, self.length)
        choice = int(self._choices[offset])
        return choice, cycle * int(self.quotas[choice]) + int(self._before[offset])

    def counts(self, n: int) -> np.ndarray:
        """How often each choice is made before n."""
        cycle, offset = divmod(n, self.length)
        return cycle * self.quotas + np.bincount(self._choices[:offset], minlength=len(self.quotas))


class _Stream:
    """The eligible rows of one source in one language, pass after pass, cut in lanes."""

    def __init__(self, eligible: Eligible, seed: int, *, batch: int, lanes: int, window_rows: int, drop_last: bool) -> None:
        self.eligible, self.seed, self.lanes, self.window_rows = eligible, seed, lanes, window_rows
        self.equal_rows = eligible.total // batch * (batch // lanes) if drop_last else None
        self._shards = Recent(4)  # lanes may be one pass apart

    def lane(self, lane: int) -> tuple[int, int]:
        """First position and number of rows of a lane in every pass."""
        start, stop = (at * self.eligible.total // self.lanes for at in (lane, lane + 1))
        return start, stop - start if self.equal_rows is None else self.equal_rows

    def shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in the order of this pass, and the position after the last row of each."""

        def make() -> tuple[np.ndarray, np.ndarray]:
            order = permutation(mix(self.seed, "shards", epoch), len(self.eligible.counts))
            return order, np.cumsum(self.eligible.counts[order])

        return self._shards.made(epoch, make)

    def window(self, lane: int, epoch: int, window: int) -> np.ndarray:
        """`(n, 2)` int32: shard and row at each position of one window."""
        start, rows = self.lane(lane)
        at = start + window * self.window_rows
        stop = min(at + self.window_rows, start + rows)
        order, ends = self.shards(epoch)
        parts = []
        for i in range(int(np.searchsorted(ends, at, side="right")), len(order)):
            if at >= stop:
                break
            eligible, end = self.eligible.rows(order[i]), int(ends[i])
            part = eligible[at - end + len(eligible) : min(stop, end) - end + len(eligible)]
            parts.append(np.stack([np.full(len(part), order[i]), part], axis=1).astype(np.int32))
            at = max(at, min(stop, end))
        found = np.concatenate(parts)
        return found[permutation(mix(self.seed, "window", epoch, lane, window), len(found))]


class Order:
    """The sequence of global batches of a run.

    sources: the mixture; languages: weight of each language; batch: rows of a global batch; seed: any integer; lanes: a divisor of the
    batch, by default the largest power of two that is one and is at most the number of shards of the smallest source (and rows of the
    smallest stream); window_rows: rows of a lane that are shuffled together; drop_last: each pass leaves out what does not fill a
    global batch instead of running on into the next pass.

    Nothing depends on world size, workers or the starting batch. `digest` covers all of the above. Raises ConfigError.
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
            raise ConfigError(f"an order needs at least one dataset and one language, got {len(sources)} and {len(languages)}")
        if batch < 1 or window_rows < 1:
            raise ConfigError(f"batch and window_rows must be at least 1, got {batch} and {window_rows}")
        self.sources, self.batch_size, self.seed = tuple(sources), batch, seed
        self.languages = {lang: float(languages[lang]) for lang in sorted(languages)}
        self._cycle = WeightedCycle(list(self.languages.values()), mix(seed, "language"), [f"language {lang!r}" for lang in self.languages])
        usable: dict[str, list[tuple[int, Eligible]]] = {}
        for lang in self.languages:
            found = [(s, source.eligible(lang)) for s, source in enumerate(self.sources)]
            usable[lang] = [(s, rows) for s, rows in found if rows is not None and rows.total]
            if not usable[lang]:
                names = ", ".join(source.name for source in self.sources)
                raise ConfigError(f"no row can be drawn in language {lang!r}: no dataset has a row with all needed columns ({names})")
        self.lanes = self._lanes(batch, lanes, usable)
        if drop_last:
            self._require_full_batch(batch, usable)
        self._mixtures: dict[str, tuple[WeightedCycle, list[tuple[int, np.ndarray]]]] = {}
        self._streams: dict[str, list[tuple[int, _Stream]]] = {}
        shape = {"batch": batch, "lanes": self.lanes, "window_rows": window_rows, "drop_last": drop_last}
        for lang, streams in usable.items():
            self._streams[lang] = [
                (s, _Stream(rows, mix(seed, "stream", self.sources[s].digest, s, lang), **shape))  # type: ignore[arg-type]
                for s, rows in streams
            ]
            used = [self.sources[s] for s, _ in streams]
            cycle = WeightedCycle(
                [source.weight for source in used], mix(seed, "source", lang), [f"dataset {source.name}" for source in used]
            )
            # Lanes start evenly spread over the cycle: were they in step, a batch with one slot a lane would come from a single source.
            starts = [lane * cycle.length // self.lanes for lane in range(self.lanes)]
            self._mixtures[lang] = cycle, [(start, cycle.counts(start)) for start in starts]
        self.window_rows = window_rows
        self._windows = Recent(max(16, CACHED_WINDOW_ROWS // window_rows))
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
            raise ConfigError(f"{lanes} lanes do not divide a global batch of {batch}; choose a divisor, or leave lanes out")
        if fewest[0] < lanes:
            raise ConfigError(
                f"{lanes} lanes, but dataset {self.sources[fewest[2]].name} has only {fewest[0]} rows in language {fewest[1]!r}; "
                f"choose at most {fewest[0]} lanes, or leave lanes out"
            )
        return lanes

    def _require_full_batch(self, batch: int, usable: Mapping[str, list[tuple[int, Eligible]]]) -> None:
        for lang, streams in usable.items():
            for s, rows in streams:
                if rows.total < batch:
                    raise ConfigError(
                        f"drop_last with a global batch of {batch} would drop all {rows.total} rows of dataset {self.sources[s].name} "
                        f"in language {lang!r}; make the batch smaller or leave drop_last out"
                    )

    @property
    def epoch_batches(self) -> int:
        """Global batches after which every eligible row of every source and language was drawn at least once (on the weights' average)."""
        passes = []
        for choice, (lang, streams) in enumerate(self._streams.items()):
            cycle = self._mixtures[lang][0]
            for i, (_, stream) in enumerate(streams):
                longest = max(stream.lane(lane)[1] for lane in range(self.lanes))
                drawn = self.batch_size // self.lanes * int(cycle.quotas[i]) * int(self._cycle.quotas[choice])
                passes.append(-(-longest * cycle.length * self._cycle.length // drawn))
        return max(passes)

    def window_shards(self, lang: str) -> dict[int, int]:
        """Source -> the most shards that one window of one lane can touch, in whatever order a pass has them."""
        found = {}
        for source, stream in self._streams[lang]:
            counts = np.sort(stream.eligible.counts[stream.eligible.counts > 0])
            rows = min(self.window_rows, max(stream.lane(lane)[1] for lane in range(self.lanes)))
            inside = int(np.searchsorted(np.cumsum(counts), rows - 2, side="right"))  # in full, between the first and the last one
            found[source] = min(len(counts), rows, inside + 2)
        return found

    def batch(self, k: int, slots: Iterable[int] | None = None) -> GlobalBatch:
        """Global batch k, or only the given slots of it (in that order)."""
        choice, turn = self._cycle.at(k)
        lang = list(self.languages)[choice]
        return GlobalBatch(k, lang, tuple(self._slot(k, lang, turn, slot) for slot in (range(self.batch_size) if slots is None else slots)))

    def _slot(self, k: int, lang: str, turn: int, slot: int) -> Slot:
        lane = slot % self.lanes
        cycle, starts = self._mixtures[lang]
        start, before = starts[lane]
        choice, drawn = cycle.at(start + turn * (self.batch_size // self.lanes) + slot // self.lanes)
        source, stream = self._streams[lang][choice]
        epoch, position = divmod(drawn - int(before[choice]), stream.lane(lane)[1])
        window, offset = divmod(position, self.window_rows)
        found = self._windows.made((lang, source, lane, epoch, window), lambda: stream.window(lane, epoch, window))
        shard, row = found[offset].tolist()
        return Slot(slot, source, shard, row, mix(self.seed, "draw", k, slot))

    def substitute(self, k: int, slot: Slot, attempt: int) -> Slot:
        """What stands in for a broken row of batch k: another eligible row of the same shard, another one for each attempt 1, 2, ...

        Depends on the slot alone, not on who reads it. Raises DataError when the shard has no further eligible row.
        """
        lang = list(self.languages)[self._cycle.at(k)[0]]
        eligible = self.sources[slot.source].eligible(lang)
        assert eligible is not None
        rows = eligible.rows(slot.shard)
        rows = rows[rows != slot.row]
        if not 1 <= attempt <= len(rows):
            raise DataError(
                f"dataset {self.sources[slot.source].name}, shard {slot.shard}: no row is left to stand in for broken row {slot.row} "
                f"(attempt {attempt}, {len(rows)} other rows in language {lang!r}); `ccr-dist shards verify` lists what is broken"
            )
        return slot._replace(row=int(rows[permutation(mix(self.seed, "substitute", k, slot.slot), len(rows))[attempt - 1]]))
