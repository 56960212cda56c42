"""Reads ranges of bytes from files through cached descriptors, and tells the kernel which ranges come next."""

from __future__ import annotations

import os
import resource
import stat
from functools import lru_cache
from pathlib import Path

from ccr_dist.errors import DataError

_REQUEST = 1 << 19  # bytes; of a request larger than one read of the device, Linux drops the rest


class _Descriptor:
    """An open file; closed when neither the cache nor a reading thread refers to it any more."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for a writer
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            raise DataError(f"{path}: not a plain file")

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
# A reader of many lanes has that many shards open at once.
_KEPT = 4096 if _FILES == resource.RLIM_INFINITY else min(4096, _FILES // 2)


@lru_cache(maxsize=_KEPT)
def _descriptor(path: str, content: str) -> _Descriptor:
    return _Descriptor(path)


def forget_files() -> None:
    """Closes cached descriptors, after a file was replaced or a mount came back."""
    _descriptor.cache_clear()


def will_read(path: str | Path, start: int, stop: int, content: str = "") -> None:
    """Asks the kernel to read bytes into its cache, without waiting. Does nothing on systems without posix_fadvise.

    Args:
        path: The file.
        start: The first byte.
        stop: The byte after the last one.
        content: As in `read_at`.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    handle = _descriptor(str(path), content)
    for at in range(start, stop, _REQUEST):
        os.posix_fadvise(handle.fd, at, min(_REQUEST, stop - at), os.POSIX_FADV_WILLNEED)


def read_at(path: str | Path, offset: int, size: int, content: str = "") -> bytes:
    """Reads a range of bytes. Safe in threads and after fork: positional reads share no file position.

    Args:
        path: The file.
        offset: The first byte.
        size: How many bytes.
        content: Digest of the file. A file that was removed and made again with other content is then not read through
            the old descriptor.

    Raises:
        DataError: The file ends too early, or is not a plain file.
        OSError: Storage fails; `store.retry_io` retries.
    """
    parts, end = [], offset + size
    try:
        handle = _descriptor(str(path), content)
        while offset < end:
            part = os.pread(handle.fd, end - offset, offset)
            if not part:
                raise DataError(f"{path}: truncated: expected at least {end} bytes, the file ends at {offset}")
            parts.append(part)
            offset += len(part)
    except OSError as e:
        e.filename = e.filename or str(path)
        forget_files()  # a stale handle would fail for ever
        raise
    return b"".join(parts)
