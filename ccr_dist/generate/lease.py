"""Leases say which worker works on which shard. This module does not know what is made under a lease, nor where leases
lie: files in the column's folder (`traces/files.py`), or objects in a store (`traces/objects.py`).

    line 1   {"worker": "host:pid:nonce", "host", "pid", "boot", "since", "stuck", "lease_s"}, never changed; and
             "suspect": {"row", "deaths"} if owners died while working on only one row
    line 2   {"beat", "rows", "of", "tokens", "begun"}, written anew at every heartbeat; and "at", if only one row is
             in work

A worker takes a generation by creating its lease, which only one can do. The highest generation holds the shard. It is
dead if its place shows that its process is gone (a file does on the same boot of the same machine, by its lock), or if
its second line has not changed for `lease_s` on the observer's own monotonic clock; clocks of different machines are
never compared. The seconds are those of the lease, since its owner renews it accordingly, and not the observer's own. A
worker that finds it dead takes the next generation.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ccr_dist.generate.traces.base import Appender, Held, Traces, WorkPlace


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
    """A shard that this process holds.

    Thread-safe: one thread sends heartbeats while another one works.

    Args:
        place: Where it lies.
        held: The lease there.
        shard: The shard.
        generation: Its generation.
        past: How earlier owners died.
        of: Number of the shard's rows.
    """

    def __init__(self, place: WorkPlace, held: Held, shard: str, generation: int, past: Deaths, of: int) -> None:
        self.path, self.generation, self.past, self.of = held.where, generation, past, of
        self.begun = False
        self.at: int | None = None  # the only row in work, when the row that kills workers must be found
        self.held, self._place, self._shard = held, place, shard
        self._beats, self._open, self._guard = 1, True, threading.Lock()

    def beat(self, rows: int, tokens: int) -> None:
        """Write a heartbeat.

        Args:
            rows: Rows done.
            tokens: Tokens generated.

        Raises:
            OSError: It cannot be written.
        """
        with self._guard:
            if self._open:
                self._beats += 1
                line = _beat(self._beats, rows, self.of, tokens, self.begun)
                self.held.beat(line | ({} if self.at is None else {"at": self.at}))

    def begin(self, rows: int) -> None:
        """Record, before the first row is started, that from now on a row may kill the owner."""
        self.begun = True
        self.beat(rows, 0)

    def alone_with(self, row: int | None, rows: int) -> None:
        """Record that only this row is in work from now on; None: several again."""
        self.at = row
        self.beat(rows, 0)

    def valid(self) -> bool:
        """Whether this process is still the owner: its lease exists, and there is no higher generation."""
        with self._guard:
            if not (self._open and self.held.is_mine()):
                return False
        return self._place.look(self._shard).get(self._shard, Traces()).newest <= self.generation

    def claim(self) -> bool:
        """Begin to commit. Where a place fences commits, whoever takes a later generation finds that out, and a worker
        that was overtaken before cannot begin any more.

        Returns:
            Whether this process is still the owner; otherwise nothing has begun.
        """
        if self.held.claim() and self.valid():
            return True
        self.held.disclaim()
        return False

    def journal(self, data: bytes) -> Appender | None:
        """Create the journal of this generation with its first lines; None if there is one already."""
        return self.held.journal(data)

    def release(self) -> None:
        """Give the shard up; removes the lease if it is still this process's own."""
        with self._guard:
            if self._open:
                self._open = False
                self.held.release()


class Leases:
    """The leases of a column, as one worker sees them. Not thread-safe.

    Args:
        place: Where they lie.
        lease_s: Seconds without a heartbeat after which this worker counts as dead for others.
        clock: Monotonic clock in seconds.
    """

    def __init__(self, place: WorkPlace, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.place, self.lease_s, self._clock = place, lease_s, clock
        self.host = socket.gethostname()
        self.worker = f"{self.host}:{os.getpid()}:{secrets.token_hex(4)}"
        # leases of others: their pulse, and the time since when it has been unchanged
        self._seen: dict[tuple[str, int], tuple[bytes, float]] = {}
        self._lengths: dict[tuple[str, int], float] = {}  # seconds of these leases

    def look(self, shard: str) -> Traces:
        """The traces of a shard, from a fresh listing."""
        seen = self._clock()  # before: if this process sleeps in between, that must not look like a long silence
        traces = self.place.look(shard).get(shard, Traces())
        traces.seen = seen
        return traces

    def held(self, shard: str, traces: Traces) -> bool:
        """Whether a worker that is alive, as far as is known by now, holds a shard."""
        if not traces.leases:
            return False
        generation = max(traces.leases)
        one, now = (shard, generation), self._clock() if traces.seen is None else traces.seen
        pulse = self.place.pulse(shard, traces)
        if pulse is None:
            self._forget(one)
            return False
        before, since = self._seen.setdefault(one, (pulse, now))
        if before != pulse:
            self._seen[one] = (pulse, now)
            since = now
        if now - since >= self._length(shard, generation) or self.place.has_ended(shard, generation):
            self._forget(one)
            return False
        return True

    def _length(self, shard: str, generation: int) -> float:
        """After how many seconds a lease has run out: it says so, and never changes that. Those of earlier versions do
        not, and workers of one job then have the same.
        """
        one = (shard, generation)
        if one not in self._lengths:
            about, _ = self.place.read_lease(shard, generation) or ({}, {})
            self._lengths[one] = float(about.get("lease_s", self.lease_s))
        return self._lengths[one]

    def _forget(self, one: tuple[str, int]) -> None:
        self._seen.pop(one, None)
        self._lengths.pop(one, None)

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
        generation = traces.free
        about: dict[str, Any] = {
            "worker": self.worker,
            "host": self.host,
            "pid": os.getpid(),
            "boot": "",  # the place knows
            "since": round(time.time()),
            "stuck": past.stuck,
            "lease_s": self.lease_s,
        }
        if past.suspect is not None:
            about["suspect"] = dict(zip(("row", "deaths"), past.suspect, strict=True))
        held = self.place.take(shard, generation, about, _beat(1, 0, of, 0, False))
        if held is None:
            return None
        lease = Lease(self.place, held, shard, generation, past, of)
        # `traces` may be old: a generation may have come and gone
        now = self.place.look(shard).get(shard, Traces())
        if now.leases and max(now.leases) == generation and max([*now.journals, *now.commits], default=0) < generation:
            return lease
        lease.release()
        return None


def _beat(beats: int, rows: int, of: int, tokens: int, begun: bool) -> dict[str, Any]:
    return {"beat": beats, "rows": rows, "of": of, "tokens": tokens, "begun": begun}
