"""Storage that fails at a chosen call: SIGKILL, a full disk, an I/O error or a read-only file system at the n-th file
operation.

A small library (`faults.c`, compiled at first use) is preloaded into a process and counts its file operations below one
folder. Two ways to use it:

    environment(root, at, error)         variables for a command that is started for this one fault
    Faults(root).run(action, at, error)  inside a worker that was started with `preloaded()`: the action runs in a fork,
                                         so that imports are paid for once
    Faults(root).count(action)           how many operations there are

`lasting`: what a disk does that is full or was remounted read-only: all later operations that can fail so fail, too.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

KILL_BEFORE, KILL_AFTER = -1, -2
ERRORS = {
    "kill before": KILL_BEFORE,
    "kill after": KILL_AFTER,
    "ENOSPC": errno.ENOSPC,
    "EIO": errno.EIO,
    "EROFS": errno.EROFS,
}
SHORT = -3  # a read gives fewer bytes than are there
READS, CREATES, WRITES, SYNCS, REMOVES, LOOKS = 1, 2, 4, 8, 16, 32
CHANGES = CREATES | WRITES | SYNCS | REMOVES


@cache
def library() -> Path:
    """The compiled library. Of processes that compile at once the last one's file stays; all are alike."""
    source = Path(__file__).with_suffix(".c")
    folder = (
        Path(tempfile.gettempdir()) / f"ccr-faults-{os.getuid()}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    )
    made = folder / "faults.so"
    if not made.exists():
        compiler = shutil.which("cc") or shutil.which("gcc")
        assert compiler, "a C compiler is needed to let file operations fail: apt-get install gcc"
        folder.mkdir(mode=0o700, exist_ok=True)
        part = folder / f"{os.getpid()}.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(part), str(source), "-ldl"], check=True)
        part.replace(made)
    assert folder.stat().st_uid == os.getuid()
    return made


def preloaded() -> dict[str, str]:
    """Environment of a worker that will use `Faults`."""
    return {**os.environ, "LD_PRELOAD": str(library())}


def environment(root: Path, at: int, error: int, *, lasting: bool = False, kinds: int = CHANGES) -> dict[str, str]:
    """Environment of a command whose `at`-th file operation below `root` (of these kinds; from 1) fails. Its children
    count anew.
    """
    values = {"ROOT": root.resolve(), "AT": at, "ERROR": error, "LASTING": int(lasting), "KINDS": kinds}
    return preloaded() | {f"FAULTS_{name}": str(value) for name, value in values.items()}


class Outcome(NamedTuple):
    code: int  # exit code; minus the signal's number when a signal ended it
    said: str  # standard output and error
    calls: list[str]  # "number name path" of every counted operation


class Faults:
    """Runs actions in forks of this process, which was started with `preloaded()`."""

    def __init__(self, root: Path, kinds: int = CHANGES) -> None:
        self.root, self.kinds = root.resolve(), kinds
        self._arm = ctypes.CDLL(None).faults_arm
        self._arm.argtypes = [ctypes.c_char_p, ctypes.c_long, *[ctypes.c_int] * 4]

    def run(self, action: Callable[[], int | None], at: int = 0, error: int = 0, *, lasting: bool = False) -> Outcome:
        """What became of `action()`, whose `at`-th file operation failed (0: none). It gives an exit code, or None for
        0.
        """
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as calls:
            child = os.fork()
            if not child:
                code = 1
                try:
                    os.dup2(said.fileno(), 1)
                    os.dup2(said.fileno(), 2)
                    self._arm(os.fsencode(self.root), at, error, lasting, self.kinds, calls.fileno())
                    code = action() or 0
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else 1 if end.code else 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    self._arm(b"", 0, 0, 0, 0, -1)
                    sys.stdout.flush()
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            calls.seek(0)
            return Outcome(
                code, said.read().decode(errors="replace"), calls.read().decode(errors="replace").splitlines()
            )

    def count(self, action: Callable[[], int | None]) -> int:
        """How many file operations an undisturbed `action()` makes; it must succeed."""
        outcome = self.run(action)
        assert outcome.code == 0, outcome.said
        return len(outcome.calls)


def sample(total: int, most: int | None) -> list[int]:
    """At most `most` of 1 … total, evenly spread, the ends among them; all of them for None."""
    if most is None or total <= most:
        return list(range(1, total + 1))
    return sorted({1 + round(i * (total - 1) / (most - 1)) for i in range(most)})
