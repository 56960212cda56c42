"""The results of a shard that is not finished yet: an append-only file, and the lock that says who works on the shard.

    {"journal": 1, "column": "caption.es.apertium", "shard": "000003", "keys": sha256, "plan": sha256, "inputs": {...}}
    {"row": 0, "value": ["Un limón."], "counts": {"captions": 1}}
    {"row": 1, "error": "..."}

A batch is one write and one fsync, so that a killed job loses at most the batch in flight. Turning a journal into a shard is the
runner's affair.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ccr_dist.data import store
from ccr_dist.errors import DataError, StorageError
from ccr_dist.generate.processor import Outcome

FORMAT = 1


def pack(kind: str, value: Any) -> Any:
    """A value as JSON: vectors and pictures become base64, everything else is JSON already."""
    if value is None:
        return None
    if kind == "matrix":
        return {"shape": list(value.shape), "f16": base64.b64encode(np.ascontiguousarray(value, "<f2").tobytes()).decode()}
    return base64.b64encode(value).decode() if kind == "image" else value


def unpack(kind: str, packed: Any) -> Any:
    """The value that `pack` was given."""
    if packed is None:
        return None
    if kind == "matrix":
        return np.frombuffer(base64.b64decode(packed["f16"]), "<f2").reshape(packed["shape"])
    return base64.b64decode(packed) if kind == "image" else packed


class Journal:
    """An open, locked journal: `done` (row -> Outcome) is what it held when it was opened; `dropped` lines were cut off as torn.

    The lock belongs to the open file: it ends with the process, however that ends. Children made by fork without exec share it.
    """

    def __init__(self, path: Path, kind: str, fd: int) -> None:
        self.path, self.kind, self._fd = path, kind, fd
        self.done: dict[int, Outcome] = {}
        self.dropped = 0

    @staticmethod
    def open(path: Path, kind: str, header: dict[str, Any]) -> Journal | None:
        """Opens or makes the journal; None when another process holds it. DataError when it belongs to other work (its header differs)."""
        header = {"journal": FORMAT, **header}
        with store.disk_errors(path):
            fd = _locked(path)
            if fd is None:
                return None
            journal = Journal(path, kind, fd)
            try:
                journal._read(header)
            except BaseException:
                journal.close()
                raise
        return journal

    def _read(self, header: dict[str, Any]) -> None:
        data = self.path.read_bytes()
        good = 0
        for number, line in enumerate(data.split(b"\n")[:-1]):  # what follows the last newline is torn
            try:
                entry = json.loads(line)
                if number and "error" not in entry:
                    self.done[entry["row"]] = Outcome(unpack(self.kind, entry["value"]), counts=entry.get("counts", {}))
            except (ValueError, KeyError, TypeError):  # a crash of the machine may leave blocks of zeros
                break
            if not number and entry != header:
                lines = "\n  ".join(store.differences(entry, header))
                raise DataError(f"{self.path}: made by other work; the difference:\n  {lines}\nremove it to make its rows again")
            good += len(line) + 1
        if good < len(data):
            self.dropped = data[good:].count(b"\n") + (not data.endswith(b"\n"))
            os.ftruncate(self._fd, good)
        if not good:
            self._write([header])
            store.sync_folder(self.path.parent)

    def append(self, outcomes: Iterable[tuple[int, Outcome]]) -> None:
        """Keeps the outcomes of some rows, durably. StorageError on a full disk; what was kept before stays readable."""
        entries: list[dict[str, Any]] = []
        for row, outcome in outcomes:
            if outcome.error is not None:
                entries.append({"row": row, "error": outcome.error})
            else:
                counts = {"counts": outcome.counts} if outcome.counts else {}
                entries.append({"row": row, "value": pack(self.kind, outcome.value), **counts})
        self._write(entries)

    def _write(self, entries: list[dict[str, Any]]) -> None:
        data = memoryview("".join(json.dumps(e, allow_nan=False) + "\n" for e in entries).encode())
        with store.disk_errors(self.path):
            while data:
                data = data[os.write(self._fd, data) :]
            os.fsync(self._fd)

    def remove(self) -> None:
        """Deletes the file, then gives up the lock: whoever waits for it sees that the file is gone."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Gives up the lock; the file stays for the next start."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _locked(path: Path) -> int | None:
    """A descriptor of the file that is at `path`, exclusively locked; None when another process has it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except OSError as e:
            os.close(fd)
            if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            if e.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise StorageError(f"{path}: this file system has no file locks (flock); put the dataset on one that has") from e
            raise
        os.close(fd)  # its owner finished and removed it between the two calls: this is a deleted file
