"""What a computation holds: the largest tensor that any operation made, for claims about memory that no clock and no
machine decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Watch(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self.largest = max(self.largest, each.untyped_storage().nbytes() // each.element_size())
        return result


def largest_tensor(action: Callable[[], Any]) -> int:
    """Elements of the largest storage, views counted with what they are views of."""
    with _Watch() as watch:
        action()
    return watch.largest
