"""What a run of a job may lose, and what it did, in figures and in a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Budget:
    """How many bad items a run tolerates: `items` (of a small share half of its rows), or `fraction` of them, whichever
    is more.
    """

    items: int = 10
    fraction: float = 0.01

    def limit(self, rows: int) -> int:
        return max(min(self.items, rows // 2), math.floor(self.fraction * rows))


@dataclass
class Summary:
    """What a run did to its share of the shards. `stopped`: it was asked to stop and the rest waits for the next
    start.
    """

    column: str
    shards: int = 0  # in the share
    skipped: int = 0  # finished before
    done: int = 0  # committed by this run
    busy: int = 0  # another process works on them
    lost: int = 0  # taken over by another process while this one was silent; its rows made here do not count
    rows: int = 0  # made by this run
    resumed_rows: int = 0  # taken over from journals
    bad: int = 0  # null rows with an error
    # null rows whose inputs are null or blank, or have no value to import; of the shards committed by this run
    absent: int = 0
    # rows of which the filters, or the engine's silence, left nothing; of the shards committed by this run
    fruitless: int = 0
    dropped_lines: int = 0  # torn journal lines, made again
    counts: dict[str, int] = field(default_factory=dict)  # of the shards committed by this run
    seconds: float = 0.0
    waited_s: float = 0.0  # the engine waited for prepared rows
    stopped: bool = False

    @property
    def complete(self) -> bool:
        """The whole share is finished."""
        return self.skipped + self.done == self.shards

    def __str__(self) -> str:
        parts = [f"{self.done} of {self.shards} shards done"]
        parts += [f"{self.skipped} there already and reused"] * (self.skipped > 0)
        parts += [f"{self.resumed_rows} rows resumed from journals"] * (self.resumed_rows > 0)
        parts += [f"{self.rows} rows made in {self.seconds:.1f} s"] * (self.rows > 0)
        parts += [f"{self.dropped_lines} torn journal lines dropped"] * (self.dropped_lines > 0)
        parts += [f"{self.bad} bad items (null, or in part; see *.errors.jsonl)"] * (self.bad > 0)
        parts += [f"{self.fruitless} rows without a value: nothing usable came back"] * (self.fruitless > 0)
        parts += [f"{self.absent} rows without a value: their inputs have none"] * (self.absent > 0)
        parts += [f"{self.busy} shards skipped: another process works on them"] * (self.busy > 0)
        parts += [
            f"{self.lost} shards lost to another process that took over; what was made of them here is dropped"
        ] * (self.lost > 0)
        parts += [", ".join(f"{name} {n}" for name, n in sorted(self.counts.items()))] * bool(self.counts)
        parts += ["stopped on request: the same command goes on from here"] * self.stopped
        return f"{self.column}: " + "; ".join(parts)
