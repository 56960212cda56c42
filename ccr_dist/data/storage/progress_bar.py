"""The progress bar of the data commands: on stderr, with the time left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ccr_dist import terminal


@contextlib.contextmanager
def bar(show: bool, what: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    """Context manager: a function that advances the bar by one.

    Args:
        show: Whether to show a bar; otherwise the function does nothing.
        what: The description.
        total: Number of units; with 0 there is no bar.
        unit: Name of the units.
    """
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
