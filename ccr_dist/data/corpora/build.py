"""Builds datasets from a recipe: OUT/train, OUT/val, OUT/test; every shard of every column is committed once.

The recipe (`recipes/`) decides which rows there are, the table how a shard is written; this file makes what is missing.
Running a build again resumes it, or does nothing; a recipe with another plan is refused, and the difference shown.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccr_dist.data.corpora.recipes.base import Material, Recipe, RecipeRow
from ccr_dist.data.storage import store
from ccr_dist.data.storage.object_store import require_local
from ccr_dist.data.storage.pools import spawn_pool
from ccr_dist.data.storage.progress_bar import bar
from ccr_dist.data.table.dataset import Column, Dataset, create_column, create_dataset
from ccr_dist.data.table.splits import SPLITS
from ccr_dist.errors import DataBudgetError, DataError

_TASKS_AHEAD = 8  # per worker process; bounds the pictures in memory


@dataclass
class BuildSummary:
    """Report of `build`.

    Attributes:
        out: Folder of the datasets.
        rows: Number of rows by split.
        columns: Number of columns.
        built: Column shards that this call committed.
        there: Column shards that already existed.
        exports: JSONL files for `ccr-dist replay`.
        bad: Why a picture is null, by key, in the shards that this call built.
        notes: Lines for the user.
        seconds: Wall time of this call.
    """

    out: Path
    rows: dict[str, int] = field(default_factory=dict)
    columns: int = 0
    built: int = 0
    there: int = 0
    exports: list[Path] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def build(recipe: Recipe, out: str | Path, *, workers: int | None = None, progress: bool = True) -> BuildSummary:
    """Build the missing shards. After an error or interruption, committed shards stay and the next call resumes.

    Args:
        recipe: The recipe.
        out: Folder of the datasets.
        workers: Processes that render pictures; None: one per core; 0: none.
        progress: Whether to show a progress bar.

    Raises:
        ConfigError: The recipe's source is missing or wrong, or `out` is a URL.
        DataError: `out` holds another build (the difference is shown), or the recipe gives no rows.
        DataBudgetError: More pictures are unusable than the recipe allows.
        StorageError: The disk is full or fails.
    """
    start = time.monotonic()
    require_local(out, "datasets are built")
    material = recipe.material()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    limited = {} if recipe.limit is None else {"limit": recipe.limit}
    plan = {
        "recipe": recipe.kind,
        "name": recipe.name,
        "shard_rows": recipe.shard_rows,
        "rows": material.plan,
        **limited,
    }
    _claim(out / "recipe.json", plan, lambda: recipe.advice(out, material))
    for folder in (out, *out.glob("*/"), *out.glob("*/*/")):
        store.tidy(folder)
    summary = BuildSummary(out, notes=tuple(material.notes), columns=len(material.columns))
    work: list[tuple[Column, int, list[RecipeRow]]] = []
    for split in SPLITS:
        rows = _spaced([row for row in material.rows if row.split == split], recipe.limit)
        if not rows:
            continue
        shards = [rows[i : i + recipe.shard_rows] for i in range(0, len(rows), recipe.shard_rows)]
        dataset = create_dataset(
            out / split, name=recipe.name, split=split, keys=[[row.key for row in shard] for shard in shards]
        )
        summary.rows[split] = len(rows)
        summary.exports += _export(dataset, material, rows)
        for spec in material.columns:
            if split not in spec.splits:
                continue
            column = create_column(
                dataset, spec.name, kind=spec.kind, extension=spec.extension, plan=spec.plan, provenance=spec.provenance
            )
            missing = column.missing()
            summary.there += len(shards) - len(missing)
            work += [(column, i, shards[i]) for i in missing]
    if not summary.rows:
        raise DataError(
            f"{out}: the recipe {recipe.name!r} gives no rows; " + ("; ".join(material.notes) or "look at its options")
        )
    lazy = material.parallel and any(callable(rows[0].columns.get(column.name)) for column, _, rows in work)
    with (
        _pool(workers if lazy else 0) as pool,
        bar(progress and bool(work), "building", sum(len(rows) for _, _, rows in work), "values") as advance,
    ):
        for column, shard, rows in work:
            summary.built += _commit(column, shard, rows, pool, advance, recipe, summary.bad)
    summary.seconds = time.monotonic() - start
    return summary


def _spaced(rows: list[RecipeRow], limit: int | None) -> list[RecipeRow]:
    """At most `limit` rows, evenly spaced."""
    return rows if limit is None or limit >= len(rows) else [rows[i * len(rows) // limit] for i in range(limit)]


def _claim(path: Path, plan: dict[str, Any], advice: Callable[[], str]) -> None:
    """Reserve the folder for this build. Raises DataError, with the difference, if it holds another one."""
    if store.create_once(path, store.pretty_json(plan)):
        return
    try:
        there = store.read_json(path)
    except DataError as error:
        raise DataError(f"{error}; remove the file and build again: what is finished is kept") from None
    if lines := store.differences(there, plan):
        raise DataError(
            f"{path.parent}: holds another build; the difference:\n  " + "\n  ".join(lines) + f"\n{advice()}"
        )


def _export(dataset: Dataset, material: Material, rows: list[RecipeRow]) -> list[Path]:
    """Write the rows' exports as JSONL files for `ccr-dist replay`, one `{"key": ..., "value": ...}` per line."""
    paths = []
    for name in sorted({name for row in rows for name in row.exports}):
        lines = [
            store.canonical_json({"key": row.key, "value": row.exports[name]}) for row in rows if name in row.exports
        ]
        path = dataset.root / f"{name}.jsonl"
        if not path.exists():
            store.create_once(path, b"".join(line + b"\n" for line in lines))
        paths.append(path)
    return paths


