"""Progress of jobs, read from their files: shards done, leased and waiting; bad rows; rate; advice. Changes nothing.

This module never decides whether a lease may be taken over; `lease.py` does, by heartbeats and its own clock. For
people, the times of files are exact enough: all come from the file system, so they can be compared with each other.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ccr_dist.data.storage.json_lines import has_types
from ccr_dist.data.table.dataset import Column, open_all
from ccr_dist.data.table.inspect import origin_of
from ccr_dist.errors import DataError
from ccr_dist.generate.traces.base import WorkPlace
from ccr_dist.generate.traces.place import work_place
from ccr_dist.redact import without_secrets

SILENT_S = 60.0  # the runner's default lease; there are four heartbeats in it
RECENT = 200  # stats files that the rate is computed from


@dataclass(frozen=True)
class LeaseStatus:
    """A leased shard, read from its lease file.

    Attributes:
        shard: Its name.
        generation: The lease's generation.
        worker: Its worker.
        since: When the worker took it, as unix time in seconds by the worker's clock.
        stuck: Workers in a row that died on it without a new row.
        beat: Heartbeats so far.
        rows: Rows done.
        of: Rows in all.
        tokens: Tokens generated.
        age_s: Seconds since the file last changed.
        state: "working", "silent" (no heartbeat for SILENT_S) or "dead" (the process has ended).
    """

    shard: str
    generation: int
    worker: str
    since: float
    stuck: int
    beat: int
    rows: int
    of: int
    tokens: int
    age_s: float
    state: str


class _Span(NamedTuple):
    """Rows that a worker made between two times of its own clock (unix time, seconds)."""

    worker: str
    began: float
    ended: float
    rows: int
    tokens: int


def status(path: str | Path, *, column: str | None = None, pause_s: float = 2.0) -> dict[str, Any]:
    """Describe the progress of all columns that jobs make or made.

    Args:
        path: A dataset or a folder of datasets.
        column: Only this column; None: all.
        pause_s: A lease that has not changed for SILENT_S is read again after this many seconds before it counts as
            silent. Without such leases, nothing waits.

    Returns:
        {"path", "columns": [...]}, JSON.

    Raises:
        DataError: There is no dataset, no such column, or the column was not made by a job.
    """
    datasets = open_all(path)
    names = {dataset: [name for name in dataset.columns() if column in (None, name)] for dataset in datasets}
    if column is not None and not any(names.values()):
        datasets[0].column(column)  # raises, and says what there is
    columns = [dataset.column(name) for dataset in datasets for name in names[dataset]]
    jobs = [one for one in columns if "processor" in one.plan]
    if column is not None and not jobs:
        raise DataError(
            f"{columns[0].place}: made by no job (its plan names no processor), so there is no progress to show"
        )
    looks = [_look(one) for one in jobs]
    if any(lease.state == "silent" for seen in looks for lease in seen.leases):
        time.sleep(pause_s)
        looks = [
            replace(seen, leases=[_again(one, lease) for lease in seen.leases])
            for one, seen in zip(jobs, looks, strict=True)
        ]
    return {"path": str(path), "columns": [_describe(one, seen) for one, seen in zip(jobs, looks, strict=True)]}


@dataclass(frozen=True)
class _Look:
    """The contents of a column's folder, from one listing."""

    done: set[str]
    begun: set[str]  # not leased, unfinished, with rows in a journal
    leases: list[LeaseStatus]  # the newest lease of each unfinished shard
    bad: int
    stats: list[Any]  # contents of the newest files
    lost: dict[int, str]  # recorded shards whose payload or index is missing or truncated: what is wrong


