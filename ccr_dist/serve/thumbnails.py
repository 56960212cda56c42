"""Thumbnails, made a few at a time and kept in a bounded part of the memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from ccr_dist.serve.gallery import Gallery
from ccr_dist.serve.limits import Limits, Refused
from ccr_dist.serve.metrics import Metrics


class Thumbnails:
    """Of all galleries of a server.

    Args:
        limits: `cache`, `decoding` and `wait_s` of them.
        metrics: counts hits and misses.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._kept: OrderedDict[tuple[int, int, str], bytes] = OrderedDict()
        self._bytes = 0
        self._turn = asyncio.Semaphore(limits.decoding)

    async def get(self, gallery: Gallery, number: int, size: str) -> bytes:
        """A JPEG. Raises Refused as `Gallery.thumbnail`, and where too many wait for theirs."""
        key = gallery.place, number, size
        if (kept := self._found(key)) is not None:
            return kept
        try:
            async with asyncio.timeout(self._limits.wait_s):
                await self._turn.acquire()
        except TimeoutError:
            raise Refused(503, "too many pictures are asked for; try again in a moment", {"retry-after": "2"}) from None
        try:
            if (kept := self._found(key)) is not None:  # made while this one waited
                return kept
            made = await asyncio.to_thread(gallery.thumbnail, number, size)
        finally:
            self._turn.release()
        self._metrics.pictures.labels("made").inc()
        self._keep(key, made)
        return made

    def _found(self, key: tuple[int, int, str]) -> bytes | None:
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        self._metrics.pictures.labels("cache").inc()
        return self._kept[key]

    def _keep(self, key: tuple[int, int, str], data: bytes) -> None:
        if key in self._kept or len(data) > self._limits.cache:
            return
        self._kept[key] = data
        self._bytes += len(data)
        while self._bytes > self._limits.cache:
            self._bytes -= len(self._kept.popitem(last=False)[1])
