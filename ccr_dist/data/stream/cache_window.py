"""Checks that the cache can hold the remote payloads that a run needs at one time. Reads only records."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from ccr_dist.data.storage import payload_cache
from ccr_dist.data.stream.order import Order
from ccr_dist.data.table.dataset import Column
from ccr_dist.errors import ConfigError

Opened = Mapping[str, Sequence[Mapping[str, Column]]]  # language -> for each dataset: role -> column


def require_room(order: Order, columns: Opened, slots: Sequence[int]) -> None:
    """Requires that the payload cache holds all that the ranks of this machine shuffle at one time.

    Each lane reads a window of `window_rows` rows from every stream (language, dataset). A machine has LOCAL_WORLD_SIZE
    ranks (torchrun and Accelerate set it). The bound is at most the size of all payloads; datasets in local folders do
    not count.

    Args:
        order: The order of rows.
        columns: The columns that are read.
        slots: Slots of this rank.

    Raises:
        ConfigError: The cache is too small; the message has the numbers.
    """
    lanes = len({slot % order.lanes for slot in slots})
    everything: dict[str, int] = {}
    windows, most = 0, 0
    for lang in order.languages:
        for source, shards in order.window_shards(lang).items():
            opened = [column for column in columns[lang][source].values() if column.dataset.remote]
            if not opened:
                continue
            payloads = [_fetched(opened, shard) for shard in range(len(order.sources[source].shard_rows))]
            everything |= {sha256: size for shard in payloads for sha256, size in shard.items()}
            windows += sum(sorted((sum(shard.values()) for shard in payloads), reverse=True)[:shards])
            most = max(most, shards)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    total = sum(everything.values())
    need = min(total, ranks * lanes * windows)
    if need > payload_cache.limit():
        raise ConfigError(
            f"the cache of remote payloads may hold {payload_cache.gb(payload_cache.limit())} (CCR_DIST_CACHE_GB), but"
            f" this run shuffles up to {payload_cache.gb(need)} at a time on a machine: {ranks} rank(s) x {lanes} lanes"
            f" x {payload_cache.gb(windows)} in a window of {order.window_rows} rows (up to {most} shards of a dataset)"
            f" in every language; all payloads together are {payload_cache.gb(total)}. Raise CCR_DIST_CACHE_GB, or"
            " lower runtime.window_rows or runtime.lanes, or `ccr-dist shards pull` the datasets"
        )


def _fetched(columns: Iterable[Column], shard: int) -> dict[str, int]:
    """{sha256: bytes} of the payloads of a shard that are read through the cache; shared ones count once."""
    fetched = [column for column in columns if not column.path(shard, fetch=False).exists()]
    return {record["sha256"]: record["bytes"] for record in (column.record(shard) for column in fetched)}
