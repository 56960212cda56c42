"""A small process that ends an engine's processes if ours is killed (SIGKILL, out of memory).

vLLM's engine runs in processes of its own, which notice a dead parent late or never and hold the device meanwhile. They
cannot be told to die with their parent (that takes a call in each of them), and process titles hide their environment.
So the guardian records our descendants while the engine loads, and then waits. Linux only, as is vLLM. It is run as a
script and uses only the standard library.
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
    """The guardian process. Start it before the engine loads, and call `loaded` when all engine processes exist."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def loaded(self) -> None:
        """Stop recording descendants: the engine is complete."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def close(self) -> None:
        """End the guardian; nothing else is ended."""
        self.loaded()
        self._process.kill()
        self._process.wait()


def _status(pid: int) -> tuple[int, str] | None:
    """(parent, start time) of a process, or None if it is gone. The start time tells reused pids apart."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), fields[19]


def descendants(ancestor: int) -> dict[int, str]:
    """Start times by pid of all descendants of a process, except this one."""
    there = {
        int(p.name): status for p in Path("/proc").iterdir() if p.name.isdigit() and (status := _status(int(p.name)))
    }
    below, new = set[int](), {ancestor}
    while new:
        new = {pid for pid, (parent, _) in there.items() if parent in new and pid != os.getpid()} - below
        below |= new
    return {pid: there[pid][1] for pid in below}


def _helper(pid: int) -> bool:
    """Whether a process is multiprocessing's resource tracker, which ends by itself after cleaning up."""
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def guard(parent: int) -> None:
    """Wait until `parent` is gone, then kill the descendants that it had.

    Args:
        parent: Its pid. Standard input closes when all its descendants exist.
    """
    known: dict[int, str] = {}
    loading = True
    while os.getppid() == parent:
        if loading:
            loading = not select.select([0], [], [], _LOOK_S)[0]
            known |= descendants(parent)  # also once after `loaded`; only adds, since a dead parent has none
        else:
            time.sleep(_LOOK_S)
    for pid, started in known.items():
        status = _status(pid)
        if status is not None and status[1] == started and not _helper(pid):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    guard(int(sys.argv[1]))