def _look(column: Column) -> _Look:
    place = work_place(column.dataset, column.name)
    traces, names = place.look(), place.names()
    ids = set(column.dataset.shards)
    parts = {name: name.partition(".") for name in names}
    done = {shard for shard, _, what in parts.values() if what == "json" and shard in ids}
    lost = column.lost()
    done -= {column.dataset.shards[shard] for shard in lost}
    errors = [name for name, (shard, _, what) in parts.items() if what == "errors.jsonl" and shard in done]
    stats = [name for name, (_, _, what) in parts.items() if what == "stats.json"]
    newest = [name for _, name in sorted(zip(place.written(stats), stats, strict=True), reverse=True)[:RECENT]]
    held = {shard: max(there.leases) for shard, there in sorted(traces.items()) if there.leases and shard not in done}
    leases = [_lease(place, shard, generation) for shard, generation in held.items()]
    return _Look(
        done=done,
        begun={shard for shard, there in traces.items() if there.journals} - done - held.keys(),
        leases=[lease for lease in leases if lease is not None],
        bad=sum((content or b"").count(b"\n") for content in place.read(errors)),
        stats=[_parsed(content) for content in place.read(newest)],
        lost=lost,
    )


def _parsed(content: bytes | None) -> Any:
    """The JSON value in a file that may be gone or damaged."""
    try:
        return json.loads(content or b"null")
    except (ValueError, RecursionError):
        return None


def _lease(place: WorkPlace, shard: str, generation: int) -> LeaseStatus | None:
    """A lease's state, or None if it is gone."""
    changed = place.changed(shard, generation)
    lines = place.read_lease(shard, generation)
    if lines is None:
        return None
    owner, beat = lines
    dead = place.has_ended(shard, generation)
    age_s = max(0.0, time.time() - changed)
    return LeaseStatus(
        shard=shard,
        generation=generation,
        worker=owner.get("worker", "?"),
        since=owner.get("since", 0),
        stuck=owner.get("stuck", 0),
        beat=beat.get("beat", 0),
        rows=beat.get("rows", 0),
        of=beat.get("of", 0),
        tokens=beat.get("tokens", 0),
        age_s=round(age_s, 1),
        state=_state(dead=dead, age_s=age_s),
    )


def _state(*, dead: bool, age_s: float) -> str:
    if dead:
        return "dead"
    return "silent" if age_s > SILENT_S else "working"


def _again(column: Column, before: LeaseStatus) -> LeaseStatus:
    """Read a silent lease again: our clock may differ from the file system's, which would make all workers silent."""
    if before.state != "silent":
        return before
    now = _lease(work_place(column.dataset, column.name), before.shard, before.generation)
    return before if now is None or now.beat == before.beat else replace(now, state="working")


def _describe(column: Column, seen: _Look) -> dict[str, Any]:
    dataset = column.dataset
    states = Counter(lease.state for lease in seen.leases)
    rows = sum(n for shard, n in zip(dataset.shards, dataset.shard_rows, strict=True) if shard in seen.done)
    rows += sum(lease.rows for lease in seen.leases)
    busy = {lease.worker for lease in seen.leases if lease.state == "working"}
    spans = [*map(_span, seen.stats), *map(_lease_span, seen.leases)]
    rate, tokens = _rate([span for span in spans if span is not None and span.worker in busy])
    waiting = len(dataset.shards) - len(seen.done) - len(seen.leases)
    described = {
        "dataset": dataset.place,
        "column": column.name,
        "by": origin_of(column.plan, column.provenance),
        "shards": {
            "total": len(dataset.shards),
            "done": len(seen.done),
            "leased": len(seen.leases),
            "waiting": waiting,
            "begun": len(seen.begun),
            "lost": len(seen.lost),
            **{state: states[state] for state in ("working", "silent", "dead")},
        },
        "rows": {"total": dataset.rows, "done": rows, "bad": seen.bad},
        "counts": dict(sorted(_counts(seen.stats).items())),
        "rows_per_s": rate,
        "tokens_per_s": tokens,
        "eta_s": round((dataset.rows - rows) / rate) if rate else None,
        "leases": [asdict(lease) for lease in seen.leases],
    }
    return {**described, "advice": _advice(column, seen, waiting)}


