"""Payloads of remote datasets on the local disk: each is fetched once per machine and checked by digest; the
cache has a size limit.

    $CCR_DIST_CACHE/remote/payloads/<sha256>.tar | .npy     atime: last use; mtime: a constant until someone writes to
                                                            the file
    $CCR_DIST_CACHE/remote/payloads/.tmp-<name>             being fetched by the process that holds its flock; already
                                                            has its final length

Belongs here: the limit ($CCR_DIST_CACHE_GB), eviction (least recently used first), and that one process fetches while
others wait for the same file. Does not belong here: how bytes come from a store (`object_store.py`). A process that
reads an evicted file continues from its open descriptor. It closes all such descriptors when it fetches something
itself, so that the disk space becomes free.
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
from ccr_dist.data.storage.file_ranges import forget_files
from ccr_dist.data.storage.store import TEMPORARY, disk_errors
from ccr_dist.errors import ConfigError

DEFAULT_GB = 50.0
# 1 January 2000: mtime of a file whose digest was checked; any write changes it
CHECKED = 946684800
_TOUCH_S = 1.0  # uses closer together than this count as one
_POLL_S = 0.1


def limit() -> int:
    """Size limit of the cache in bytes: $CCR_DIST_CACHE_GB times 1e9, by default 50 GB.

    Raises:
        ConfigError: The variable is not a positive number.
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
    """Bytes for people, in the unit of the variable: `1.5 GB`."""
    return f"{size / 1e9:.3g} GB"


def payload(name: str, size: int, sha256: str, fetch: Callable[[int], None], what: str) -> Path:
    """The local file of a payload, fetched unless it exists whole and unchanged.

    Args:
        name: Its name in the store; the suffix is kept.
        size: Its size in bytes.
        sha256: Its digest in hex.
        fetch: Writes the payload's bytes to an open descriptor and checks their digest.
        what: Its name in messages.

    Raises:
        ConfigError: The payload is larger than the cache may be. Errors of `fetch` pass.
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
            os.fsync(fd)  # otherwise a power cut could leave a file of zeros that looks checked
            # Under the lock: who counts meanwhile would find it under neither name, and exceed the limit.
            with locked(folder / ".lock"):
                tmp.replace(path)
            forget_files()
    return path


@lru_cache(maxsize=8)
def _folder(variable: str | None) -> Path:  # asked for at every read
    return cache_folder("remote/payloads")


def _usable(path: Path, size: int) -> bool:
    """Whether the file exists and is unchanged since it was checked. Marks it as used now."""
    try:
        found = path.stat()
        if found.st_size != size or int(found.st_mtime) != CHECKED:
            return False
        now = time.time()
        if abs(now - found.st_atime) > _TOUCH_S:
            # another user's file in a shared cache: rely on the kernel's own atime
            with contextlib.suppress(PermissionError):
                os.utime(path, (now, CHECKED))
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[tuple[Path, int]]:
    """Context manager: waits for the exclusive right, among all processes and threads, to make `path`.

    The owner first checks whether another process made the file meanwhile. The kernel releases the claim of a dead
    process.

    Yields:
        A temporary file beside `path`, and its open descriptor.
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
    """Context manager: holds a lock against all other processes and threads. The file `path` is created and kept."""
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
    """Frees space and reserves it by giving the temporary file its final length.

    Waits while other processes fetch so much that both do not fit.
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
    """(bytes held and reserved by others, (last use, bytes, path) of each payload). Removes files of dead processes."""
    used, files = 0, []
    for entry in folder.iterdir():
        if entry.name == ".lock" or entry == own:
            continue
        try:
            found: Any = entry.stat()
            if entry.name.startswith(TEMPORARY):
                if abandoned(entry):
                    continue
            else:
                files.append((found.st_atime, found.st_size, entry))
            used += found.st_size
        except FileNotFoundError:  # published or given up meanwhile
            continue
    return used, files


def abandoned(tmp: Path) -> bool:
    """Whether the process that made a temporary file of `claimed` is dead; the file is then removed."""
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
