"""Leases: files beside the shards that say which worker works on which shard. This module does not know what is made
under a lease.

    COLUMN/000003.lease.2     line 1: {"worker": "host:pid:nonce", "host", "pid", "boot", "since", "stuck"}, never
                              changed; and "suspect": {"row", "deaths"} if owners died while working on only one row
                              line 2: {"beat", "rows", "of", "tokens", "begun"}, overwritten in place at every
                              heartbeat; and "at", if only one row is in work
    COLUMN/000003.journal.2   what the holder of generation 2 has made (`journal.py`)

A worker takes a generation by creating its file, which only one can do. The highest generation holds the shard. It is
dead if its process is gone (same boot of the same machine, and the lock on the file is free), or if its second line has
not changed for `lease_s` on the observer's own monotonic clock; clocks of different machines are never compared. A
worker that finds it dead takes the next generation.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccr_dist.data.storage import store
from ccr_dist.data.storage.json_lines import has_types

_TRACE = re.compile(r"^(\d{6,})\.(lease|journal)\.(\d+)$")
_RUBBISH = re.compile(rf"^{re.escape(store.TEMPORARY)}(\d{{6,}})\.")
_BEAT_BYTES = 160
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS})


@dataclass
class Traces:
    """Files of unfinished work on a shard in the column's folder.

    Attributes:
        leases: Generations of leases.
        journals: Generations of journals.
        rubbish: Names of temporary files.
    """

    leases: list[int] = field(default_factory=list)
    journals: list[int] = field(default_factory=list)
    rubbish: list[str] = field(default_factory=list)


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


def read_lease(path: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Both lines of a lease, each empty if it is not what a lease says, as after a crash of the machine; None if the
    file is gone.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    owner, beat = (_said(line, types) for line, types in zip((*lines, b"", b""), (_OWNER, _BEAT), strict=False))
    suspect = owner.get("suspect", {"row": 0, "deaths": 0})
    if suspect.keys() != {"row", "deaths"} or not has_types(suspect, {"row": int, "deaths": int}):
        return {}, {}
    return owner, beat


_OWNER: dict[str, Any] = {
    "worker": str, "host": str, "pid": int, "boot": str, "since": int | float, "stuck": int, "suspect": dict,
}  # fmt: skip
_BEAT: dict[str, Any] = {"beat": int, "rows": int, "of": int, "tokens": int, "begun": bool, "at": int}


def _said(line: bytes, types: dict[str, Any]) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) and has_types(values, types) else {}


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


@dataclass(frozen=True)
class Deaths:
    """How earlier owners of a shard died.

    Attributes:
        stuck: Number of owners in a row that died without a new row.
        suspect: A row, and how many of the last owners died while only this row was in work.
    """

    stuck: int = 0
    suspect: tuple[int, int] | None = None


class Lease:
    """A shard that this process holds. The lock belongs to the open file and ends with the process, however it ends.

    Thread-safe: one thread sends heartbeats while another one works.
    """

    def __init__(self, path: Path, generation: int, past: Deaths, of: int, fd: int, offset: int) -> None:
        self.path, self.generation, self.past, self.of = path, generation, past, of
        self.begun = False
        self.at: int | None = None  # the only row in work, when the row that kills workers must be found
        self._fd, self._offset, self._beats, self._guard = fd, offset, 0, threading.Lock()

    def beat(self, rows: int, tokens: int) -> None:
        """Write a heartbeat.

        Args:
            rows: Rows done.
            tokens: Tokens generated.

        Raises:
            OSError: It cannot be written.
        """
        with self._guard:
            if self._fd >= 0:
                self._beats += 1
                line = {"beat": self._beats, "rows": rows, "of": self.of, "tokens": tokens, "begun": self.begun}
                line |= {} if self.at is None else {"at": self.at}
                with store.disk_errors(self.path):
                    os.pwrite(self._fd, _padded(line), self._offset)
                    os.fsync(self._fd)

    def begin(self, rows: int) -> None:
        """Record, before the first row is started, that from now on a row may kill the owner."""
        self.begun = True
        self.beat(rows, 0)

    def alone_with(self, row: int | None, rows: int) -> None:
        """Record that only this row is in work from now on; None: several again."""
        self.at = row
        self.beat(rows, 0)

    def valid(self) -> bool:
        """Whether this process is still the owner: its file exists, and there is no higher generation."""
        with self._guard:
            if not self._is_mine():
                return False
        shard = self.path.name.split(".")[0]
        traces = look(self.path.parent, shard).get(shard, Traces())
        return max(traces.leases, default=0) <= self.generation

    def _is_mine(self) -> bool:
        try:
            return self._fd >= 0 and os.path.samestat(os.fstat(self._fd), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the shard up; removes the file if it is still this process's own."""
        with self._guard:
            if self._fd >= 0:
                if self._is_mine():
                    self.path.unlink(missing_ok=True)
                os.close(self._fd)
                self._fd = -1


