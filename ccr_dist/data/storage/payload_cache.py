"""Payloads of remote datasets on the local disk: each fetched once per machine, checked by digest, up to a limit of
bytes in all.

    $CCR_DIST_CACHE/remote/payloads/<sha256>.tar | .npy     atime: last use; mtime: a constant, until somebody writes to
    the file $CCR_DIST_CACHE/remote/payloads/.tmp-<name>             being fetched by whoever holds its flock; as long
    as it will be in the end

Belongs here: the limit ($CCR_DIST_CACHE_GB), what is evicted (the one not used for longest), and that of many processes
one fetches and the others wait. Does not belong here: how bytes come from a store (`remote.py`). Where a file is
evicted while a process reads it, the process reads on from its open descriptor, and drops all of those when it fetches
something itself, so that the disk gets the room back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ccr_dist.data.storage.cache_folder import cache_folder
from ccr_dist.data.storage.store import TEMPORARY, disk_errors
from ccr_dist.data.storage.tar import forget_files
from ccr_dist.errors import ConfigError

DEFAULT_GB = 50.0
# 1 January 2000: the mtime of a file whose digest was checked; writing to it afterwards gives it another one
CHECKED = 946684800
_TOUCH_S = 1.0  # uses closer together than this count as one
_POLL_S = 0.1


def limit() -> int:
    """Bytes that the cache may hold: $CCR_DIST_CACHE_GB (of 1e9 bytes), by default 50. ConfigError for anything but a
    positive number.
    """
    text = os.environ.get("CCR_DIST_CACHE_GB", str(DEFAULT_GB))
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise ConfigError(f"CCR_DIST_CACHE_GB={text!r}: expected the size of the payload cache in GB, a number above 0")
    return int(size * 1e9)


def gb(size: int) -> str:
    """Bytes for people, as the variable is given: `1.5 GB`."""
    return f"{size / 1e9:.3g} GB"


def payload(name: str, size: int, sha256: str, fetch: Callable[[int], None], what: str) -> Path:
    """The local file of a payload, fetched if it is not there (whole and unchanged). `name` ends in its suffix.

    fetch(fd) writes the payload's `size` bytes and checks their digest. ConfigError when it is larger than the cache;
    what `fetch` raises.
    """
    folder = _folder(os.environ.get("CCR_DIST_CACHE"))
    path = folder / (sha256 + Path(name).suffix)
    if _usable(path, size):
        return path
    if size > limit():
        raise ConfigError(
            f"{what}: {gb(size)}, but the cache in {folder} may hold {gb(limit())}; raise CCR_DIST_CACHE_GB"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(path) as (tmp, fd):
        if not _usable(path, size):
            _reserve(folder, tmp, fd, size)
            fetch(fd)
            os.utime(fd, (time.time(), CHECKED))
            os.fsync(fd)  # else a power cut could leave a file of zeros that looks checked
            tmp.replace(path)
            forget_files()
    return path


@lru_cache(maxsize=8)
def _folder(variable: str | None) -> Path:  # asked for at every read
    return cache_folder("remote/payloads")


def _usable(path: Path, size: int) -> bool:
    """There, and unchanged since it was checked. Marks it as used now."""
    try:
        found = path.stat()
        if found.st_size != size or int(found.st_mtime) != CHECKED:
            return False
        now = time.time()
        if abs(now - found.st_atime) > _TOUCH_S:
            # another user's file in a shared cache: the kernel's own atime has to do
            with contextlib.suppress(PermissionError):
                os.utime(path, (now, CHECKED))
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[tuple[Path, int]]:
    """The right to make `path`, of all processes and threads: waits for it, yields a temporary file beside it and its
    descriptor.

    Its owner first checks whether the file has arrived meanwhile. The kernel ends the claim of a process that dies.
    """
    tmp = path.with_name(f"{TEMPORARY}{path.name}")
    while True:
        fd = os.open(tmp, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is(fd, tmp):
                break
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # it was moved to its place, or removed, while we waited
    try:
        with disk_errors(path):
            os.ftruncate(fd, 0)
            yield tmp, fd
    finally:
        if _is(fd, tmp):
            tmp.unlink(missing_ok=True)
        fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough: a process forked meanwhile shares the lock
        os.close(fd)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One at a time, of all processes and threads. `path` is made if it is not there, and stays."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _is(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _reserve(folder: Path, tmp: Path, fd: int, size: int) -> None:
    """Makes room and takes it, by giving the temporary file its final length; waits where others are fetching too much
    for both.
    """
    while True:
        with locked(folder / ".lock"):
            used, evictable = _contents(folder, tmp)
            room = limit() - size
            for _, theirs, path in sorted(evictable):
                if used <= room:
                    break
                path.unlink(missing_ok=True)
                used -= theirs
            if used <= room:
                os.ftruncate(fd, size)
                return
        time.sleep(_POLL_S)


def _contents(folder: Path, own: Path) -> tuple[int, list[tuple[float, int, Path]]]:
    """(bytes held and reserved by others, (last use, bytes, path) of each payload). Removes what dead processes
    left.
    """
    used, files = 0, []
    for entry in folder.iterdir():
        if entry.name == ".lock" or entry == own:
            continue
        try:
            found: Any = entry.stat()
            if entry.name.startswith(TEMPORARY):
                if _abandoned(entry):
                    continue
            else:
                files.append((found.st_atime, found.st_size, entry))
            used += found.st_size
        except FileNotFoundError:  # came to its place, or was given up, while we looked
            continue
    return used, files


def _abandoned(tmp: Path) -> bool:
    fd = os.open(tmp, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        left = _is(fd, tmp)
        if left:
            tmp.unlink(missing_ok=True)
        fcntl.flock(fd, fcntl.LOCK_UN)
        return left
    finally:
        os.close(fd)
