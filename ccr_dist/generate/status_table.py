"""Shows the progress of jobs (`status.py`) on a terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ccr_dist.generate.status import RECENT
from ccr_dist.generate.text.filters import COUNTED

if TYPE_CHECKING:
    from rich.console import Group

SHOWN = 40  # leases at most, those in trouble first


def render(description: dict[str, Any]) -> Group:
    """Format a description for a terminal.

    Args:
        description: As `status` returns it.
    """
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
    """A line on dropped answers and on what was removed around answers, if any."""
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
    """Seconds in a readable unit: `42 s`, `17 min`, `5.3 h`, `3.1 days`."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if unit < 3600 else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:.1f} days"