class Leases:
    """The leases of a column, as one worker sees them. Not thread-safe.

    Args:
        folder: The column's folder.
        lease_s: Seconds without a heartbeat after which a worker counts as dead.
        clock: Monotonic clock in seconds.
    """

    def __init__(self, folder: Path, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.lease_s, self._clock = folder, lease_s, clock
        self.host, self.boot = socket.gethostname(), boot_id()
        self.worker = f"{self.host}:{os.getpid()}:{secrets.token_hex(4)}"
        # leases of others: content, and the time since when it has been unchanged
        self._seen: dict[Path, tuple[bytes, float]] = {}

    def held(self, shard: str, traces: Traces) -> bool:
        """Whether a worker that is alive, as far as is known by now, holds a shard."""
        if not traces.leases:
            return False
        path = lease_path(self.folder, shard, max(traces.leases))
        # before reading: if this process sleeps in between, that must not look like a long silence
        now = self._clock()
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            self._seen.pop(path, None)
            return False
        before, since = self._seen.setdefault(path, (content, now))
        if before != content:
            self._seen[path] = (content, now)
            since = now
        if now - since >= self.lease_s or self._is_gone(path):
            del self._seen[path]
            return False
        return True

    def _is_gone(self, path: Path) -> bool:
        about, _ = read_lease(path) or ({}, {})
        return bool(self.boot) and about.get("boot") == self.boot and lock_is_free(path)

    def take(self, shard: str, traces: Traces, *, of: int, past: Deaths | None = None) -> Lease | None:
        """Take the next generation of a shard that no living worker holds.

        Args:
            shard: Its name.
            traces: Its traces; they may be old.
            of: Number of its rows.
            past: How earlier owners died.

        Returns:
            The lease, or None if another worker was faster.

        Raises:
            StorageError: The disk is full or fails.
        """
        past = past or Deaths()
        generation = max([*traces.leases, *traces.journals], default=0) + 1
        path = lease_path(self.folder, shard, generation)
        if path.exists():
            return None
        with store.staged(path) as tmp:
            fd = os.open(tmp, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                # before others can see it; without locks, only heartbeats count
                boot = self.boot if _locked(fd) else ""
                about: dict[str, Any] = {
                    "worker": self.worker,
                    "host": self.host,
                    "pid": os.getpid(),
                    "boot": boot,
                    "since": round(time.time()),
                    "stuck": past.stuck,
                }
                if past.suspect is not None:
                    about["suspect"] = dict(zip(("row", "deaths"), past.suspect, strict=True))
                first = json.dumps(about).encode() + b"\n"
                os.pwrite(fd, first, 0)
                lease = Lease(path, generation, past, of, fd, len(first))
                lease.beat(0, 0)
                created = store.publish_once(tmp, path)
            except FileNotFoundError:  # another worker took the shard and cleaned up
                created = False
            except BaseException:
                os.close(fd)
                raise
        if not created:
            os.close(fd)
            return None
        # `traces` may be old: a generation may have come and gone
        now = look(self.folder, shard).get(shard, Traces())
        if now.leases and max(now.leases) == generation and max(now.journals, default=0) < generation:
            return lease
        lease.release()
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
