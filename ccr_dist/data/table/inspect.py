"""Describes a dataset for people: rows, columns, languages, provenance, a few rows. `verify.py` checks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccr_dist.data.media.decode import decode_image
from ccr_dist.data.media.video import probe
from ccr_dist.data.storage import store
from ccr_dist.data.storage.object_store import as_url
from ccr_dist.data.table.dataset import Column, Dataset, open_all
from ccr_dist.errors import DataError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

FETCHED_BYTES = 64_000_000  # larger shards in a store are not fetched to show a few rows


def describe(path: str | Path, *, rows: int = 3) -> dict[str, Any]:
    """Describes a dataset, or each dataset in a folder, as JSON values.

    Args:
        path: A dataset or a folder of them.
        rows: How many rows to show of each.

    Returns:
        {"path", "datasets": [{name, split, rows, columns: [...], ...}]}.
    """
    return {
        "path": as_url(path) or str(path),
        "datasets": [_dataset(dataset, rows) for dataset in open_all(path)],
    }


def _dataset(dataset: Dataset, rows: int) -> dict[str, Any]:
    columns = {column: column.finished() for column in map(dataset.column, dataset.columns())}
    described = [_column(column, sorted(done)) for column, done in columns.items()]
    unfinished = sum(1 for _ in dataset.root.glob(f"*/{store.TEMPORARY}*"))
    return {
        "root": dataset.place,
        "name": dataset.name,
        "split": dataset.split,
        "rows": dataset.rows,
        "shards": len(dataset.shards),
        "digest": dataset.digest,
        "columns": described,
        "languages": _languages(described),
        "unfinished_files": unfinished,
        "shown": [_row(dataset, columns, row) for row in _spread(dataset.rows, rows)],
    }


def _column(column: Column, done: list[int]) -> dict[str, Any]:
    records = [column.record(shard) for shard in done]
    rows = sum(record["rows"] for record in records)
    return {
        "name": column.name,
        "kind": column.kind,
        "shards": len(done),
        "complete": len(done) == len(column.dataset.shards),
        "lost": {column.dataset.shards[shard]: why for shard, why in column.lost().items()},
        "remedy": column.remedy,
        "bytes": sum(record["bytes"] for record in records),
        "rows": rows,
        "values": rows - sum(record["nulls"] for record in records),
        "indexed": any("url" in record for record in records),
        "view_of": column.view_of,
        "plan": column.plan,
        "provenance": column.provenance,
    }


def _languages(columns: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Rows with a caption, by language and by "human" or the engine in the column's name."""
    languages: dict[str, dict[str, int]] = {}
    for column in columns:
        if column["name"].startswith("caption."):
            _, language, *engine = column["name"].split(".", 2)
            languages.setdefault(language, {})["".join(engine) or "human"] = column["values"]
    return languages


