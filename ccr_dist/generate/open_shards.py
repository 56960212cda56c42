"""The shards that this worker holds: their heartbeats, and what happens when another worker takes one over."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from ccr_dist.errors import CcrError
from ccr_dist.generate.bad_items import BadItems
from ccr_dist.generate.shard_work import Work
from ccr_dist.generate.summary import JobReport


class OpenShards:
    """The open shards by number.

    Args:
        bad_items: Told to forget the bad items of lost shards.
        report: Told about lost shards.
    """

    def __init__(self, bad_items: BadItems, report: JobReport) -> None:
        self._bad_items, self._report = bad_items, report
        self._works: dict[int, Work] = {}
        self._lost: list[int] = []

    def __len__(self) -> int:
        return len(self._works)

    def __contains__(self, shard: int) -> bool:
        return shard in self._works

    def __iter__(self) -> Iterator[Work]:
        return iter(list(self._works.values()))

    def get(self, shard: int) -> Work | None:
        """The work on a shard, or None if it is not open here."""
        return self._works.get(shard)

    def add(self, work: Work) -> None:
        """Add a shard that was taken."""
        self._works[work.shard] = work

    def remove(self, work: Work) -> None:
        """Remove a shard that was committed."""
        del self._works[work.shard]

    @property
    def lost_count(self) -> int:
        """Number of lost shards of which it is not known yet whether others finish them."""
        return len(self._lost)

    def take_lost(self) -> list[int]:
        """Hand over the lost shards to the caller."""
        lost, self._lost = self._lost, []
        return lost

    def begin(self, shard: int) -> None:
        """Record in the lease, before the first row of a shard is started, that its rows may kill this worker."""
        work = self._works.get(shard)
        if work is not None and not work.lease.begun:
            work.lease.begin(len(work.outcomes))

    def beat(self) -> None:
        """Renew all leases; called in the watch's thread."""
        for work in self:
            try:
                work.beat()
            except (OSError, CcrError) as e:  # of a store also that it finds no credentials now
                print(
                    f"{work.lease.path}: no heartbeat ({e}); if this continues, another worker takes the shard over",
                    file=sys.stderr,
                )

    def drop_lost(self) -> None:
        """Give up the shards that other workers have taken over."""
        for work in self:
            if work.lost:
                self.lose(work)

    def lose(self, work: Work) -> None:
        """Give up one shard: its results here are dropped, and the queue checks whether others finish it."""
        self._report.summary.lost += 1
        self.remove(work)
        work.close()
        self._lost.append(work.shard)
        self._bad_items.forget(work.keys)
        self._report.advance(-len(work.outcomes))
        self._report.event("lost", {"shard": work.name})

    def close(self) -> None:
        """Give up all shards; their journals stay for the next worker. A lease that cannot be removed now counts as
        that of a dead worker later.
        """
        for work in self:
            try:
                work.close()
            except (OSError, CcrError) as e:  # it must not hide why the job ends
                print(f"{work.lease.path}: not given up ({e}); other workers wait for it", file=sys.stderr)
