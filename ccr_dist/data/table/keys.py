"""The keys of a shard's rows, held as the bytes of their file: this loads faster and takes less memory than strings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ccr_dist.data.storage import store
from ccr_dist.errors import DataError

_CONTROLS = bytes({*range(32), 127} - {ord("\n")})
_UP = re.compile(rb"(?:^|[\n/])\.\.(?:[\n/]|$)")


def keys_digest(keys: Sequence[str]) -> str:
    """sha256 of the keys of a shard, joined by newlines."""
    return hashlib.sha256("\n".join(keys).encode(errors="surrogatepass")).hexdigest()


def _sound(data: bytes) -> bool:
    """Whether the keys, which tools turn into file names, stay inside a folder and are harmless in terminals.

    Fast: checks all bytes at once.
    """
    if len(data.translate(None, _CONTROLS)) != len(data) or data.startswith(b"/") or b"\n/" in data:
        return False
    if b".." in data and _UP.search(data):
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class Keys:
    """The keys in a keys file, by row.

    Args:
        path: The file.
        digest: sha256 of the keys, from dataset.json.

    Raises:
        DataError: The file is missing or does not match the digest.
    """

    def __init__(self, path: Path, digest: str) -> None:
        try:
            self._data = store.read_bytes(path)
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{path}: missing; the dataset is damaged") from None
        if hashlib.sha256(self._data[:-1]).hexdigest() != digest or self._data[-1:] not in (b"", b"\n"):
            raise DataError(
                f"{path}: not the keys that dataset.json records: damaged, or left by another build; `ccr-dist shards"
                f" verify --repair` restores them from a column if it can; otherwise remove {path.parent.parent}"
            )
        if not _sound(self._data):
            raise DataError(
                f"{path}: a key that is not a relative path of printable UTF-8 text: another program made this file"
            )
        self._ends = np.flatnonzero(np.frombuffer(self._data, np.uint8) == ord("\n")).astype(np.int32)

    def __getitem__(self, row: int) -> str:
        return self._data[int(self._ends[row - 1]) + 1 if row else 0 : int(self._ends[row])].decode()

    def all(self) -> tuple[str, ...]:
        """All keys in order."""
        return tuple(self._data.decode().split("\n")[:-1])
