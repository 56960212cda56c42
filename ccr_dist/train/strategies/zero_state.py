"""Moves state into and out of DeepSpeed's flat partitions, by parameter name. The only file that uses private names of
DeepSpeed (0.19).

A partition is a flat tensor; a parameter, or part of it, is a slice of it. DeepSpeed's own getters return whole
tensors, but only after a first step; its setters fail if sizes do not divide, and its checkpoints require the same
world size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ccr_dist.errors import CheckpointError
from ccr_dist.train.strategies.base import by_parameter


def whole(parameter: nn.Parameter) -> Tensor:
    """A parameter's whole value. Collective under ZeRO-3."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach()
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def local_bytes(parameter: Any) -> int:
    """Bytes that this rank holds of a parameter: under ZeRO-3 its part, and the whole if it is gathered now (small ones
    always are, by default).
    """
    mine = [parameter, parameter.ds_tensor] if hasattr(parameter, "ds_id") else [parameter]
    return sum(tensor.numel() * tensor.element_size() for tensor in mine)


def states(optimizer: Any, trained: Mapping[str, nn.Parameter], *, stage: int) -> Iterator[tuple[str, Tensor]]:
    """Whole optimiser states. Collective; there are none before the first update.

    Args:
        optimizer: DeepSpeed's optimiser.
        trained: The trained parameters by name.
        stage: The ZeRO stage.

    Yields:
        `<parameter>/<state>` and its whole tensor.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    inner: torch.optim.Optimizer = optimizer.optimizer
    if stage < 3:
        _link(optimizer)
    first: dict[str, Any] = next((state for state in inner.state.values() if state), {})
    flat = [key for key, value in first.items() if isinstance(value, Tensor) and value.ndim]
    for name, parameter in trained.items():
        for key in flat:
            value = safe_get_full_optimizer_state(parameter, key)
            yield f"{name}/{key}", value.reshape(_shape(parameter))
        for key in first.keys() - set(flat):  # counters: a partition has one for all of its parameters
            yield f"{name}/{key}", torch.as_tensor(first[key])


def restore(optimizer: Any, trained: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], *, stage: int) -> None:
    """Set the state of every partition from whole tensors.

    Args:
        optimizer: DeepSpeed's optimiser.
        trained: The trained parameters by name.
        tensors: Whole tensors by `<parameter>/<state>`.
        stage: The ZeRO stage.

    Raises:
        CheckpointError: Counters differ between parameters, but ZeRO keeps one for all.
    """
    found = by_parameter(tensors, trained)
    if not found:
        return
    like = next(iter(found.values()))
    flat = [key for key, value in like.items() if value.ndim]
    counters: dict[str, Tensor] = {}
    for key in like.keys() - set(flat):
        values = {float(state[key]) for state in found.values()}
        if len(values) > 1:
            raise CheckpointError(
                f"optimiser state {key!r} differs between parameters ({sorted(values)[:3]}…): ZeRO keeps one for all"
            )
        counters[key] = like[key]
    inner: torch.optim.Optimizer = optimizer.optimizer
    partitions = [parameter for group in inner.param_groups for parameter in group["params"]]
    if stage == 3:
        partitions = list(optimizer.fp32_partitioned_groups_flat)
    for partition in partitions:
        inner.state[partition] = {key: torch.zeros_like(partition) for key in flat} | {
            k: v.clone() for k, v in counters.items()
        }
    if stage < 3:
        _link(optimizer)
    for name, state in found.items():
        for key in flat:
            _put(trained[name], key, state[key], stage)


def _link(optimizer: Any) -> None:
    """Link parameters to their state again. ZeRO-1 and 2 do so once, when the first group has made its first step,
    while other groups still have no state.
    """
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()


def _put(parameter: Any, key: str, value: Tensor, stage: int) -> None:
    if stage < 3:
        parameter.set_full_hp_param(value.to(parameter.device), key)
        return
    from deepspeed.utils import safe_set_local_optimizer_state

    size, world = parameter.ds_tensor.ds_numel, dist.get_world_size()
    padded = torch.nn.functional.pad(value.flatten(), (0, size * world - value.numel()))
    safe_set_local_optimizer_state(parameter, padded[size * dist.get_rank() :][:size].to(parameter.device), key)


@torch.no_grad()
def bound(parameter: Any, low: float, high: float, *, stage: int) -> None:
    """Clamp a parameter, and this rank's part of the optimiser's copy, which would overwrite it in the next step.

    Args:
        parameter: The parameter.
        low: Lowest value.
        high: Highest value.
        stage: The ZeRO stage.
    """
    copies = [parameter.data]  # under ZeRO-3 empty, or whole for a small parameter
    if stage == 3:
        from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param

        copies.append(parameter.ds_tensor.data)
        safe_set_local_fp32_param(parameter, safe_get_local_fp32_param(parameter).clamp(low, high))
    elif parameter._hp_mapping is not None:
        copies.append(parameter._hp_mapping.get_hp_fragment())
    for copy in copies:
        copy.clamp_(low, high)


def strays(step: nn.Module) -> int:
    """Number of parameters that ZeRO-3 has seen used outside of their own module; it gathers them for the module that
    used them.
    """
    found: Any = (module._external_params for module in step.modules())
    return sum(map(len, found))


def forget_order(optimizer: Any) -> None:
    """Make ZeRO-3 fetch parameters on demand until it has learnt their order again.

    An order that it learnt before it saw a stray (a parameter of another language) lacks that one, and would be an
    error in the next step.
    """
    coordinator = optimizer.parameter_offload.get_param_coordinator()
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()


def forget_gradients(optimizer: Any) -> None:
    """Clear gradients: ZeRO-3 only overwrites those of the step before, so that a parameter which a batch does not use
    would be moved by its last gradient again.
    """
    optimizer.grad_partitions_flat_buffer.zero_()
    if optimizer.offload_optimizer:
        for partition in optimizer.fp32_partitioned_groups_flat:
            partition.grad.zero_()


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