def _commit(
    column: Column,
    shard: int,
    rows: list[RecipeRow],
    pool: Executor | None,
    advance: Callable[[], None],
    recipe: Recipe,
    bad: dict[str, str],
) -> bool:
    start = time.monotonic()
    here: dict[str, str] = {}

    def values() -> Iterator[bytes | None]:
        for row, value in zip(rows, _in_order((row.columns.get(column.name) for row in rows), pool), strict=True):
            if isinstance(value, DataError):
                here[row.key] = bad[row.key] = str(value)
                if len(bad) > recipe.bad_pictures:
                    shown = "".join(f"\n  {key}: {why}" for key, why in list(bad.items())[:10])
                    raise DataBudgetError(
                        f"{column.folder}: {len(bad)} unusable pictures, bad_pictures={recipe.bad_pictures}"
                        f" allowed:{shown}"
                    )
                value = None
            yield None if value is None else column.encode(value)
            advance()

    done = column.commit(shard, values())
    if done:
        column.write_stats(shard, {"seconds": round(time.monotonic() - start, 3), "rows": len(rows), "bad": here})
    return done


def _in_order(values: Iterable[Any], pool: Executor | None) -> Iterator[Any]:
    """The values in order; in place of a callable its result, or the DataError that it raises.

    A bounded number of callables runs ahead in the pool.
    """
    ahead: deque[Any] = deque()
    limit = 1 if pool is None else _TASKS_AHEAD * (os.cpu_count() or 1)
    for value in values:
        ahead.append(
            pool.submit(_call, value).result
            if pool is not None and callable(value)
            else (lambda value=value: _call(value))
        )
        if len(ahead) >= limit:
            yield ahead.popleft()()
    while ahead:
        yield ahead.popleft()()


def _call(value: Any) -> Any:
    try:
        return value() if callable(value) else value
    except DataError as e:
        return e


@contextlib.contextmanager
def _pool(workers: int | None) -> Iterator[Executor | None]:
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 1:
        yield None
        return
    pool = spawn_pool(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
