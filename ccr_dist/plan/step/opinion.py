"""A second opinion on a step's peak memory: torch's own MemTracker, which watches the same step beside the meter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker


class _Tracker(MemTracker):
    """Hooks no gradients of modules with frozen parameters, which it would ask for theirs; sums are the same. A module
    that runs again, as a discriminator does, is taken up anew, where MemTracker would refuse it.
    """

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None:
        if not self._mod_tracker.is_bw:
            self.memory_tracking.pop(module, None)
        super()._pre_fw_hook(module, inputs)

    def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = True) -> Any:
        trained = all(parameter.requires_grad for parameter in module.parameters())
        return super()._track_module_params_and_buffers(module, install_grad_hooks and trained)


class Opinion:
    """A context manager around a step.

    Args:
        held: modules, optimisers and tensors that are there before the step.

    Attributes:
        peak: most bytes that were live, once the step is over.
    """

    peak: int

    def __init__(self, held: Iterable[Any]) -> None:
        self._tracker = _Tracker()
        self._tracker.track_external(*held)

    def __enter__(self) -> Opinion:
        self._tracker.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._tracker.__exit__(*error)
        found = self._tracker.get_tracker_snapshot("peak")
        self.peak = max(parts[next(key for key in parts if str(key).endswith("Total"))] for parts in found.values())
