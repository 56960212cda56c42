"""Reading ahead: tells the kernel which rows come next, so that a shuffled order reads a cold disk nearly in sequence.

Rows are shuffled in windows, so a batch reads from random places. But the rows of a window are stored one after
another, and the order is known. So for each lane, the rows up to a window ahead are requested (POSIX_FADV_WILLNEED) in
the order of the payloads, about a megabyte at a time, and are in the page cache when they are drawn. At the start of a
run nothing has been requested: requests then begin with the window's first row and are PACE times as fast as drawing
until they are a window ahead. Rows drawn before their request are read from random places. These are hints; they change
no batch.

Reading ahead needs page cache for two windows per lane. Nothing is requested where that could exceed a share of the
memory, or for datasets in a store (whose payloads are fetched whole).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence

from ccr_dist.data.stream.order import GlobalBatch, Order
from ccr_dist.data.table.column import Column
from ccr_dist.errors import DataError

PACE = 8
STEP_BYTES = 1 << 20
SHARE = 4  # all ranks of a machine together hold at most 1/SHARE of its memory ahead


class ReadAhead:
    """To be called with each batch before its rows are read.

    Args:
        order: The order of rows.
        columns: Language -> for each dataset: role -> column.
        slots: Slots of this rank.
        last: The batch after the run's last one.
    """

    def __init__(
        self, order: Order, columns: Mapping[str, Sequence[Mapping[str, Column]]], slots: Sequence[int], *, last: int
    ) -> None:
        self._order, self._last, self._per_lane = order, last, order.batch_size // order.lanes
        self._columns: dict[tuple[str, int], list[Column]] = {}
        self._step: dict[tuple[str, int], int] = {}  # rows
        # (position up to which rows were requested, position up to which they were drawn at that time)
        self._progress: dict[tuple[str, int, int], tuple[int, int]] = {}
        lanes, need = len({slot % order.lanes for slot in slots}), 0.0
        for source in range(len(order.sources)):
            opened = {lang: list(columns[lang][source].values()) for lang in order.languages if columns[lang][source]}
            if any(column.dataset.remote for group in opened.values() for column in group):
                continue
            rows, widest = 0, 0.0
            for lang, group in opened.items():
                if (stream := order.stream(lang, source)) is None:
                    continue
                row_bytes = sum(column.record(0)["bytes"] / max(1, column.record(0)["rows"]) for column in group)
                self._columns[lang, source], self._step[lang, source] = (
                    group,
                    max(1, int(STEP_BYTES / max(1, row_bytes))),
                )
                rows = min(
                    rows + min(2 * stream.window_rows * lanes, stream.eligible.total),
                    int(stream.eligible.shard_rows.sum()),
                )
                widest = max(widest, row_bytes)
            need += rows * widest
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if need > memory / SHARE:
            self._columns = {}

    def __call__(self, batch: GlobalBatch) -> None:
        drawn: dict[tuple[int, int], int] = {}
        for slot in batch.slots:
            # a lane's slots come in the order of their positions
            drawn[slot.source, slot.slot % self._order.lanes] = slot.position + 1
        to_come = (self._last - 1 - batch.k) * self._per_lane
        for (source, lane), now in drawn.items():
            if (batch.lang, source) in self._columns:
                self._ask(batch.lang, source, lane, now, now + to_come)

    def _ask(self, lang: str, source: int, lane: int, now: int, end: int) -> None:
        stream = self._order.stream(lang, source)
        assert stream is not None
        asked, before = self._progress.get((lang, source, lane)) or (
            now - 1 - stream.at(lane, now - 1)[2],
            now - self._per_lane,
        )
        target = min(asked + PACE * (now - before), now + stream.window_rows, end)
        if target - asked < self._step[lang, source] and target < end:
            return
        self._progress[lang, source, lane] = target, now
        for shard, rows in stream.run(lane, asked, target):
            for column in self._columns[lang, source]:
                with contextlib.suppress(DataError, OSError):  # reading the row will report it
                    column.will_read(shard, int(rows[0]), int(rows[-1]))
