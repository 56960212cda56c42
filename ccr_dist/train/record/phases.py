"""What this rank is at, and how long each part of a step takes. Read by watchdog, log,
error reports.

The parts of a step, in their order: data (waiting for the loader), agree (waiting for the other ranks, in the small
collectives around a step), forward, losses (with the gathers of features), backward (with the reduction of gradients
that continues under it), update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

STEP = ("data", "agree", "forward", "losses", "backward", "update")


class Phases:
    """Written by the thread that trains, read by any. Times are taken for a step that is `measured`: on a GPU by events
    in its stream, so that nothing waits for the device before they are read.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.step, self.name, self._since = 0, "start", time.monotonic()
        self.batch: dict[str, Any] = {}  # sizes of the current batch, for reports
        self.heard: Callable[[], None] = lambda: None  # called at every sign of life
        self._marks: list[tuple[str, Any]] | None = None

    def begin(self, step: int, *, measured: bool) -> None:
        """A step begins, by waiting for its batch."""
        self.step, self.batch = step, {}
        self._marks = [] if measured else None
        self.enter("data")

    def enter(self, name: str) -> None:
        """Another part of the work begins. A sign of life."""
        self.name, self._since = name, time.monotonic()
        if self._marks is not None:
            self._marks.append((name, self._mark()))
        self.heard()

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Something between steps; the phase before it is restored after it."""
        before = self.name
        self.enter(name)
        yield
        self.enter(before)

    def seconds(self) -> dict[str, float]:
        """Time in each part since `begin`, by now. Waits for the device."""
        assert self._marks is not None, "this step is not measured"
        marks, self._marks = [*self._marks, ("", self._mark())], None
        if self._cuda:
            marks[-1][1].synchronize()
        spent = dict.fromkeys(STEP, 0.0)
        for (name, start), (_, end) in pairwise(marks):
            spent[name] += start.elapsed_time(end) / 1000 if self._cuda else end - start
        return spent

    def __str__(self) -> str:
        return f"step {self.step}, {self.name}, for {time.monotonic() - self._since:.0f} s"

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
