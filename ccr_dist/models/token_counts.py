"""How many tokens text towers were given in this process, for tokens a second in the training log, and what counts of
texts go by.

A forward that is done `again` (gradient caching) reads the same texts a second time; nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

tokens = 0
_repeating = False


def add(count: int) -> None:
    """Where texts are tokenised: start and end marks included, padding not."""
    global tokens
    tokens += once(count)


def once(count: int) -> int:
    """For a counter of texts: nothing, where these were counted before."""
    return 0 if _repeating else count


@contextmanager
def again() -> Iterator[None]:
    """Around a forward of texts that were counted before."""
    global _repeating
    before, _repeating = _repeating, True
    try:
        yield
    finally:
        _repeating = before
