"""The progress bar of the data room: on stderr, with the time left. Nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ccr_dist import terminal


@contextlib.contextmanager
def bar(show: bool, what: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    """Yields the function that moves the bar on by one; a silent one when `show` is false or there is nothing to do."""
    if not show or not total:
        yield lambda: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    parts = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*parts, console=terminal.console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
