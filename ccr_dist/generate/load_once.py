"""One first load per node: of several processes that load the same model, one loads it first, and the others find its
downloads and caches.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

WAIT_S = 900.0  # longest wait for a loading process, since it may hang
_POLL_S = 0.2
_SAID_S = (5.0, 30.0)  # seconds until the first message, and between messages


def private_folder() -> Path:
    """A folder on this machine for files shared by this user's processes, below XDG_RUNTIME_DIR, or else TMPDIR or
    /tmp.

    Only this user can enter it.

    Raises:
        PermissionError: It is no real folder of this user; its name is predictable, so another user may have made it.
        OSError: It cannot be made.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK) and Path(runtime).stat().st_uid == os.getuid():
        folder = Path(runtime) / "ccr-dist"
    else:
        folder = Path(tempfile.gettempdir()) / f"ccr-dist-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(
            f"{folder} is no folder of this user; somebody else made it. Set TMPDIR to a folder of yours"
        )
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


@contextlib.contextmanager
def first_load(
    key: str | None, stopped: Callable[[], bool] = lambda: False, wait_s: float | None = None
) -> Iterator[None]:
    """Context manager: only one process of this user on this node loads a model at a time, until one has succeeded.

    A first load downloads, compiles and fills caches for later ones. The lock only saves work: a process that has
    waited for `wait_s`, or cannot get the lock at all, reports that and continues without it.

    Args:
        key: Identifies the model; None: no lock.
        stopped: Called while waiting; True ends the wait.
        wait_s: Longest wait in seconds; None: WAIT_S.
    """
    if key is None:
        yield
        return
    name = f"load-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    try:
        folder = private_folder()
        lock, done = folder / f"{name}.lock", folder / f"{name}.done"
        fd = -1 if done.exists() else os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as e:
        _say(f"no lock for the model's first load on this machine ({e}); it is loaded without waiting for others")
        yield
        return
    if fd < 0:
        yield
        return
    try:
        mine = _locked(fd, lock, done, stopped, WAIT_S if wait_s is None else wait_s)
        yield
        if mine:
            with contextlib.suppress(OSError):
                done.touch()
    finally:
        os.close(fd)


def _locked(fd: int, lock: Path, done: Path, stopped: Callable[[], bool], wait_s: float) -> bool:
    """Wait until this process has the lock (True), does not need it any more, or must not wait any longer (False)."""
    began = time.monotonic()
    say_at = began + _SAID_S[0]
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError as e:
            _say(f"{lock}: {e.strerror}; the model is loaded without waiting for others")
            return False
        else:
            if done.exists():
                fcntl.flock(fd, fcntl.LOCK_UN)  # all waiting processes may continue at once
                return False
            with contextlib.suppress(OSError):  # a note for waiting processes
                os.truncate(fd, 0)
                os.pwrite(fd, f"pid {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode(), 0)
            return True
        waited = time.monotonic() - began
        if done.exists() or stopped():
            return False
        holder = os.pread(fd, 200, 0).decode(errors="replace") or "another process"
        if waited >= wait_s:
            _say(
                f"{lock}: {holder} still loads the same model; after {waited:.0f} s it is not waited for any longer."
                " Perhaps it hangs"
            )
            return False
        if time.monotonic() >= say_at:
            say_at = time.monotonic() + _SAID_S[1]
            _say(
                f"waiting for the first load of the same model on this machine by {holder} (for {waited:.0f} s; at most"
                f" {wait_s:.0f} s)"
            )
        time.sleep(_POLL_S)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
