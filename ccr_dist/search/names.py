"""The names of an index: which file, or row of a dataset, each of its vectors belongs to. A file of JSON lines, ordered
by number, that is written anew by each update.

    {"number": 17, "source": 0, "path": "holidays/a.jpg", "bytes": 81234, "mtime": ns, "sha256": "...", "kind": "image"}
    {"number": 18, "source": 1, "key": "coco-000018", "shard": 0, "row": 17, "kind": "image"}

A line with `bad` is a name without a vector: why not, and what read it (`media_files.readers`). Several names may have
one number: files of the same content. Beside the lines `places.npy` (int64, by number) says at which byte the first
line of a number begins; -1 where no name has it, or it has no vector: such a number is never found.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ccr_dist.errors import DataError

Line = dict[str, Any]
_READ = 1 << 16  # bytes at a time
AGAIN = "again"  # a key of bad lines whose file was not what the listing had seen: it is tried again


def identity(line: Line) -> tuple[int, str]:
    """What makes a name unique: its source, and its path or key."""
    return line["source"], line["path"] if "path" in line else line["key"]


def encoded(lines: Iterable[Line]) -> bytes:
    """The lines as they are stored."""
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def decoded(data: bytes, place: object) -> Iterator[Line]:
    """The lines of a file. Raises DataError, naming `place`, where it is damaged."""
    for line in io.BytesIO(data):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise DataError(f"{place}: damaged line ({error})") from None


def places(data: bytes, lines: Iterable[Line], total: int) -> np.ndarray:
    """(total,) int64: where each number's first line without `bad` begins in `data`; -1: nowhere."""
    found, at = np.full(total, -1, np.int64), 0
    for raw, line in zip(io.BytesIO(data), lines, strict=True):
        if "bad" not in line and found[line["number"]] < 0:
            found[line["number"]] = at
        at += len(raw)
    return found


class Names:
    """The names of one state of an index.

    Args:
        path: of the lines; `places.npy` is beside it.
        sha256: of the lines, as the index records it.
        total: how many numbers there are.

    Raises:
        DataError: `places` is missing or damaged.
    """

    def __init__(self, path: Path, sha256: str, total: int) -> None:
        self.path, self._sha256 = path, sha256
        # Held open: the next update removes the file, and who has opened this state goes on with it.
        self._file = path.open("rb") if path.exists() else None
        beside = places_path(path)
        try:
            self.places = np.load(beside, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{beside}: missing or damaged ({error}); run `ccr-dist index` again") from None
        if self._file is None:
            raise DataError(f"{path}: no such file: the index is damaged, or was updated just now; open it again")
        if self.places.shape != (total,) or self.places.dtype != np.int64:
            raise DataError(f"{beside}: damaged; expected {total} places; run `ccr-dist index` again")

    @property
    def live(self) -> np.ndarray:
        """(total,) bool: the numbers that can be found."""
        return self.places >= 0

    def of(self, number: int) -> list[Line]:
        """All names of a number, at least one. Raises DataError where it has none."""
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise DataError(f"item number {number!r}: expected a whole number")
        if not 0 <= number < len(self.places) or self.places[number] < 0:
            raise DataError(f"{self.path.parent.parent}: no item has the number {number}")
        found = []
        for raw in self._from(int(self.places[number])):
            (line,) = decoded(raw, self.path)
            if line["number"] != number:
                break
            found.append(line)
        if not found:
            raise DataError(f"{self.path}: damaged: the line of number {number} is another one's")
        return found

    def all(self) -> Iterator[Line]:
        """All lines. Raises DataError where the file is not the recorded one."""
        data = b"".join(self._from(0))
        if hashlib.sha256(data).hexdigest() != self._sha256:
            raise DataError(f"{self.path}: damaged: it is not the recorded file; make a new index")
        return decoded(data, self.path)

    def _from(self, at: int) -> Iterator[bytes]:
        """The lines from a byte on. Safe in threads: nothing is sought."""
        assert self._file is not None
        rest = b""
        while part := os.pread(self._file.fileno(), _READ, at):
            at += len(part)
            *whole, rest = (rest + part).split(b"\n")
            yield from (line + b"\n" for line in whole)


def places_path(path: Path) -> Path:
    """Where the places of a file of lines are."""
    return path.with_suffix(".places.npy")
