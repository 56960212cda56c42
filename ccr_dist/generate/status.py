"""How far the jobs of a dataset are: shards done, leased by whom, waiting; bad rows; rate; what to do. From files only;
changes nothing.

Whether a lease may be taken over is never decided here (`lease.py` does, by beats and its own clock). Here the times of
files are good enough, because a person reads the answer: they all come from the file system, so they can be compared
with one another.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ccr_dist.data.storage import store
from ccr_dist.data.table.dataset import Column, open_all
from ccr_dist.data.table.inspect import origin_of
from ccr_dist.errors import DataError
from ccr_dist.generate.lease import boot_id, lease_path, lock_is_free, look, read_lease
from ccr_dist.generate.text.filters import COUNTED
from ccr_dist.redact import without_secrets

if TYPE_CHECKING:
    from rich.console import Group

SILENT_S = 60.0  # the runner's default lease: a worker beats four times as often
RECENT = 200  # stats files that the rate is taken from
SHOWN = 40  # leases on a terminal, those in trouble first


@dataclass(frozen=True)
class LeaseStatus:
    """A shard in work, by its lease file.

    Attributes:
        shard: Its name.
        generation: The lease's generation.
        worker: Who holds it.
        since: Unix time in seconds, by the worker's own clock.
        stuck: Workers that died on it, one after the other, without a new row.
        beat: Heartbeats so far.
        rows: Rows done.
        of: Rows in all.
        tokens: Tokens generated.
        age_s: Seconds since the file last changed.
        state: working, silent (no heartbeat for long) or dead (its process is gone).
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
    """Rows that a worker made between two moments of its own clock (unix s)."""

    worker: str
    began: float
    ended: float
    rows: int
    tokens: int


