"""Records of a step's attempts in RUN/steps/STEP/attempts/TASK.jsonl: one line when an attempt starts and one when it
ends.

Only the attempt itself writes, so lines of two writers never mix. An attempt without an end was killed, with its node
or by SLURM.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccr_dist import errors
from ccr_dist.cluster.progress import Progress
from ccr_dist.data.storage.json_lines import append_line, has_types, read_lines


@dataclass(frozen=True)
class Attempt:
    """One attempt of a task.

    Attributes:
        name: JOB.RESTART.
        start: The line written at its start.
        end: The line written at its end; None while it runs, and if it was killed.
    """

    name: str
    start: Mapping[str, Any]
    end: Mapping[str, Any] | None

    @property
    def job(self) -> str:
        """The id of its job."""
        return self.name.partition(".")[0]

    @property
    def identity(self) -> str | None:
        """Its digest (`identity.py`); None for scripts without a pipeline and for attempts of earlier versions."""
        return self.start.get("identity")

    @property
    def done(self) -> bool:
        """Whether it succeeded."""
        return self.end is not None and self.end["decision"] == "done"


def step_folder(run: Path, step: str) -> Path:
    """The folder of a step in a run folder."""
    return run / "steps" / step


def path_of(run: Path, step: str, task: int) -> Path:
    """The file of a task's attempts."""
    return step_folder(run, step) / "attempts" / f"{task}.jsonl"


def write(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line, with the time."""
    append_line(path, {**line, "time": round(time.time(), 3)})


def read(path: Path) -> list[Attempt]:
    """Read the attempts in order. Incomplete and damaged lines are skipped; without an end, an attempt was killed."""
    starts: dict[str, Mapping[str, Any]] = {}
    ends: dict[str, Mapping[str, Any]] = {}
    for values in read_lines(path, _sound).values:
        if values["event"] == "start":
            starts[values["attempt"]] = {"progress": {}, "nodes": [], "command": [], "time": 0.0, **values}
        else:
            ends[values["attempt"]] = {**_KILLED, **values}
    return [Attempt(name, start, ends.get(name)) for name, start in starts.items()]


# What the end of an attempt says that does not say how it ended.
_KILLED = {"code": errors.CRASH, "decision": "again", "why": "not recorded", "counted": True, "exclude": []}
_TYPES: dict[str, Any] = {
    "attempt": str, "time": int | float, "progress": dict, "nodes": list, "command": list, "code": int, "decision": str,
    "why": str, "exclude": list, "counted": bool, "saved_s": int | float,
}  # fmt: skip


def _sound(values: dict[str, Any]) -> bool:
    progress = values.get("progress")
    return (
        values.get("event") in ("start", "end")
        and "attempt" in values
        and has_types(values, _TYPES)
        and all(isinstance(name, str) for key in ("nodes", "command", "exclude") for name in values.get(key, ()))
        and (progress is None or Progress.fits(progress))
    )


def damaged(path: Path) -> list[int]:
    """The numbers of the lines that `read` skips."""
    return read_lines(path, _sound).damaged


def strikes(attempts: Sequence[Attempt], now: Progress) -> int:
    """Count the most recent consecutive attempts that made no progress and are counted as failures.

    Args:
        attempts: Attempts in order; killed ones are counted.
        now: The current progress.
    """
    count, after = 0, now
    for attempt in reversed(attempts):
        before = Progress.from_json(attempt.start["progress"])
        if after.beyond(before):
            break
        if attempt.end is None or attempt.end["counted"]:
            count += 1
        after = before
    return count


def excluded(attempts: Sequence[Attempt]) -> frozenset[str]:
    """All nodes that later attempts must avoid."""
    return frozenset(node for attempt in attempts if attempt.end for node in attempt.end["exclude"])
