"""Requests to stop: SIGTERM, SIGUSR1, SIGUSR2, SIGINT, or a file `stop` in the run folder. Only noticed here;
the loop lets all ranks agree on it.
"""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType


class StopRequest:
    """Watches for a stop request. A second SIGINT is an ordinary KeyboardInterrupt, for the impatient."""

    def __init__(self, run: Path) -> None:
        self.file = run / "stop"
        self.reason: str | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, self._heard)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name

    def seen(self) -> bool:
        if self.reason is None and self.file.exists():
            self.reason = f"file {self.file}"
        return self.reason is not None
