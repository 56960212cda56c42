"""The figures of a job's run, and its reports while it runs."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

Event = Callable[[str, dict[str, Any]], None]
# Hears the events of jobs that commands run in this context, such as of a sample whose speed is measured.
LISTENER: ContextVar[Event | None] = ContextVar("LISTENER", default=None)


@dataclass
class JobSummary:
    """Figures of a run, over its share of the shards.

    Attributes:
        column: The column that is made.
        shards: Shards in the share.
        skipped: Shards that were already finished.
        done: Shards committed by this run.
        busy: Shards that another process works on.
        lost: Shards that another process took over while this one was silent; rows made here do not count.
        rows: Rows made by this run.
        resumed_rows: Rows resumed from journals.
        bad: Null rows with an error, and rows that lack a part of their value.
        absent: Null rows whose inputs are null or blank, or have no value to import, in shards committed by this run.
        fruitless: Rows for which filters or engine left nothing, in shards committed by this run.
        dropped_lines: Incomplete journal lines; their rows are made again.
        counts: The processor's counters, over shards committed by this run.
        seconds: Wall time of the run.
        waited_s: Seconds that the engine waited for prepared rows.
        stopped: Whether the run was asked to stop before its share was complete.
    """

    column: str
    shards: int = 0
    skipped: int = 0
    done: int = 0
    busy: int = 0
    lost: int = 0
    rows: int = 0
    resumed_rows: int = 0
    bad: int = 0
    absent: int = 0
    fruitless: int = 0
    dropped_lines: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    waited_s: float = 0.0
    stopped: bool = False

    @property
    def complete(self) -> bool:
        """Whether the whole share is finished."""
        return self.skipped + self.done == self.shards

    def __str__(self) -> str:
        optional = (
            (self.skipped, f"{self.skipped} already finished and reused"),
            (self.resumed_rows, f"{self.resumed_rows} rows resumed from journals"),
            (self.rows, f"{self.rows} rows made in {self.seconds:.1f} s"),
            (self.dropped_lines, f"{self.dropped_lines} torn journal lines dropped"),
            (self.bad, f"{self.bad} bad items (null, or in part; see *.errors.jsonl)"),
            (self.fruitless, f"{self.fruitless} rows without a value: nothing usable came back"),
            (self.absent, f"{self.absent} rows without a value: their inputs have none"),
            (self.busy, f"{self.busy} shards skipped: another process works on them"),
            (self.lost, f"{self.lost} shards lost to another process that took over; the rows made here are dropped"),
            (self.counts, ", ".join(f"{name} {n}" for name, n in sorted(self.counts.items()))),
            (self.stopped, "stopped on request: the same command resumes from here"),
        )
        parts = [f"{self.done} of {self.shards} shards done", *(text for count, text in optional if count)]
        return f"{self.column}: " + "; ".join(parts)


@dataclass(frozen=True)
class JobReport:
    """The outputs of a run while it runs.

    Attributes:
        summary: The figures, always up to date.
        event: Called with an event's name and its details.
        advance: Moves the progress bar by a number of rows.
    """

    summary: JobSummary
    event: Event
    advance: Callable[[int], None]