def status(path: str | Path, *, column: str | None = None, pause_s: float = 2.0) -> dict[str, Any]:
    """{"path", "columns": [...]}: every column that a job makes or made, of a dataset or of a folder of them; or only
    `column`.

    A lease that has not changed for long is looked at again after pause_s before it is called silent; without such ones
    nothing waits. DataError when there is no dataset, or none has a column of that name, or one that a job makes.
    """
    datasets = open_all(path)
    names = {dataset: [name for name in dataset.columns() if column in (None, name)] for dataset in datasets}
    if column is not None and not any(names.values()):
        datasets[0].column(column)  # raises, and says what there is
    columns = [dataset.column(name) for dataset in datasets for name in names[dataset]]
    jobs = [one for one in columns if "processor" in one.plan]
    if column is not None and not jobs:
        raise DataError(
            f"{columns[0].folder}: made by no job (its plan names no processor), so there is no progress to show"
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
    """What one listing of a column's folder shows."""

    done: set[str]
    begun: set[str]  # unfinished, with rows in a journal
    leases: list[LeaseStatus]  # of unfinished shards, the newest of each
    bad: int
    stats: list[Path]  # the newest ones
    lost: dict[int, str]  # recorded, but the payload or the index is gone or cut: what is wrong


def _look(column: Column) -> _Look:
    traces = look(column.folder)
    ids, stats, errors = set(column.dataset.shards), [], []
    done: set[str] = set()
    for name in os.listdir(column.folder):  # noqa: PTH208 (thousands of names)
        shard, _, what = name.partition(".")
        if what == "json" and shard in ids:
            done.add(shard)
        elif what == "stats.json":
            stats.append(f"{column.folder}/{name}")
        elif what == "errors.jsonl":
            errors.append((shard, column.folder / name))
    lost = column.lost()
    done -= {column.dataset.shards[shard] for shard in lost}
    newest = sorted(((_changed(path), path) for path in stats), reverse=True)[:RECENT]
    held = {shard: max(there.leases) for shard, there in sorted(traces.items()) if there.leases and shard not in done}
    leases = [_lease(column.folder, shard, generation) for shard, generation in held.items()]
    return _Look(
        done=done,
        begun={shard for shard, there in traces.items() if there.journals} - done - held.keys(),
        leases=[lease for lease in leases if lease is not None],
        bad=sum(_lines(path) for shard, path in errors if shard in done),
        stats=[Path(path) for _, path in newest],
        lost=lost,
    )


def _changed(path: str | Path) -> float:
    """When a file last changed (unix s, by the file system); 0 when it is gone."""
    try:
        return os.stat(path).st_mtime  # noqa: PTH116 (thousands of files)
    except FileNotFoundError:
        return 0.0


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:  # the shard's errors were mended just now
        return 0


def _lease(folder: Path, shard: str, generation: int) -> LeaseStatus | None:
    """None when it is gone."""
    path = lease_path(folder, shard, generation)
    changed = _changed(path)
    lines = read_lease(path)
    if lines is None:
        return None
    owner, beat = lines
    dead = bool(owner.get("boot")) and owner["boot"] == boot_id() and lock_is_free(path)
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
    """A silent lease's second chance: a clock that differs from the file system's must not make all workers silent."""
    if before.state != "silent":
        return before
    now = _lease(column.folder, before.shard, before.generation)
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


def _counts(paths: list[Path]) -> Counter[str]:
    """What the jobs counted, over the shards that the rate is taken from."""
    counts: Counter[str] = Counter()
    for path in paths:
        # gone, or written by an earlier version
        with contextlib.suppress(DataError, KeyError, TypeError, AttributeError):
            counts.update(store.read_json(path)["counts"])
    return counts


def _span(path: Path) -> _Span | None:
    try:
        stats = store.read_json(path)
        return _Span(
            stats["worker"],
            stats["began"],
            stats["ended"],
            stats["rows"] - stats["resumed"],
            stats["counts"].get("tokens", 0),
        )
    except (DataError, KeyError):  # gone, or written by an earlier version
        return None


def _lease_span(lease: LeaseStatus) -> _Span | None:
    """Only of a first generation: the rows of a later one were in part made by others."""
    return (
        _Span(lease.worker, lease.since, time.time() - lease.age_s, lease.rows, lease.tokens)
        if lease.generation == 1
        else None
    )


def _rate(spans: list[_Span]) -> tuple[float | None, float | None]:
    """(rows/s, tokens/s) of all workers together. Each is measured by its own clock alone, from its first to its last
    moment.
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
    """What to do about shards that make no progress."""
    leases = seen.leases
    of = {state: [lease for lease in leases if lease.state == state] for state in ("working", "silent", "dead")}
    command = without_secrets(column.provenance.get("command", "the command that makes the column"))
    lines = []
    if seen.lost:
        names = ", ".join(column.dataset.shards[shard] for shard in list(seen.lost)[:8]) + (
            ", ..." if len(seen.lost) > 8 else ""
        )
        lines.append(
            f"shards {names} were done and are lost: {next(iter(seen.lost.values()))}. The same command makes them"
            " again"
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


def render(description: dict[str, Any]) -> Group:
    """The description for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    for column in description["columns"]:
        shards, rows = column["shards"], column["rows"]
        parts.append(Text.assemble((f"{column['dataset']}  {column['column']}", "bold"), f"  {column['by']}"))
        bad = f"; {rows['bad']} bad rows (*.errors.jsonl)" if rows["bad"] else ""
        if shards["done"] == shards["total"]:
            parts.append(Text(f"  complete: {shards['total']} shards, {rows['total']} rows{bad}"))
            parts += _counted(column)
            continue
        begun = f" ({shards['begun']} of them begun)" if shards["begun"] else ""
        begun += f"; {shards['lost']} were done, but are damaged or gone" if shards["lost"] else ""
        parts.append(
            Text(
                f"  {shards['done']} of {shards['total']} shards done, {shards['leased']} leased, {shards['waiting']}"
                f" waiting{begun}"
            )
        )
        parts.append(Text(f"  {rows['done']} of {rows['total']} rows{_speed(column)}{bad}"))
        parts += _counted(column)
        if column["leases"]:
            table = Table(box=None, header_style="dim", padding=(0, 1))
            for heading in ("", "worker", "shard", "since", "rows", "tokens", "last beat", "state"):
                table.add_column(heading, overflow="fold", no_wrap=heading != "worker")
            for lease in sorted(column["leases"], key=lambda lease: lease["state"] == "working")[:SHOWN]:
                since = time.strftime("%d %b %H:%M", time.localtime(lease["since"]))
                done, tokens = f"{lease['rows']} of {lease['of']}", str(lease["tokens"] or "")
                cells = (lease["worker"], lease["shard"], since, done, tokens, f"{_time(lease['age_s'])} ago")
                colour = {"working": "green", "silent": "yellow", "dead": "red"}[lease["state"]]
                table.add_row("", *map(Text, cells), Text(lease["state"], colour))
            parts.append(table)
            if (more := len(column["leases"]) - SHOWN) > 0:
                parts.append(Text(f"  and {more} more leases", "dim"))
        parts += [Text(f"  {line}", "yellow") for line in column["advice"]]
    return Group(*parts) if parts else Group(Text(f"{description['path']}: no column here is made by a job"))


def _counted(column: dict[str, Any]) -> list[Any]:
    """What was dropped from answers, and removed around them."""
    from rich.text import Text

    if not (shown := [f"{name} {column['counts'][name]}" for name in COUNTED if column["counts"].get(name)]):
        return []
    part = f" (in the {RECENT} newest shards)" if column["shards"]["done"] > RECENT else ""
    return [Text(f"  filters{part}: {', '.join(shown)}")]


def _speed(column: dict[str, Any]) -> str:
    if column["rows_per_s"] is None:
        return "; rate not known yet" if column["shards"]["working"] else ""
    tokens = f", {column['tokens_per_s']:g} tokens/s" if column["tokens_per_s"] else ""
    return f"; {column['rows_per_s']:g} rows/s{tokens}; about {_time(column['eta_s'])} left"


def _time(seconds: float) -> str:
    """`42 s`, `17 min`, `5.3 h`, `3.1 days`."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if unit < 3600 else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:.1f} days"
