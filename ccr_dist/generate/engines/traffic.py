"""Limits how many requests a shared server gets at once: a window that shrinks when the server is overloaded and grows
with its answers.

Additive increase, multiplicative decrease, as in TCP: an overload halves the window and pauses all sending, every
answer widens it a little. Requests are sent in order, so that none starves. Nothing here knows what a request is.
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

LONGEST = 60  # longest pause that the server did not ask for, in multiples of the first
FEWEST = 4  # smallest window after an overload: any server can take this many, and some refusals are random


class Traffic:
    """The window of one event loop. Not thread-safe.

    Args:
        most: Largest window: requests at once.
        backoff_s: Seconds of the first pause; later pauses are longer.
    """

    def __init__(self, most: int, backoff_s: float) -> None:
        self._most, self._backoff_s = most, backoff_s
        self.window = float(most)
        self._out = 0  # requests in flight
        self._waiting: list[tuple[tuple[int, ...], int, asyncio.Future[None]]] = []
        self._count = itertools.count()
        self._not_before = self._last = self._cut = 0.0  # loop time
        self._setbacks = 0  # since the last answer
        self._dice = random.Random()

    @asynccontextmanager
    async def turn(self, *rank: int) -> AsyncIterator[float]:
        """Wait for a place in the window.

        Args:
            rank: Lower ranks are sent first.

        Yields:
            Loop time of sending, for `setback`.
        """
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
        """Report an answer: widens the window."""
        self._setbacks = 0
        self.window = min(self._most, self.window + 1 / self.window)

    def setback(self, sent: float, *, jam: bool, wait_s: float | None = None) -> None:
        """Report a failed request. Requests already in flight at the last setback belong to that one.

        Args:
            sent: Loop time of sending.
            jam: Whether the server was overloaded.
            wait_s: Seconds that the server asks everybody to wait.
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
            # jitter, so that not all clients return at once
            until = now + wait_s + self._dice.uniform(0, min(self._backoff_s, wait_s))
        self._not_before = max(self._not_before, until)

    def shrink(self, sent: float) -> None:
        """Halve the window, since a request failed under load; not for one sent (loop time) before the last halving."""
        if sent >= self._cut:
            self._cut = asyncio.get_running_loop().time()
            self.window = max(min(FEWEST, self._most), self.window / 2)

    def pause(self) -> float:
        """Seconds to pause, with jitter; doubled by every second setback without any answer in between."""
        return self._dice.uniform(0.5, 1) * self._backoff_s * min(LONGEST, 2 ** (max(0, self._setbacks - 1) // 2))


def retry_after(value: str | None, date: str | None = None) -> float | None:
    """Parse a `Retry-After` header.

    Args:
        value: The header: seconds or a date.
        date: The `Date` header, so that a date is read by the server's own clock; None: our clock.

    Returns:
        Seconds to wait, or None if there is no valid header.
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
