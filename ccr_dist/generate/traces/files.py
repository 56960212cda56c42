"""Leases and journals as files in the column's folder, on a POSIX file system with hard links.

    COLUMN/000003.lease.2     both lines of a lease; the second is overwritten in place at every heartbeat
    COLUMN/000003.journal.2   the journal, appended to

The owner holds a lock on its lease, which ends with the process. On the same boot of the same machine a free lock shows
that the owner is dead. A payload is created by a hard link, so commits need no further fence: the first payload is
final, whoever made it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ccr_dist.data.storage import store
from ccr_dist.generate.traces.base import Held, Said, Traces, WorkPlace, said

_TRACE = re.compile(r"^(\d{6,})\.(lease|journal)\.(\d+)$")
_RUBBISH = re.compile(rf"^{re.escape(store.TEMPORARY)}(\d{{6,}})\.")
_BEAT_BYTES = 160
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS})


def look(folder: Path, shard: str | None = None) -> dict[str, Traces]:
    """List the traces in a column's folder.

    Args:
        folder: The folder.
        shard: Only this shard; None: all.

    Returns:
        Traces by shard; shards without traces are left out.
    """
    found: dict[str, Traces] = {}
    for name in os.listdir(folder):  # noqa: PTH208 (a hundred thousand names)
        if match := _TRACE.match(name):
            if shard in (None, match[1]):
                traces = found.setdefault(match[1], Traces())
                (traces.leases if match[2] == "lease" else traces.journals).append(int(match[3]))
        elif (match := _RUBBISH.match(name)) and shard in (None, match[1]):
            found.setdefault(match[1], Traces()).rubbish.append(name)
    return found


def lease_path(folder: Path, shard: str, generation: int) -> Path:
    """The file of a lease."""
    return folder / f"{shard}.lease.{generation}"


def journal_path(folder: Path, shard: str, generation: int) -> Path:
    """The file of a journal."""
    return folder / f"{shard}.journal.{generation}"


def read_lease(path: Path) -> Said | None:
    """What a lease says; None if the file is gone."""
    content = _content(path)
    return None if content is None else said(content)


def boot_id() -> str:
    """Identifies this boot of this machine; "" if the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def lock_is_free(path: Path) -> bool:
    """Whether no process of this machine holds a lease's lock. Only meaningful if its boot id is this machine's."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: observers must not look like owners
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


class JournalFile:
    """A journal in a file."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self._fd = path, fd

    @staticmethod
    def create(path: Path, data: bytes) -> JournalFile | None:
        """Create the file atomically with its first lines; None if it exists. Raises StorageError on a full disk."""
        if not store.create_once(path, data):
            return None
        return JournalFile(path, os.open(path, os.O_WRONLY | os.O_APPEND))

    def append(self, data: bytes) -> None:
        """Append lines with one fsync. Raises StorageError on a full disk."""
        left = memoryview(data)
        with store.disk_errors(self.path):
            while left:
                left = left[os.write(self._fd, left) :]
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the file, which stays for the next generation."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class HeldFile(Held):
    """A lease in a file that this process has locked. The lock belongs to the open file and ends with the process."""

    def __init__(self, path: Path, generation: int, fd: int, offset: int) -> None:
        self.where, self._generation, self._fd, self._offset = path, generation, fd, offset

    def beat(self, line: dict[str, Any]) -> None:
        with store.disk_errors(self.where):
            os.pwrite(self._fd, _padded(line), self._offset)
            os.fsync(self._fd)

    def is_mine(self) -> bool:
        try:
            return self._fd >= 0 and os.path.samestat(os.fstat(self._fd), self.where.stat())
        except FileNotFoundError:
            return False

    def claim(self) -> bool:
        return True

    def disclaim(self) -> None:
        pass

    def journal(self, data: bytes) -> JournalFile | None:
        shard = self.where.name.split(".")[0]
        return JournalFile.create(journal_path(self.where.parent, shard, self._generation), data)

    def release(self) -> None:
        if self._fd >= 0:
            if self.is_mine():
                self.where.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """Close the file, and with it the lock."""
        os.close(self._fd)
        self._fd = -1


class WorkFiles(WorkPlace):
    """The leases and journals in a column's folder.

    Args:
        folder: The folder.
    """

    pause_s = 2.0

    def __init__(self, folder: Path) -> None:
        self.folder, self.boot = folder, boot_id()

    def look(self, shard: str | None = None) -> dict[str, Traces]:
        return look(self.folder, shard)

    def where(self, shard: str, generation: int) -> Path:
        return lease_path(self.folder, shard, generation)

    def read_lease(self, shard: str, generation: int) -> Said | None:
        return read_lease(self.where(shard, generation))

    def pulse(self, shard: str, traces: Traces) -> bytes | None:
        return _content(self.where(shard, max(traces.leases)))

    def changed(self, shard: str, generation: int) -> float:
        return _changed(self.where(shard, generation))

    def names(self) -> list[str]:
        return os.listdir(self.folder)  # noqa: PTH208 (thousands of names)

    def written(self, names: Sequence[str]) -> list[float]:
        return [_changed(self.folder / name) for name in names]

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        return [_content(self.folder / name) for name in names]

    def has_ended(self, shard: str, generation: int) -> bool:
        about, _ = self.read_lease(shard, generation) or ({}, {})
        return bool(self.boot) and about.get("boot") == self.boot and lock_is_free(self.where(shard, generation))

    def take(self, shard: str, generation: int, owner: dict[str, Any], beat: dict[str, Any]) -> HeldFile | None:
        path = self.where(shard, generation)
        if path.exists():
            return None
        with store.staged(path) as tmp:
            fd = os.open(tmp, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                # before others can see it; without locks, only heartbeats count
                boot = self.boot if _locked(fd) else ""
                first = json.dumps({**owner, "boot": boot}).encode() + b"\n"
                os.pwrite(fd, first, 0)
                held = HeldFile(path, generation, fd, len(first))
                held.beat(beat)
                created = store.publish_once(tmp, path)
            except FileNotFoundError:  # another worker took the shard and cleaned up
                created = False
            except BaseException:
                os.close(fd)
                raise
        if not created:
            os.close(fd)
            return None
        return held

    def close_below(self, shard: str, generation: int) -> None:
        pass

    def is_decided(self, shard: str, traces: Traces) -> bool:
        return False

    def journals(self, shard: str, traces: Traces) -> Iterator[tuple[Path, bytes]]:
        for generation in sorted(traces.journals):
            path = journal_path(self.folder, shard, generation)
            if (data := _content(path)) is not None:
                yield path, data

    def tidy(self, shard: str, traces: Traces, *, below: int) -> None:
        rubbish = [self.folder / file for file in traces.rubbish]
        rubbish += [journal_path(self.folder, shard, g) for g in traces.journals if g < below]
        rubbish += [lease_path(self.folder, shard, g) for g in traces.leases if g < below]
        for path in rubbish:
            path.unlink(missing_ok=True)

    def remove_journal(self, shard: str, generation: int) -> None:
        journal_path(self.folder, shard, generation).unlink(missing_ok=True)


def _changed(path: Path) -> float:
    try:
        return os.stat(path).st_mtime  # noqa: PTH116 (thousands of files)
    except FileNotFoundError:
        return 0.0


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _padded(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode().ljust(_BEAT_BYTES - 1) + b"\n"


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno in _NO_LOCKS:
            return False
        raise
    return True
