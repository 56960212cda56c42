"""What fsspec's clients of object stores can do, and how each says it: refusals, times, changes."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any


def creates(fs: Any) -> bool:
    """Whether a client has its own way to create what is absent; fsspec's general one looks first and then writes."""
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    if isinstance(fs, AsyncFileSystem):
        own, general = type(fs)._pipe_file, AsyncFileSystem._pipe_file
    else:
        own, general = type(fs).pipe_file, AbstractFileSystem.pipe_file
    return own is not general and "mode" in inspect.signature(own).parameters


def refused(error: BaseException) -> bool:
    """Whether a store refused to create an object because it exists (412 Precondition Failed)."""
    if isinstance(error, FileExistsError) or getattr(error, "code", None) == 412:
        return True
    answer = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    if not isinstance(answer, dict):
        return False
    said = answer.get("Error", {}).get("Code"), answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return said[0] in ("PreconditionFailed", "412") or said[1] == 412


def written(info: dict[str, Any]) -> float:
    """When an object was last written, as unix time in seconds; 0 where the store does not tell."""
    when = next(
        (info[key] for key in ("LastModified", "last_modified", "mtime", "updated", "created") if key in info), 0
    )
    return float(when.timestamp() if hasattr(when, "timestamp") else when if isinstance(when, int | float) else 0)


def stamp(info: dict[str, Any]) -> int:
    """A hash of everything a store reports about an object (time, ETag, generation, ...).

    31 bits, so that every file system can hold it as a time stamp.
    """
    text = repr(sorted((key, str(value)) for key, value in info.items() if key not in ("atime", "nlink")))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) & 0x7FFFFFFF
