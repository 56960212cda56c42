"""A bounded cache for values that can be made again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Keeps the values that were made last.

    Safe in threads (two may make the same value) and after a fork. Pickles and copies are empty.

    Args:
        size: Number of values kept, at least 1.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: dict[Hashable, T] = {}

    def __reduce__(self) -> tuple[type[Recent[T]], tuple[int]]:
        return Recent, (self.size,)

    def __len__(self) -> int:
        return len(self._values)

    def pop(self, key: Hashable) -> None:
        """Drops the value under a key, if there is one."""
        self._values.pop(key, None)

    def made(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value kept under `key`, or else the result of make(), for which the oldest value is dropped."""
        value = self._values.get(key)
        if value is None:
            value = self._values[key] = make()
            for oldest in list(self._values)[: max(0, len(self._values) - self.size)]:
                self._values.pop(oldest, None)
        return value
