"""A thread beside the work of a process: it sends heartbeats, and ends the process when the work gives no sign of life.

Jobs renew their leases with it and watch their engine (`generate/runner.py`); training watches its steps
(`train/watch/watchdog.py`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from ccr_dist.errors import HangError

LOAD_S = 3600.0


class Watch:
    """A context manager; the thread runs inside it.

    While something is at work and `heard` is not called for `silence_s` seconds, stacks and a message go to stderr and
    the process ends with HangError's exit code: an engine that hangs in a library cannot be stopped in a gentler way,
    and journals and checkpoints are safe at any moment. Only time during which this process runs counts: a stopped one
    (SIGSTOP, a suspended job) is not silent.

    Args:
        beat: called every `beat_s` seconds.
        beat_s: seconds between two heartbeats.
        at_work: what is being done now, in words; None when no sign of life is expected.
        silence_s: seconds without a sign of life after which the process ends.
    """

    def __init__(
        self, beat: Callable[[], None], beat_s: float, at_work: Callable[[], str | None], silence_s: float
    ) -> None:
        self._beat, self._beat_s, self._at_work = beat, beat_s, at_work
        self.silence_s = self._limit_s = silence_s
        self._quiet_s = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def heard(self) -> None:
        """A sign of life of the engine."""
        self._quiet_s = 0.0

    def expect(self, at_work: Callable[[], str | None]) -> None:
        """From now on `at_work` says what the engine is at."""
        self._at_work = at_work

    @contextlib.contextmanager
    def loading(self, what: str) -> Iterator[None]:
        """Inside it `what` is at work, and may take LOAD_S."""
        at_work, self._at_work, self._limit_s = self._at_work, lambda: what, LOAD_S
        self.heard()
        try:
            yield
        finally:
            self._at_work, self._limit_s = at_work, self.silence_s
            self.heard()

    def _run(self) -> None:
        tick_s = min(self._beat_s, self.silence_s / 8, 1.0)
        last = beaten = time.monotonic()
        while not self._ended.wait(tick_s):
            now = time.monotonic()
            doing = self._at_work()
            self._quiet_s = 0.0 if doing is None else self._quiet_s + min(now - last, 2 * tick_s)
            last = now
            if doing is not None and self._quiet_s >= self._limit_s:
                self._give_up(doing)
            if now - beaten >= self._beat_s - tick_s / 2:
                beaten = now
                self._beat()

    def _give_up(self, doing: str) -> None:
        end(
            f"{doing}, and nothing has come back for {self._limit_s:g} s. The stacks are above. What was "
            "journalled is kept; start the same command again, on another node if this one's device may be at fault"
        )


def end(message: str, *, record: Path | None = None, linger_s: float = 0.0) -> NoReturn:
    """Stacks of all threads and the message to stderr, and to the file `record`; then the process ends with HangError's
    code.

    Whatever the other threads are stuck in (only one that never gives back the GIL cannot be ended from here).
    linger_s: seconds until then, for processes that wait for this one: they notice their own silence a little later,
    and are to say so before this one is gone.
    """
    faulthandler.dump_traceback(2, all_threads=True)
    line = f"{HangError.__name__}: {message}\n"
    os.write(2, line.encode())

    def keep() -> None:
        assert record is not None
        with contextlib.suppress(OSError):
            record.parent.mkdir(parents=True, exist_ok=True)
            with record.open("w") as file:
                file.write(line)
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)

    if record is not None:  # in a thread of its own: perhaps it is this very disk that hangs
        writing = threading.Thread(target=keep, daemon=True)
        writing.start()
        writing.join(max(linger_s, 5.0))
    time.sleep(linger_s)
    os._exit(HangError.exit_code)
