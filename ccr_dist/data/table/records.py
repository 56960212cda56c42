"""Commit records of shards: their fields, and whether the payload that they describe exists.

    {"rows", "bytes", "sha256": of the payload, "plan", "keys": digests, "nulls", "index": sha256 of the index file
     [, "url": of a tar made elsewhere, "mtime": its modification time when it was indexed, ns], "digest": of the rest}

Records of earlier versions have no `index` and no `digest`; they are accepted as they are.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

from ccr_dist.data.storage import store
from ccr_dist.errors import DataError

FIELDS = {
    "rows": int,
    "bytes": int,
    "sha256": str,
    "plan": str,
    "keys": str,
    "nulls": int,
    "index": str,
    "url": str,
    "mtime": int,
}
OPTIONAL = ("index", "url", "mtime")
OF_THE_DATASET = ("rows", "plan", "keys")  # what a seal need not repeat
_SIBLING = re.compile(r"\.\./[A-Za-z0-9][A-Za-z0-9._-]*/[0-9]{6,}\.(tar|npy)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check(record: Any, place: object) -> dict[str, Any]:
    """Returns the record. Raises DataError unless it is complete and sound."""
    store.check_object(record, FIELDS, place, optional=OPTIONAL)
    if not all(_SHA256.fullmatch(record[key]) for key in ("sha256", "index") if key in record):
        raise DataError(f"{place}: a value that is not a sha256: the file was edited or damaged")
    if "url" in record and not _is_place(record["url"]):
        raise DataError(
            f"{place}: url {record['url']!r}: expected the absolute path of an indexed tar without .. in it, or"
            " ../COLUMN/SHARD.tar of the same dataset: the file was edited or damaged"
        )
    if record["nulls"] > record["rows"]:
        raise DataError(f"{place}: {record['nulls']} null rows of {record['rows']}: the file was edited or damaged")
    return record


def _is_place(url: str) -> bool:
    """Whether a record may name this payload: one of the same dataset, or a tar elsewhere.

    Only indexed columns may name tars elsewhere, which `recorded.py` checks.
    """
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in url):
        return False
    return os.path.normpath(url) == url if os.path.isabs(url) else _SIBLING.fullmatch(url) is not None  # noqa: PTH117


def identity(record: dict[str, Any]) -> dict[str, Any]:
    """The part of a record or column.json that does not depend on the version and place that made it."""
    return {key: value for key, value in record.items() if key not in ("index", "digest", "mtime", "provenance")}


def size_of(path: Path) -> int | None:
    """The size of a plain file in bytes; None if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 (thousands of files)
        return found.st_size if stat.S_ISREG(found.st_mode) else None
    except (FileNotFoundError, NotADirectoryError):
        return None


def fault(record: dict[str, Any], size: int | None) -> str | None:
    """What is wrong with a payload, as far as its size shows.

    Args:
        record: Its commit record.
        size: In bytes; None: it is missing.

    Returns:
        A phrase for messages; None if the size is right.
    """
    if size == record["bytes"]:
        return None
    found = "missing" if size is None else f"{size} bytes"
    return f"{found}, the commit record says {record['bytes']} bytes"
