"""FSDP2: parameters, gradients and optimiser state sharded by PyTorch's `fully_shard`, every tensor along its first
axis.

Frozen blocks are gathered when they run and freed afterwards; everything else is one group that stays gathered from the
first forward to the end of the backward. Autocast decides the precision of matrix products, as under the other
strategies; shards and reductions are fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ccr_dist.errors import ConfigError
from ccr_dist.train.state.sharded_tensors import Shards
from ccr_dist.train.strategies.base import Engine, MakeOptimizer


class Fsdp2(Engine):
    """Shards everything over all ranks."""

    name = "fsdp2"

    def build(self, make_optimizer: MakeOptimizer, options: Mapping[str, Any]) -> None:
        for name, parameter in self.trained.items():
            if parameter.ndim == 0:
                raise ConfigError(
                    f"strategy fsdp2 cannot train {name}, which is a scalar: train with ddp or zero, or give it the"
                    " shape (1,)"
                )
        if self.settings.clip == "tensor" and self.settings.clip_norm is not None:
            raise ConfigError(
                "stages: clip: tensor needs whole gradients, which fsdp2 does not hold; use ddp, or clip: global"
            )
        names = list(self.trained)
        mesh = init_device_mesh(self.processes.device.type, (self.processes.world,))
        scalars = {parameter for parameter in self.step.parameters() if parameter.ndim == 0}
        frozen = blocks(self.step)
        # counted before they are shards; weights that two blocks share are counted once
        shared = {parameter for block in frozen for parameter in block.parameters()}
        self._freed = sum(parameter.numel() * parameter.element_size() for parameter in shared)
        for block in frozen:
            fully_shard(block, mesh=mesh, ignored_params=scalars)
        fully_shard(self.step, mesh=mesh, ignored_params=scalars)
        self.wrapped = self.step
        now = dict(self.step.named_parameters())
        self.trained = {name: now[name] for name in names}
        self.optimizer = make_optimizer(self.trained)

    def regathered(self) -> int:
        return self._freed

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        @contextmanager
        def synchronised() -> Any:
            self.wrapped.set_requires_gradient_sync(last)
            yield

        return synchronised()

    def actual(self, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, nn.Parameter]:
        now = dict(self.step.named_parameters())
        return {name: now[name] for name in parameters}

    def kept(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        if not self.processes.in_shards:
            return super().kept(tensors)
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        if isinstance(tensors, Shards):
            tensors = tensors.fill({key: self._like(tensors, key) for key in tensors})
        super().restore(tensors)

    def _like(self, tensors: Shards, key: str) -> Tensor:
        """An empty tensor for a state: sharded like its parameter if it has the same shape, otherwise whole."""
        parameter = self.trained.get(key.rpartition("/")[0])
        shape, dtype = tensors.like(key)
        if not isinstance(parameter, DTensor) or parameter.shape != shape:
            return torch.empty(shape, dtype=dtype)
        return torch.empty_like(parameter, dtype=dtype)

    def rewritten(self) -> None:
        for module in self.step.modules():
            if isinstance(module, FSDPModule):
                # weights gathered for a forward without gradient are kept, and would be used again
                module.reshard()

    def placed(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        if isinstance(value, DTensor) or not isinstance(parameter, DTensor):
            return super().placed(value, parameter)
        whole = value.to(self.processes.device, copy=True)
        # every rank has read the file
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def blocks(step: nn.Module) -> list[nn.Module]:
    """The frozen transformer blocks: members of module lists in the backbone, called as modules one after the other."""
    found: list[nn.Module] = []
    for module in step.get_submodule("backbone").modules():
        if isinstance(module, nn.ModuleList):
            found += [
                block
                for block in module
                if next(block.parameters(), None) is not None and type(block).forward is not nn.Module.forward
            ]
    inner = {id(sub) for block in found for sub in block.modules() if sub is not block}
    return [block for block in found if id(block) not in inner and not any(p.requires_grad for p in block.parameters())]
