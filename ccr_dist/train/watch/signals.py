"""Requests to stop: SIGTERM, SIGUSR1, SIGUSR2, SIGINT, a file `stop` in the run folder, or the launcher's stop file
(`stopfile.py`). Noticed here on each rank, and agreed on: nobody leaves alone, since the others would wait for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

from ccr_dist import stopfile
from ccr_dist.train.processes import Processes

T = TypeVar("T")


class Stopped(Exception):
    """A stop request that all ranks have agreed to honour; the message says what asked for it."""


class _Broken(BaseException):
    """Ends `StopRequest.unless`; no handler of errors on the way is to take it for one."""


class StopRequest:
    """Watches for a stop request. A second SIGINT is an ordinary KeyboardInterrupt, for the impatient."""

    def __init__(self, run: Path) -> None:
        self.file = run / "stop"
        self.reason: str | None = None
        self._breaks, self._process = False, os.getpid()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, self._heard)
        stopfile.watch()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
        if self._breaks and os.getpid() == self._process:  # loader processes inherit this
            raise _Broken

    def seen(self) -> bool:
        with contextlib.suppress(OSError):  # failing storage is reported by what needs it, on all ranks alike
            if self.reason is None and self.file.exists():
                self.reason = f"file {self.file}"
        return self.reason is not None

    def unless(self, action: Callable[[], T]) -> T | None:
        """The action's result; None when there is a request, and a signal ends the action wherever it is.

        Only for what this rank does alone, and what may be left half done; then all ranks call `leave`.
        """
        if self.seen():
            return None
        try:
            try:
                self._breaks = True
                return action()
            finally:
                self._breaks = False
        except _Broken:
            self._breaks = False
            return None

    def leave(self, processes: Processes) -> None:
        """Raise Stopped on every rank when some rank was asked to stop. Collective."""
        if processes.any(self.seen()):
            raise Stopped(processes.agree(self.reason) or "a request to another process")
