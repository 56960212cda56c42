"""Pools of worker processes that end with their parent, however the parent ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any


def spawn_pool(workers: int, start: Callable[..., None] | None = None, *args: Any) -> ProcessPoolExecutor:
    """A pool of fresh (spawned) processes that ignore SIGINT and SIGTERM: the parent decides when to stop.

    Args:
        workers: Number of processes.
        start: Picklable; every process calls start(*args) first.
    """
    return ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(start, args)
    )


def _begin(start: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal and SLURM send them to the whole group
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    if start is not None:
        start(*args)


def _die_with_parent() -> None:
    """Ends this process when its parent dies: processes of a pool would not notice, and stay forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
