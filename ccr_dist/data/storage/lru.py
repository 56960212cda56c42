"""A bounded cache for what can be made again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The values made last, at most `size` ≥ 1. Safe in threads (which may make a value twice) and after fork; pickled
    and copied empty.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: dict[Hashable, T] = {}

    def __reduce__(self) -> tuple[type[Recent[T]], tuple[int]]:
        return Recent, (self.size,)

    def __len__(self) -> int:
        return len(self._values)

    def pop(self, key: Hashable) -> None:
        """Forgets a value, if it is kept."""
        self._values.pop(key, None)

    def made(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value kept under `key`, or else what make() gives, in place of the one made first."""
        value = self._values.get(key)
        if value is None:
            value = self._values[key] = make()
            for oldest in list(self._values)[: max(0, len(self._values) - self.size)]:
                self._values.pop(oldest, None)
        return value
