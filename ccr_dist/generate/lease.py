"""Who works on which shard: leases, which are files beside the shards. This module does not know what is made under a
lease.

    COLUMN/000003.lease.2     line 1: {"worker": "host:pid:nonce", "host", "pid", "boot", "since", "stuck"}, never
                              changed; with "suspect": {"row", "deaths"} where owners died over one row alone
                              line 2: {"beat", "rows", "of", "tokens", "begun"}, overwritten in place at every
                              heartbeat; with "at": the only row in work
    COLUMN/000003.journal.2   what the holder of generation 2 has made (`journal.py`)

A generation is taken by creating its file, which only one racer can. The highest one holds the shard. It is dead when
its process is gone (same boot of the same machine, and the lock on the file is free), or when its second line has
stayed the same for `lease_s` of the observer's own monotonic clock: clocks of different machines are never compared.
The worker that finds it dead takes the next generation.
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

_TRACE = re.compile(r"^(\d{6,})\.(lease|journal)\.(\d+)$")
_RUBBISH = re.compile(rf"^{re.escape(store.TEMPORARY)}(\d{{6,}})\.")
_BEAT_BYTES = 160
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS})


@dataclass
class Traces:
    """What work on a shard has left in the column's folder: generations of leases and of journals, names of temporary
    files.
    """

    leases: list[int] = field(default_factory=list)
    journals: list[int] = field(default_factory=list)
    rubbish: list[str] = field(default_factory=list)


def look(folder: Path, shard: str | None = None) -> dict[str, Traces]:
    """The traces in a column's folder, by shard (or of one shard), from one listing. Shards without any are left
    out.
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
    return folder / f"{shard}.lease.{generation}"


def journal_path(folder: Path, shard: str, generation: int) -> Path:
    return folder / f"{shard}.journal.{generation}"


def read_lease(path: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Both lines of a lease; empty where a crash of the machine left no JSON. None: it is gone."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    try:
        return json.loads(lines[0]), json.loads(lines[1])
    except (ValueError, IndexError):
        return {}, {}


def boot_id() -> str:
    """Names the machine since it was started; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def lock_is_free(path: Path) -> bool:
    """Nobody on this machine holds the lock of a lease. Only to be asked for leases whose boot id is this machine's."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two observers do not take each other for the owner
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Deaths:
    """What became of a shard's earlier owners.

    Attributes:
        stuck: How many died, one after the other, without a new row.
        suspect: A row, and how many of the last owners died while it alone was in work.
    """

    stuck: int = 0
    suspect: tuple[int, int] | None = None


class Lease:
    """A shard that this process holds. Its lock belongs to the open file and ends with the process, however that ends.

    Safe in threads: one beats while another one works.
    """

    def __init__(self, path: Path, generation: int, past: Deaths, of: int, fd: int, offset: int) -> None:
        self.path, self.generation, self.past, self.of = path, generation, past, of
        self.begun = False
        self.at: int | None = None  # the only row in work, where it has to be found out which one kills its workers
        self._fd, self._offset, self._beats, self._guard = fd, offset, 0, threading.Lock()

    def beat(self, rows: int, tokens: int) -> None:
        """Says that the owner is alive, and how far it is. OSErrors pass."""
        with self._guard:
            if self._fd >= 0:
                self._beats += 1
                line = {"beat": self._beats, "rows": rows, "of": self.of, "tokens": tokens, "begun": self.begun}
                line |= {} if self.at is None else {"at": self.at}
                with store.disk_errors(self.path):
                    os.pwrite(self._fd, _padded(line), self._offset)
                    os.fsync(self._fd)

    def begin(self, rows: int) -> None:
        """Says, before the first row is touched, that from now on the rows may be what kills the owner."""
        self.begun = True
        self.beat(rows, 0)

    def alone_with(self, row: int | None, rows: int) -> None:
        """Says which row alone is touched from now on; None: several again."""
        self.at = row
        self.beat(rows, 0)

    def valid(self) -> bool:
        """Still the owner: the file is the one that this process made, and there is no higher generation."""
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
        """Gives the shard up; removes the file unless it is somebody else's by now."""
        with self._guard:
            if self._fd >= 0:
                if self._is_mine():
                    self.path.unlink(missing_ok=True)
                os.close(self._fd)
                self._fd = -1


class Leases:
    """The leases of a column as one worker sees them. Not safe in threads."""

    def __init__(self, folder: Path, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.lease_s, self._clock = folder, lease_s, clock
        self.host, self.boot = socket.gethostname(), boot_id()
        self.worker = f"{self.host}:{os.getpid()}:{secrets.token_hex(4)}"
        # of the leases of others: content, and since when it has been that
        self._seen: dict[Path, tuple[bytes, float]] = {}

    def held(self, shard: str, traces: Traces) -> bool:
        """Somebody alive (as far as one can know by now) holds the shard."""
        if not traces.leases:
            return False
        path = lease_path(self.folder, shard, max(traces.leases))
        # before reading: a process that sleeps in between must not take an old look for a long silence
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
        """The next generation of a shard that nobody alive holds; None when another one was quicker. Raises
        StorageError.
        """
        past = past or Deaths()
        generation = max([*traces.leases, *traces.journals], default=0) + 1
        path = lease_path(self.folder, shard, generation)
        if path.exists():
            return None
        with store.staged(path) as tmp:
            fd = os.open(tmp, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                # before others can see it; without locks the heartbeat alone has to do
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
            except FileNotFoundError:  # another one took the shard and tidied up
                created = False
            except BaseException:
                os.close(fd)
                raise
        if not created:
            os.close(fd)
            return None
        # `traces` may be old: a generation may have come and gone
        now = look(self.folder, shard)[shard] if path.exists() else Traces()
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
