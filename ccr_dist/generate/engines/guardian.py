"""A small process that ends an engine's processes when ours is gone without a word (SIGKILL, out of memory).

vLLM's engine runs in processes of its own that notice a dead parent late or never, and hold the device meanwhile. They
cannot be asked to die with it (that takes a call in each of them), and process titles hide their environment; so this
one looks who descends from us while the engine loads, and waits. Linux only, as is vLLM. Run as a file, on the standard
library alone.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_LOOK_S = 0.25


class Guardian:
    """Made before the engine loads; `loaded` says that all its processes are there, `close` ends it."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def loaded(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def close(self) -> None:
        self.loaded()
        self._process.kill()
        self._process.wait()


def _status(pid: int) -> tuple[int, str] | None:
    """(parent, start time) of a process; a pid with another start time is another process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), fields[19]


def descendants(ancestor: int) -> dict[int, str]:
    """pid -> start time of all processes below this one, without ourselves."""
    there = {
        int(p.name): status for p in Path("/proc").iterdir() if p.name.isdigit() and (status := _status(int(p.name)))
    }
    below, new = set[int](), {ancestor}
    while new:
        new = {pid for pid, (parent, _) in there.items() if parent in new and pid != os.getpid()} - below
        below |= new
    return {pid: there[pid][1] for pid in below}


def _helper(pid: int) -> bool:
    """multiprocessing's own one, which ends by itself once it has cleaned up after the others."""
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def guard(parent: int) -> None:
    known: dict[int, str] = {}
    loading = True
    while os.getppid() == parent:
        if loading:
            loading = not select.select([0], [], [], _LOOK_S)[0]
            known |= descendants(parent)  # once more after `loaded`; added to, for a parent that has died has none
        else:
            time.sleep(_LOOK_S)
    for pid, started in known.items():
        status = _status(pid)
        if status is not None and status[1] == started and not _helper(pid):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    guard(int(sys.argv[1]))
