"""What fsspec's clients of object stores can do, and how each says it: refusals, times, changes."""

from __future__ import annotations

import hashlib
import inspect
import time
from email.utils import parsedate_to_datetime
from typing import Any

_SKEW_S = 300  # stores refuse requests of a clock that is 5 to 15 minutes off
_STALE = frozenset(
    {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
)


def creates(fs: Any) -> bool:
    """Whether a client has its own way to create what is absent; fsspec's general one looks first and then writes."""
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    if isinstance(fs, AsyncFileSystem):
        own, general, of_file = type(fs)._pipe_file, AsyncFileSystem._pipe_file, type(fs)._put_file
    else:
        own, general, of_file = type(fs).pipe_file, AbstractFileSystem.pipe_file, type(fs).put_file
    return own is not general and all("mode" in inspect.signature(call).parameters for call in (own, of_file))


def refused(error: BaseException) -> bool:
    """Whether a store refused to create an object because it exists (412 Precondition Failed)."""
    if isinstance(error, FileExistsError) or getattr(error, "code", None) == 412:
        return True
    answer = _answer(error)
    said = answer.get("Error", {}).get("Code"), answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return said[0] in ("PreconditionFailed", "412") or said[1] == 412


def _answer(error: BaseException) -> dict[str, Any]:
    """What a store answered, as boto has it; empty for other clients."""
    found = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    return found if isinstance(found, dict) else {}


def remedy(denied: BaseException) -> str | None:
    """What to do about a request that a store did not allow, where it is not the rights that are wrong."""
    answer = _answer(denied)
    try:
        date = parsedate_to_datetime(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        date = time.time()
    if abs(off := time.time() - date) > _SKEW_S:
        return f"this machine's clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the store's: set it"
    return "give credentials that are valid" if answer.get("Error", {}).get("Code") in _STALE else None


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
