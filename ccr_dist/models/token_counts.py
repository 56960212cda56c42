"""Counts the tokens that text towers receive in this process, for tokens per second in the training log.

Gradient caching runs a forward pass `again` on the same texts; nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

tokens = 0
_repeating = False


def add(count: int) -> None:
    """Called where texts are tokenised; counts start and end tokens, but not padding."""
    global tokens
    tokens += once(count)


def once(count: int) -> int:
    """The count, or 0 in a repeated forward pass, where the same texts were counted before."""
    return 0 if _repeating else count


@contextmanager
def again() -> Iterator[None]:
    """Context of a forward pass of texts that were counted before."""
    global _repeating
    before, _repeating = _repeating, True
    try:
        yield
    finally:
        _repeating = before
