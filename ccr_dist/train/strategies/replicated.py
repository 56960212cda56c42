"""A single process, and DDP: every rank holds all parameters, and gradients are averaged."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from ccr_dist.train.optimizers.lazy_tables import is_table
from ccr_dist.train.strategies.base import Engine, MakeOptimizer


class Single(Engine):
    """One process; nothing is reduced."""

    name = "single"
    replicated = True

    def build(self, make_optimizer: MakeOptimizer, options: Mapping[str, Any]) -> None:
        self.wrapped, self.optimizer = self.step, make_optimizer(self.trained)


class Ddp(Engine):
    """PyTorch's DistributedDataParallel."""

    name = "ddp"
    replicated = True

    def build(self, make_optimizer: MakeOptimizer, options: Mapping[str, Any]) -> None:
        self.optimizer = make_optimizer(self.trained)
        # With find_unused_parameters, DDP keeps its first bucket layout. Otherwise it would rebuild the buckets after
        # the first backward, and a resumed process would reduce its first step in another layout than one that was
        # never interrupted: different bits from three ranks on. It also lets a rank without rows take part.
        device = self.processes.device
        # Buffers are frozen tables, so they need no synchronisation. (torch 2.13 renamed the option.)
        renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        still: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        ids = [device.index] if device.type == "cuda" else None
        # Rows of lazy tables are exchanged before the update; DDP would reduce whole tables.
        tables = [
            name for name, parameter in self.step.named_parameters() if self.settings.lazy_tables and is_table(name)
        ]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.step, tables)
        self.wrapped = DistributedDataParallel(self.step, device_ids=ids, find_unused_parameters=True, **still)

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self.wrapped.no_sync()
