"""Traces of unfinished work on shards (leases, journals), and what a place that holds them offers.

There are two places: the column's folder (`traces/files.py`), and an object store (`traces/objects.py`). `lease.py` and
`journal.py` say what leases and journals mean; `shard_work.py` works with them. None of these knows which place it is.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ccr_dist.data.storage.json_lines import has_types

Said = tuple[dict[str, Any], dict[str, Any]]  # of a lease: about its owner, and the last heartbeat


@dataclass
class Traces:
    """What there is of unfinished work on a shard.

    Attributes:
        leases: Generations of leases.
        journals: Generations of journals.
        rubbish: Names of temporary files, and of objects that count for nothing.
        commits: Generations that have begun to commit, or may not any more; only where a place fences commits.
        pulses: What a listing shows of a lease and its heartbeat, by generation; empty where it shows nothing.
        names: Names of all objects, by generation; empty where files are found by their generation.
        seen: When they were listed, in seconds by the observer's monotonic clock; None: just now.
    """

    leases: list[int] = field(default_factory=list)
    journals: list[int] = field(default_factory=list)
    rubbish: list[str] = field(default_factory=list)
    commits: list[int] = field(default_factory=list)
    pulses: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, list[str]] = field(default_factory=dict)
    seen: float | None = None

    @property
    def newest(self) -> int:
        """The highest generation; 0 if there is none."""
        return max([*self.leases, *self.journals, *self.commits], default=0)

    @property
    def free(self) -> int:
        """The first generation of which there is nothing, not even something that counts for nothing."""
        return max([self.newest, *self.names]) + 1


class Appender(Protocol):
    """A journal that its owner appends to."""

    def append(self, data: bytes) -> None:
        """Append whole lines durably. Earlier lines stay readable, whatever happens."""

    def close(self) -> None:
        """Close it; it stays for the next generation."""


class Held(ABC):
    """A lease in the hands of its owner.

    Attributes:
        where: The file or object, for messages.
    """

    where: Any

    @abstractmethod
    def beat(self, line: dict[str, Any]) -> None:
        """Write a heartbeat over the one before. Raises OSError."""

    @abstractmethod
    def is_mine(self) -> bool:
        """Whether the lease exists, and is this one."""

    @abstractmethod
    def claim(self) -> bool:
        """Begin to commit. Whoever takes a later generation then finishes this commit, and changes nothing about it.

        Returns:
            Whether this generation may still commit, as far as it alone shows; `Lease.claim` looks at the others.
        """

    @abstractmethod
    def disclaim(self) -> None:
        """Take `claim` back, since the shard was lost before it."""

    @abstractmethod
    def journal(self, data: bytes) -> Appender | None:
        """Create the journal of this generation with its first lines; None if there is one already."""

    @abstractmethod
    def release(self) -> None:
        """Remove the lease if it is still this one, and what of its own nobody needs. The journal stays."""


class WorkPlace(ABC):
    """Where the leases and journals of a column lie.

    Attributes:
        pause_s: How long a worker that waits for others pauses at most between two looks, in seconds.
    """

    pause_s: float

    @abstractmethod
    def look(self, shard: str | None = None) -> dict[str, Traces]:
        """Traces by shard, from a fresh listing; shards without traces are left out. `shard`: only of this one."""

    @abstractmethod
    def where(self, shard: str, generation: int) -> Any:
        """The file or object of a lease, for messages."""

    @abstractmethod
    def read_lease(self, shard: str, generation: int) -> Said | None:
        """What a lease says; None if it is gone."""

    @abstractmethod
    def pulse(self, shard: str, traces: Traces) -> bytes | None:
        """Something of the newest lease that changes with every heartbeat; None if the lease is gone."""

    @abstractmethod
    def changed(self, shard: str, generation: int) -> float:
        """When a lease last changed, as unix time in seconds by the place's own clock; 0 if it is gone. For people
        only: whether an owner is alive is judged by `pulse`.
        """

    @abstractmethod
    def has_ended(self, shard: str, generation: int) -> bool:
        """Whether the owner of a lease is known to be dead, without waiting for heartbeats."""

    @abstractmethod
    def names(self) -> list[str]:
        """The names of the column's files, from a fresh listing."""

    @abstractmethod
    def written(self, names: Sequence[str]) -> list[float]:
        """When files of the column were last written, as unix time in seconds by the place's own clock; 0 for those
        that are gone.
        """

    @abstractmethod
    def read(self, names: Sequence[str]) -> list[bytes | None]:
        """The contents of small files of the column; None for those that are gone."""

    @abstractmethod
    def take(self, shard: str, generation: int, owner: dict[str, Any], beat: dict[str, Any]) -> Held | None:
        """Create the lease of a generation.

        Args:
            shard: The shard.
            generation: The generation.
            owner: What the lease says about its owner.
            beat: Its first heartbeat.

        Returns:
            The lease; None if another worker was faster.
        """

    @abstractmethod
    def close_below(self, shard: str, generation: int) -> None:
        """Make commits of lower generations impossible, but for those that have begun."""

    @abstractmethod
    def is_decided(self, shard: str, traces: Traces) -> bool:
        """Whether an owner whose journal is still there has begun to commit it."""

    @abstractmethod
    def journals(self, shard: str, traces: Traces) -> Iterable[tuple[Any, bytes]]:
        """(name for messages, content) of the journals that count, in the order of their generations.

        Raises:
            FileNotFoundError: Another worker removes them.
        """

    @abstractmethod
    def tidy(self, shard: str, traces: Traces, *, below: int) -> None:
        """Remove what generations below this one, and processes that were killed while they wrote, have left."""

    @abstractmethod
    def remove_journal(self, shard: str, generation: int) -> None:
        """Remove a journal, and the sign that its commit has begun."""


_OWNER: dict[str, Any] = {
    "worker": str, "host": str, "pid": int, "boot": str, "since": int | float, "stuck": int, "suspect": dict,
    "lease_s": int | float,
}  # fmt: skip
_BEAT: dict[str, Any] = {"beat": int, "rows": int, "of": int, "tokens": int, "begun": bool, "at": int}


def said(content: bytes) -> Said:
    """Both lines of a lease, each empty if it is not what a lease says, as after a crash of the machine."""
    lines = content.split(b"\n")
    owner, beat = (_line(line, types) for line, types in zip((*lines, b"", b""), (_OWNER, _BEAT), strict=False))
    suspect = owner.get("suspect", {"row": 0, "deaths": 0})
    if suspect.keys() != {"row", "deaths"} or not has_types(suspect, {"row": int, "deaths": int}):
        return {}, {}
    return owner, beat


def _line(line: bytes, types: dict[str, Any]) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) and has_types(values, types) else {}
