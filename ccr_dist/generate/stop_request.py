"""A request to stop: by a signal, or by a stop file (`stopfile.py`)."""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType, TracebackType

from ccr_dist import stopfile

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Whether this process was asked to stop. As a context manager it handles SIGTERM, SIGINT, SIGUSR1 and stop files.

    The first signal only sets `asked`, and the batch in flight is finished. A second SIGTERM or SIGINT raises
    KeyboardInterrupt at once, which is safe for journals. Outside of the main thread, signals are not handled.

    Attributes:
        asked: Whether a stop was requested.
    """

    def __init__(self) -> None:
        self.asked = False
        self._received: set[int] = set()
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._restore.callback(signal.signal, number, signal.signal(number, self._handle))
            self._restore.callback(stopfile.watch())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in self._received and number != signal.SIGUSR1:
            raise KeyboardInterrupt
        self._received.add(number)
        self.asked = True
