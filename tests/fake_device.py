"""Runs code on a device that is not there: tensors on it have no values, those on the CPU are real, and an operation on
tensors of both raises, as on a GPU. So what was left on the CPU is found on any machine.

    with device("gadget") as name:
        step.to(name)
        step("outputs", stage, batch.to(name))

`gadget` is a device for backends written in Python, which every build of torch has; "cuda" needs a CUDA build, but no
GPU (`tests/gpu/fake.sh`). Where a GPU would be waited for, a result is made up: numbers that are asked for (`item`,
`tolist`) are 0, all values of `unique` differ; `nonzero`, whose result has a shape that depends on values, raises.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree, backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

GADGET = "gadget"
aten = torch.ops.aten


@contextlib.contextmanager
def device(name: str = GADGET) -> Iterator[str]:
    """Inside, the device is there; its name."""
    if name == GADGET and not hasattr(torch, GADGET):
        backend_registration._setup_privateuseone_for_python_backend(GADGET, backend_module=_Module())
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(values, device=...) is made on the CPU, then copied
    try:
        # FakeTensorMode below: while it is there, torch does not look for a driver.
        exchanged = mock.patch.object(nn.Module, "_apply", _apply), mock.patch.object(FakeTensor, "tolist", _zeros)
        with exchanged[0], exchanged[1], FakeTensorMode() as fake, _Device(name, fake):
            yield name
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


class _Device(TorchDispatchMode):
    """Hands operations that have to do with the device to FakeTensorMode; all others are done."""

    def __init__(self, name: str, fake: FakeTensorMode) -> None:
        super().__init__()
        self._name, self._fake = name, fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat, structure = _pytree.tree_flatten((args, kwargs))
        there = any(isinstance(each, FakeTensor) for each in flat)
        if not there and torch.device(kwargs.get("device") or "cpu").type != self._name:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            with unset_fake_temporarily():
                return torch.zeros((), dtype=flat[0].dtype).item()
        args, kwargs = _pytree.tree_unflatten([self._without_values(each) for each in flat], structure)
        if func is aten._unique2.default:
            return args[0].flatten(), *(torch.zeros_like(args[0], dtype=torch.int64) for _ in range(2))
        return func(*args, **kwargs)

    def _without_values(self, value: Any) -> Any:
        real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self._fake.from_tensor(value) if real else value


def _apply(self: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """In the place of `nn.Module._apply`, which exchanges the data of a parameter and cannot do so for one without
    values: new parameters, wherever the old ones are held. Buffers are exchanged in these modules alone, as torch does.
    """
    changed: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for module in self.modules():
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in changed:
                made = nn.Parameter(change(parameter.detach()), parameter.requires_grad)
                changed[id(parameter)] = parameter, made
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = change(buffer)
    for holder in gc.get_objects():
        if issubclass(type(holder), nn.Module) and "_parameters" in vars(holder):
            for name, parameter in holder._parameters.items():
                if id(parameter) in changed:
                    holder._parameters[name] = changed[id(parameter)][1]
    return self


def _zeros(self: Tensor) -> Any:
    """In the place of `Tensor.tolist`."""
    with unset_fake_temporarily():
        return torch.zeros(self.shape).tolist()


class _Module(backend_registration._DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def current_device(self) -> int:
        return 0
