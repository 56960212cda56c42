"""How many requests a shared server gets at once, and when: a window that shrinks when the server is overloaded and grows with its answers.

As TCP does it (additive increase, multiplicative decrease): an overload halves the window and stops all sending for a while, every answer
widens it a little. Who asked first is sent first, so that nobody starves. Nothing here knows what a request is.
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

LONGEST = 60  # pauses that nobody asked for, in first pauses


class Traffic:
    """For one event loop; not safe in threads. most: requests at once; backoff_s: seconds of the first pause, doubled by each next jam."""

    def __init__(self, most: int, backoff_s: float) -> None:
        self._most, self._backoff_s = most, backoff_s
        self.window = float(most)
        self._out = 0  # requests that are with the server
        self._waiting: list[tuple[tuple[int, ...], int, asyncio.Future[None]]] = []
        self._count = itertools.count()
        self._not_before = self._cut = 0.0  # loop time
        self._jams = 0  # since the last answer
        self._dice = random.Random()

    @asynccontextmanager
    async def turn(self, *rank: int) -> AsyncIterator[float]:
        """Waits for a place in the window, the lowest `rank` first. Gives the moment of sending, for `jam`."""
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
        self._jams = 0
        self.window = min(self._most, self.window + 1 / self.window)

    def jam(self, sent: float, wait_s: float | None = None) -> None:
        """The server had no room for a request of the moment `sent`. wait_s: what it asks to wait.

        Requests that were on their way when the window was cut tell nothing new: they are of the same jam.
        """
        now = asyncio.get_running_loop().time()
        pause = 0.0
        if sent >= self._cut:
            self._cut, self.window = now, max(1.0, self.window / 2)
            self._jams += 1
            pause = self.pause(self._jams)
        if wait_s is not None:
            pause = wait_s + self._dice.uniform(0, min(self._backoff_s, wait_s))  # all who were told so must not come at once
        self._not_before = max(self._not_before, now + pause)

    def pause(self, failures: int) -> float:
        """Seconds after so many failures in a row, with jitter."""
        return self._dice.uniform(0.5, 1) * self._backoff_s * min(LONGEST, 2 ** (failures - 1))


def retry_after(value: str | None, date: str | None = None) -> float | None:
    """Seconds that a `Retry-After` header asks to wait: a number, or a date, by the server's own clock (`Date`) where it tells it.

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
