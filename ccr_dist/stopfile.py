"""The stop files that the program which started this process may create, named by CCR_STOP_FILE (separated by colons),
for launchers that forward no signals.

A thread looks for them, and sends this process SIGUSR1 when one is there: what handles signals (training, jobs) then
handles it alike, and at once, whatever the main thread is at.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

VARIABLE = "CCR_STOP_FILE"
POLL_S = 0.5


def watch() -> Callable[[], None]:
    """From now on the appearance of such a file is SIGUSR1, until the function that is returned is called. The process
    must handle that signal.
    """
    named, over = os.environ.get(VARIABLE), threading.Event()
    if not named:
        return lambda: None
    paths = [Path(path) for path in named.split(os.pathsep)]

    def look() -> None:
        while not over.is_set():
            if any(path.exists() for path in paths):
                os.kill(os.getpid(), signal.SIGUSR1)
                return
            over.wait(POLL_S)

    thread = threading.Thread(target=look, name="stop file", daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join()

    return end
