"""Leases and journals as objects in a store, so that workers of several clusters share a dataset without a shared
folder.

    COLUMN/jobs/000003.lease.2                  both lines of a lease, and a nonce in the first; created once
    COLUMN/jobs/000003.beat.2.NONCE             the second line since then; replaced at every heartbeat
    COLUMN/jobs/000003.journal.2.NONCE.000000   a journal's header and the merged rows; created once, like
    COLUMN/jobs/000003.journal.2.NONCE.000001   ... a batch of rows, in an object of its own
    COLUMN/jobs/000003.commit.2                 {"commit": nonce} by the owner or {"closed": nonce} by a successor,
                                                whoever creates it first

The only primitive is the creation of an object on the condition that it is absent. A store has no locks that end with a
process, and a request of a worker that slept may arrive at any later time. So nothing that decides is ever replaced,
and every generation has one `commit` object: its owner creates it before the payload and then looks once more whether
it still holds the shard; a successor creates it before it reads the journal. If the owner was first, the journal is
complete and final, and the successor makes the same payload of it. If the successor was first, the owner commits
nothing. The journal of the newest generation holds the rows of all older ones, so what is added late to an older one
does not count. It is removed by its author, or with the shard's next owner.

Removed is in this order: journals, leases, `commit` objects. A worker whose `commit` object is gone finds that its
lease is gone, too. Of a journal the first object goes first, since without it the others are no journal: whoever is
killed in between leaves a whole one, or none.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ccr_dist.data.storage.object_store import Store
from ccr_dist.data.table.names import JOBS
from ccr_dist.errors import StorageError
from ccr_dist.generate.traces.base import Held, Said, Traces, WorkPlace, said

_FIRST = "000000"  # of the objects of a journal
_NAME = re.compile(r"^(\d{6,})\.(lease|beat|commit|journal)\.(\d+)(?:\.[0-9a-f]{16})?(?:\.(\d{6,}))?$")


class JournalObjects:
    """A journal in a store: an object for each batch."""

    def __init__(self, store: Store, stem: str) -> None:
        self._store, self._stem, self._next = store, stem, 0

    def append(self, data: bytes) -> None:
        """Create the next object of the journal."""
        name = f"{self._stem}{self._next:06d}"
        if not self._store.create(name, data):
            raise StorageError(f"{self._store.url}/{name}: created by somebody else; nothing but its owner may do this")
        self._next += 1

    def close(self) -> None:
        """Nothing is open."""


class HeldObject(Held):
    """A lease in a store."""

    def __init__(self, store: Store, shard: str, generation: int, nonce: str, content: bytes) -> None:
        self._store, self._shard, self._generation, self._nonce = store, shard, generation, nonce
        self._lease, self._content = f"{shard}.lease.{generation}", content
        self._beat = f"{shard}.beat.{generation}.{nonce}"
        self._commit, self._claimed = f"{shard}.commit.{generation}", json.dumps({"commit": nonce}).encode()
        self._journal = f"{shard}.journal.{generation}.{nonce}."
        self.where = f"{store.url}/{self._lease}"

    def beat(self, line: dict[str, Any]) -> None:
        self._store.write(self._beat, json.dumps(line).encode())

    def is_mine(self) -> bool:
        return self._store.get(self._lease) == self._content

    def claim(self) -> bool:
        return self._store.create(self._commit, self._claimed)

    def disclaim(self) -> None:
        if self._store.get(self._commit) == self._claimed:
            self._store.remove([self._commit])

    def journal(self, data: bytes) -> JournalObjects:
        journal = JournalObjects(self._store, self._journal)
        journal.append(data)
        return journal

    def release(self) -> None:
        there = self._store.listing(f"{self._shard}.")
        mine = [name for name in there if name.startswith(self._journal)]
        if f"{self._journal}{_FIRST}" in there:
            mine = []  # for the next owner
        if self._lease in there and self.is_mine():
            mine.append(self._lease)
        self._store.remove(mine)
        self._store.remove([self._beat])


class WorkObjects(WorkPlace):
    """The leases and journals of a column in a store.

    Args:
        column: URL of the column's folder.
    """

    pause_s = 10.0  # every look is a request

    def __init__(self, column: str) -> None:
        self._column, self._store = Store(column), Store(f"{column}/{JOBS}")

    def look(self, shard: str | None = None) -> dict[str, Traces]:
        found: dict[str, Traces] = {}
        stamps = self._store.listing("" if shard is None else f"{shard}.")
        pulses: dict[tuple[str, int], list[tuple[str, tuple[int, int]]]] = {}
        for name, stamp in sorted(stamps.items()):
            if not (match := _NAME.match(name)) or (match[2] == "journal" and not match[4]):
                continue
            kind, generation = match[2], int(match[3])
            traces = found.setdefault(match[1], Traces())
            traces.names.setdefault(generation, []).append(name)
            if kind in ("lease", "beat"):
                pulses.setdefault((match[1], generation), []).append((name, stamp))
            if kind == "lease":
                traces.leases.append(generation)
            elif kind == "commit":
                traces.commits.append(generation)
            elif kind == "journal" and match[4] == _FIRST:
                traces.journals.append(generation)
        for (of_shard, generation), parts in pulses.items():
            found[of_shard].pulses[generation] = repr(parts).encode()
        return found

    def where(self, shard: str, generation: int) -> str:
        return f"{self._store.url}/{shard}.lease.{generation}"

    def read_lease(self, shard: str, generation: int) -> Said | None:
        content = self._store.get(f"{shard}.lease.{generation}")
        if content is None:
            return None
        owner, beat = said(content)
        nonce = _value(content.split(b"\n")[0], "nonce")
        later = self._store.get(f"{shard}.beat.{generation}.{nonce}")
        return owner, beat if later is None else said(b"{}\n" + later)[1]

    def pulse(self, shard: str, traces: Traces) -> bytes | None:
        return traces.pulses.get(max(traces.leases))

    def changed(self, shard: str, generation: int) -> float:
        there = self._store.changed(f"{shard}.")
        names = (f"{shard}.{kind}.{generation}" for kind in ("lease", "beat"))
        return max((when for of in names for name, when in there.items() if f"{name}.".startswith(f"{of}.")), default=0)

    def names(self) -> list[str]:
        return [name for name in self._column.listing() if not name.startswith(f"{JOBS}/")]

    def written(self, names: Sequence[str]) -> list[float]:
        there = self._column.changed()
        return [there.get(name, 0.0) for name in names]

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(self._column.get, names))

    def has_ended(self, shard: str, generation: int) -> bool:
        return False

    def take(self, shard: str, generation: int, owner: dict[str, Any], beat: dict[str, Any]) -> HeldObject | None:
        nonce = secrets.token_hex(8)
        content = json.dumps({**owner, "nonce": nonce}).encode() + b"\n" + json.dumps(beat).encode() + b"\n"
        if not self._store.create(f"{shard}.lease.{generation}", content):
            return None
        return HeldObject(self._store, shard, generation, nonce, content)

    def close_below(self, shard: str, generation: int) -> None:
        traces = self.look(shard).get(shard, Traces())
        closed = json.dumps({"closed": secrets.token_hex(8)}).encode()
        for lower in sorted({*traces.leases, *traces.journals} - {*traces.commits}):
            if lower < generation:
                self._store.create(f"{shard}.commit.{lower}", closed)

    def is_decided(self, shard: str, traces: Traces) -> bool:
        # Not only of the newest journal: whoever found such a commit may have died before its own word. Its journal is
        # a copy, and what the earlier owner has begun may still come.
        begun = (self._store.get(f"{shard}.commit.{g}") for g in {*traces.commits} & {*traces.journals})
        return any(_value(content or b"", "commit") is not None for content in begun)

    def journals(self, shard: str, traces: Traces) -> Iterator[tuple[str, bytes]]:
        if not traces.journals:
            return
        batches: dict[str, list[str]] = {}
        for name in traces.names[max(traces.journals)]:
            if ".journal." in name:
                batches.setdefault(name.rpartition(".")[0], []).append(name)
        for stem, names in batches.items():
            names.sort(key=lambda name: int(name.rpartition(".")[2]))
            whole = [name for number, name in enumerate(names) if name == f"{stem}.{number:06d}"]
            if whole:  # otherwise of a worker that lost the shard long ago; what follows a gap does not count
                yield f"{self._store.url}/{whole[0]}", b"".join(self._read(whole))

    def _read(self, names: list[str]) -> list[bytes]:
        try:
            return self._store.read(names)
        except StorageError as e:
            if isinstance(e.__cause__, FileNotFoundError):
                raise FileNotFoundError(str(e)) from e
            raise

    def tidy(self, shard: str, traces: Traces, *, below: int) -> None:
        names = [name for generation, some in traces.names.items() if generation < below for name in some]
        self._remove(names, "journal", "beat", "lease", "commit")

    def remove_journal(self, shard: str, generation: int) -> None:
        self._remove(self.look(shard).get(shard, Traces()).names.get(generation, []), "journal", "commit")

    def _remove(self, names: list[str], *kinds: str) -> None:
        """Remove the objects of these kinds among `names`, one kind after the other."""
        for kind in kinds:
            some = [name for name in names if f".{kind}." in name]
            first = [name for name in some if kind == "journal" and name.endswith(f".{_FIRST}")]
            self._store.remove(first)
            self._store.remove([name for name in some if name not in first])


def _value(line: bytes, key: str) -> Any:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values.get(key) if isinstance(values, dict) else None