def _counts(stats: list[Any]) -> Counter[str]:
    """Sums of the jobs' counts, over the shards that the rate is computed from."""
    counts: Counter[str] = Counter()
    for one in stats:
        with contextlib.suppress(KeyError, TypeError, AttributeError):  # gone, or written by an earlier version
            counts.update(one["counts"])
    return counts


_MEASURED: dict[str, Any] = {"worker": str, "began": int | float, "ended": int | float, "rows": int, "resumed": int}


def _span(stats: Any) -> _Span | None:
    try:
        if not has_types(stats, _MEASURED) or not has_types(stats["counts"], {"tokens": int}):
            return None
        return _Span(
            stats["worker"],
            stats["began"],
            stats["ended"],
            stats["rows"] - stats["resumed"],
            stats["counts"].get("tokens", 0),
        )
    except (KeyError, TypeError, AttributeError):  # gone, damaged, or written by an earlier version
        return None


def _lease_span(lease: LeaseStatus) -> _Span | None:
    """A lease's rows; only of a first generation, since other workers made part of a later one's."""
    return (
        _Span(lease.worker, lease.since, time.time() - lease.age_s, lease.rows, lease.tokens)
        if lease.generation == 1
        else None
    )


def _rate(spans: list[_Span]) -> tuple[float | None, float | None]:
    """(rows/s, tokens/s) of all workers together; None without rows or tokens.

    Each worker is measured by its own clock, from its first time to its last.
    """
    workers: dict[str, list[_Span]] = {}
    for span in spans:
        workers.setdefault(span.worker, []).append(span)
    rows = tokens = 0.0
    for theirs in workers.values():
        seconds = max(span.ended for span in theirs) - min(span.began for span in theirs)
        if seconds > 0:
            rows += sum(span.rows for span in theirs) / seconds
            tokens += sum(span.tokens for span in theirs) / seconds
    return (float(f"{rows:.4g}") if rows else None, float(f"{tokens:.4g}") if tokens else None)


def _advice(column: Column, seen: _Look, waiting: int) -> list[str]:
    """Lines on what to do about shards without progress."""
    leases = seen.leases
    of = {state: [lease for lease in leases if lease.state == state] for state in ("working", "silent", "dead")}
    command = without_secrets(column.provenance.get("command", "the command that makes the column"))
    lines = []
    if seen.lost:
        names = ", ".join(column.dataset.shards[shard] for shard in list(seen.lost)[:8]) + (
            ", ..." if len(seen.lost) > 8 else ""
        )
        in_store = column.dataset.remote is not None and column.dataset.remote.mirror
        again = (
            "makes them again" if not in_store else "says what to remove in the store: no job removes anything there"
        )
        lines.append(
            f"shards {names} were done and are lost: {next(iter(seen.lost.values()))}. The same command {again}"
        )
    if of["dead"]:
        lines.append(
            f"{_names(of['dead'])}: the worker is gone. Its rows are safe; any other worker of the column takes the"
            " shard over"
        )
    if of["silent"]:
        lines.append(
            f"{_names(of['silent'])}: no beat for long: the worker was killed on another host, or it was stopped, or"
            " its host or storage hangs. Other workers take the shard over; if it wakes, it drops its work"
        )
    for lease in leases:
        if lease.stuck:
            lines.append(
                f"shard {lease.shard}: {lease.stuck} workers died on it, one after the other, without one new row: look"
                " at their logs"
            )
    if (waiting or leases) and not of["working"]:
        lines.append(f"nobody works on it. To resume: {command}")
    return lines


def _names(leases: list[LeaseStatus]) -> str:
    shown = ", ".join(f"{lease.shard} ({lease.worker})" for lease in leases[:4])
    return (
        ("shards " if len(leases) > 1 else "shard ")
        + shown
        + (f" and {len(leases) - 4} more" if len(leases) > 4 else "")
    )
