"""How many requests a shared server gets at once, and when: a window that shrinks when the server is overloaded and
grows with its answers.

As TCP does it (additive increase, multiplicative decrease): an overload halves the window and stops all sending for a
while, every answer widens it a little. Who asked first is sent first, so that nobody starves. Nothing here knows what a
request is.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST = 60  # pause that nobody asked for, in first pauses
FEWEST = 4  # requests at once that any server can refuse without harm: some are refused by chance, not for their number


class Traffic:
    """For one event loop; not safe in threads. most: requests at once; backoff_s: seconds of the first pause; each next
    one is longer.
    """

    def __init__(self, most: int, backoff_s: float) -> None:
        self._most, self._backoff_s = most, backoff_s
        self.window = float(most)
        self._out = 0  # requests that are with the server
        self._waiting: list[tuple[tuple[int, ...], int, asyncio.Future[None]]] = []
        self._count = itertools.count()
        self._not_before = self._last = self._cut = 0.0  # loop time
        self._setbacks = 0  # since the last answer
        self._dice = random.Random()

    @asynccontextmanager
    async def turn(self, *rank: int) -> AsyncIterator[float]:
        """Waits for a place in the window, the lowest `rank` first. Gives the moment of sending, for `setback`."""
        loop = asyncio.get_running_loop()
        place: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._waiting, (rank, next(self._count), place))
        self._admit()
        try:
            await place
            yield loop.time()
        finally:
            if place.done() and not place.cancelled():
                self._out -= 1
            self._admit()

    def _admit(self) -> None:
        loop = asyncio.get_running_loop()
        if self._waiting and loop.time() < self._not_before:
            loop.call_at(self._not_before, self._admit)
            return
        while self._waiting and self._out < int(self.window):
            *_, place = heapq.heappop(self._waiting)
            if not place.done():
                place.set_result(None)
                self._out += 1

    def answered(self) -> None:
        self._setbacks = 0
        self.window = min(self._most, self.window + 1 / self.window)

    def setback(self, sent: float, *, jam: bool, wait_s: float | None = None) -> None:
        """A request of the moment `sent` failed. jam: the server had no room for it. wait_s: what it asks all to wait.

        Requests that were on their way at the last setback tell nothing new: they are of the same one.
        """
        now = asyncio.get_running_loop().time()
        new, until = sent >= self._last, now
        if new:
            self._last = now
            self._setbacks += 1
        if jam:
            self.shrink(sent)
            until += self.pause() if new else 0
        if jam and wait_s is not None:
            # not all that were asked to wait may return at once
            until = now + wait_s + self._dice.uniform(0, min(self._backoff_s, wait_s))
        self._not_before = max(self._not_before, until)

    def shrink(self, sent: float) -> None:
        """Fewer at once, for a request of the moment `sent` failed because there were too many."""
        if sent >= self._cut:
            self._cut = asyncio.get_running_loop().time()
            self.window = max(min(FEWEST, self._most), self.window / 2)

    def pause(self) -> float:
        """Seconds after so many setbacks without an answer to anybody, with jitter; doubled by every second one."""
        return self._dice.uniform(0.5, 1) * self._backoff_s * min(LONGEST, 2 ** (max(0, self._setbacks - 1) // 2))


def retry_after(value: str | None, date: str | None = None) -> float | None:
    """Seconds that a `Retry-After` header asks to wait: a number, or a date, by the server's own clock (`Date`) where
    it tells it.

    None for anything else.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            now = parsedate_to_datetime(date) if date else datetime.now(UTC)
            seconds = (parsedate_to_datetime(value) - now).total_seconds()
        except (TypeError, ValueError):  # TypeError: a date without a zone
            return None
    return max(0.0, seconds) if seconds < 1e9 else None