def _spread(total: int, n: int) -> list[int]:
    """n row numbers, spread over the whole dataset."""
    return sorted({i * total // n for i in range(n)}) if total and n else []


def _row(dataset: Dataset, columns: dict[Column, set[int]], number: int) -> dict[str, Any]:
    shard = 0
    while number >= dataset.shard_rows[shard]:
        number -= dataset.shard_rows[shard]
        shard += 1
    values = {column.name: _short(column, shard, number) for column, done in columns.items() if shard in done}
    return {"key": dataset.keys(shard)[number], "shard": dataset.shards[shard], "values": values}


def _short(column: Column, shard: int, row: int) -> Any:
    size = column.record(shard)["bytes"]
    if size > FETCHED_BYTES and column.dataset.remote and not column.path(shard, fetch=False).exists():
        return f"in the store; its shard of {size} bytes is not fetched for this"
    try:
        return _shown(column, shard, row)
    except DataError as e:
        return f"broken: {e}"


def _shown(column: Column, shard: int, row: int) -> Any:
    value = column.value(shard, row)
    if value is None:
        return None
    if column.kind == "image":
        image = decode_image(value, column.where(shard, row))
        return f"picture of {image.width} x {image.height}, {len(value)} bytes"
    if column.kind == "video":
        about = probe(value, column.where(shard, row))
        return f"video of {about.seconds:.1f} s, {about.width} x {about.height}, {len(value)} bytes"
    return f"{value.shape[0]} x {value.shape[1]} {value.dtype}" if column.kind == "matrix" else value


def render(description: dict[str, Any], *, languages: int = 4) -> Group:
    """Renders a description for a terminal.

    Args:
        description: The result of `describe`.
        languages: How many caption columns to show of a row.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for dataset in description["datasets"]:
        size = f"{dataset['rows']} rows in {dataset['shards']} shards"
        parts.append(Text.assemble((dataset["root"], "bold"), f"  {dataset['name']}, {dataset['split']}: {size}"))
        parts.append(_table(dataset))
        for column in dataset["columns"]:
            if lost := column["lost"]:
                more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
                what = (
                    f"{column['name']}: lost shards: {next(iter(lost.values()))}{more}; to make them again:"
                    f" {column['remedy']}"
                )
                parts.append(Text(what, "red"))
        if dataset["unfinished_files"]:
            parts.append(
                Text(f"{dataset['unfinished_files']} temporary files: being written now, or left by a crash", "dim")
            )
        for row in dataset["shown"]:
            parts.append(Text.assemble("  ", (row["key"], "bold"), f" (shard {row['shard']})"))
            captions = [name for name in row["values"] if name.startswith("caption.")]
            front = sorted(captions, key=lambda name: (name != "caption.en", name.count(".") > 1))[:languages]
            for name, value in row["values"].items():
                if name not in captions or name in front:
                    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                    parts.append(Text(f"    {name}: {text[:200]}"))
            if len(captions) > languages:
                parts.append(Text(f"    and {len(captions) - languages} more caption columns", "dim"))
        parts.append(Text())
    return Group(*parts)


def origin_of(plan: dict[str, Any], provenance: dict[str, Any]) -> str:
    """Where a column comes from, and its licence, in a few words.

    Examples: `apertium; spa-eng` and `OpenMoji; CC-BY-SA-4.0`.
    """
    parts: dict[str, str] = {}
    backbone = plan.get("backbone", {})
    # A dual encoder names one model per side.
    encoder = {"model": backbone.get("model") or backbone.get(backbone.get("side"))}
    for place in (plan.get("engine", {}), encoder, plan, provenance):
        for key in ("author", "engine", "mode", "model", "source", "note", "licence"):
            if isinstance(place, dict) and isinstance(place.get(key), str):
                parts.setdefault(key, place[key])
    return "; ".join(parts[key] for key in sorted(parts, key=lambda key: key == "licence"))


def _table(dataset: dict[str, Any]) -> Table:
    """A table with one line for all columns of the same origin and state, so that fifty languages fit a screen."""
    from rich.table import Table
    from rich.text import Text

    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for column in dataset["columns"]:
        origin = origin_of(column["plan"], column["provenance"])
        kind = column["kind"] + (", indexed" if column["indexed"] else "")
        groups.setdefault((kind, column["shards"], origin), []).append(column)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading, right in (
        ("columns", False),
        ("kind", False),
        ("rows with a value", True),
        ("shards", True),
        ("MB", True),
        ("from", False),
    ):
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for (kind, shards, origin), columns in groups.items():
        values = [column["values"] for column in columns]
        table.add_row(
            Text(", ".join(column["name"] for column in columns)),
            kind,
            str(values[0]) if min(values) == max(values) else f"{min(values)} to {max(values)}",
            Text(str(shards)) if columns[0]["complete"] else Text(f"{shards} of {dataset['shards']}", "red"),
            f"{sum(column['bytes'] for column in columns) / 1e6:.1f}",
            Text(origin),
        )
    return table
