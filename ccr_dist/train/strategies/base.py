"""The engine of a stage: runs the step, reduces gradients, updates weights, and exports state by parameter name.

Gradients mean the same under every strategy: that of the global batch's loss, and zero for a parameter that the batch
does not use. (Flat partitions have no "none", so no strategy uses it, and moments decay alike everywhere.) If a
gradient norm is not finite, the update is skipped: weights and moments of all ranks stay bit-identical.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ccr_dist.config import StageConfig
from ccr_dist.errors import CheckpointError, ConfigError
from ccr_dist.train.optimizers.lazy_tables import dense_parts, set_lazy, whole_rows
from ccr_dist.train.optimizers.optimizer import clip, clip_each, set_rate
from ccr_dist.train.processes import Processes

MakeOptimizer = Callable[[Mapping[str, nn.Parameter]], torch.optim.Optimizer]


class Engine(ABC):
    """A stage's step on this rank. All methods are collective unless they say otherwise.

    Args:
        processes: The processes of the run.
        step: The module to call, on the device; only its trained parameters require gradients.
        trained: These parameters by name; they already have the weights of a resumed run.
        make_optimizer: Makes the stage's optimiser for named parameters.
        settings: Settings of the stage.
        scaler: The loss scaler of fp16, if any.
        options: The DeepSpeed config of the launch profile, if any.

    Attributes:
        name: Name of the strategy.
        replicated: Whether every rank holds all weights, so that the next stage can wrap the same step again.
        trained: The trained parameters by name, as the engine has them now.
        wrapped: What is called: `step`, or a wrapper around it.
        optimizer: The optimiser.
        refused: Gradient norms by parameter of the last update, if it was skipped, as `norms` returns them.
    """

    name: ClassVar[str]
    replicated: ClassVar[bool] = False

    def __init__(
        self,
        processes: Processes,
        step: nn.Module,
        trained: Mapping[str, nn.Parameter],
        make_optimizer: MakeOptimizer,
        settings: StageConfig,
        *,
        scaler: Any = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.processes, self.step, self.settings, self.scaler = processes, step, settings, scaler
        self.trained: Mapping[str, nn.Parameter] = trained
        self._filled = False
        if settings.lazy_tables and not self.replicated:
            raise ConfigError(
                f"stages: lazy_tables needs whole tables on every process, but {self.name} cuts them: use ddp"
            )
        set_lazy(step, settings.lazy_tables)
        self.build(make_optimizer, options or {})

    @abstractmethod
    def build(self, make_optimizer: MakeOptimizer, options: Mapping[str, Any]) -> None:
        """Set `wrapped` and `optimizer`. Raises ConfigError for a stage that the strategy cannot train."""

    wrapped: Any
    optimizer: Any
    # buffers for copies of checkpoints, reused since new memory is slow; None: new memory each time
    _copies: dict[str, Tensor] | None = None
    refused: Mapping[str, float] = {}

    def __call__(self, part: str, *inputs: Any) -> Any:
        return self.wrapped(part, *inputs)

    def train(self, mode: bool = True) -> None:
        """Switch to training mode. Not collective."""
        self.wrapped.train(mode)

    def eval(self) -> None:
        """Switch to evaluation mode. Not collective."""
        self.train(False)

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        """Context manager around forward and backward of one part of a batch that is processed in parts.

        Args:
            last: Whether this is the last part, with which gradients are reduced (if the strategy can wait).
        """
        return nullcontext()

    def backward(self, share: Tensor) -> None:
        """Back-propagate this rank's share of the global loss.

        Shares add up, but wrappers average over ranks; therefore the share is multiplied by the world size.
        """
        share = share * self.processes.world
        (share if self.scaler is None else self.scaler.scale(share)).backward()

    def update(self, rate: float) -> float:
        """Clip gradients, step, and clear gradients.

        Args:
            rate: The learning rate.

        Returns:
            Norm of the whole gradient before clipping. If it is not finite, no weight was changed.
        """
        settings = self.settings
        set_rate(self.optimizer, rate)
        self.fill()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        gradients = dense_parts(self.trained.values())
        whole = full(nn.utils.get_total_norm(gradients))
        norm = float(whole)
        finite = math.isfinite(norm)
        self.refused = {} if finite else self._norms({name: [name] for name in self.trained})
        if settings.clip_norm is not None and finite:
            if settings.clip == "global":
                clip(list(map(local, gradients)), settings.clip_norm, whole)
            else:
                clip_each(gradients, settings.clip_norm)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._filled = False
        return norm

    @torch.no_grad()
    def bound(self, limits: Mapping[str, tuple[float, float]]) -> None:
        """Clamp trained parameters and all copies of them. Not collective.

        Args:
            limits: Lowest and highest value by parameter name.
        """
        for name, (low, high) in limits.items():
            local(self.trained[name]).clamp_(low, high)
        if limits:
            self.rewritten()

    def fill(self) -> None:
        """Once per step: replace missing gradients by zeros, and collect those of lazy tables from all ranks."""
        if self._filled:
            return
        self._filled = True
        for parameter in self.trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            elif parameter.grad.is_sparse:
                parameter.grad = whole_rows(parameter.grad, self.processes.world)

    def norms(self, groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Gradient norms before `update`.

        Args:
            groups: Names of parameters by group.

        Returns:
            Norm by group; empty if gradients are not held by parameter.
        """
        self.fill()
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        return {name: norm / scale for name, norm in self._norms(groups).items()}

    def _norms(self, groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
        squares = torch.stack(
            [
                torch.stack([torch.linalg.vector_norm(local(self.trained[n].grad)) for n in names])
                .double()
                .square()
                .sum()
                for names in groups.values()
            ]
        )
        if not self.replicated:
            self.processes.sum(squares)
        return dict(zip(groups, squares.sqrt().tolist(), strict=True))

    # State, by parameter name: what a checkpoint holds.

    def gradients(self) -> dict[str, Tensor]:
        """Whole gradients of the global batch before `update`, on every rank."""
        self.fill()
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        return {name: full(p.grad) / scale for name, p in self.trained.items() if p.grad is not None}

    def weights(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Copies of any parameters of the step, for a checkpoint (`kept`)."""
        return self.kept(self.actual(parameters).items())

    def optimizer_state(self) -> dict[str, Tensor]:
        """Copies of the optimiser's state by `<parameter>/<state>`, for a checkpoint (`kept`)."""
        return self.kept(
            (f"{name}/{key}", value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64))
            for name, parameter in self.trained.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        )

    def reuse_copies(self) -> None:
        """From now on, copies for a checkpoint overwrite those for the one before, since new memory is slow.

        The caller must have each checkpoint on disk before it asks for the next. Not collective.
        """
        self._copies = {}

    def kept(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Copy tensors to the CPU for a checkpoint.

        Args:
            tensors: (name, tensor), distributed as parameters or their states are.

        Returns:
            Whole tensors on rank 0 and nothing elsewhere; for a sharded checkpoint, each rank's part.
        """
        return self._on_main((name, full(tensor)) for name, tensor in tensors)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load `optimizer_state`, saved under any strategy and world size.

        Raises:
            CheckpointError: It has states of parameters that are not trained.
        """
        for name, states in by_parameter(tensors, self.trained).items():
            parameter = self.trained[name]
            self.optimizer.state[parameter] = {
                key: self._placed(key, value, parameter) for key, value in states.items()
            }

    def rewritten(self) -> None:  # noqa: B027 (nothing to do if parameters are computed with directly)
        """Call this after anything but `update` has written to the parameters."""

    def _placed(self, key: str, value: Tensor, parameter: nn.Parameter) -> Tensor:
        if key == "step":  # AdamW keeps it on the CPU unless fused; the fused one wants it beside the parameter
            return value.to(parameter.device if self.optimizer.defaults.get("fused") else "cpu", copy=True)
        return self.placed(value, parameter)

    def placed(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        """A copy of a whole tensor, distributed like a parameter. Not collective: every rank has the whole tensor.

        Args:
            value: The whole tensor.
            parameter: A parameter of the same shape.
        """
        return value.to(parameter.device, copy=True)

    def actual(self, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, nn.Parameter]:
        """The parameters of the same names as the engine has them now: wrapping may replace them. Not collective."""
        return parameters

    def held(self) -> dict[str, int]:
        """Bytes of parameters and of optimiser state on this rank. Not collective."""
        states = (
            v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor) and v.ndim
        )
        return {"parameters": sum(map(local_bytes, self.step.parameters())), "optimizer": sum(map(local_bytes, states))}

    def regathered(self) -> int:
        """Bytes of weights, of all ranks together, that a step gathers once more for its backward, at most."""
        return 0

    def _on_main(self, whole: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Copies on rank 0, made one by one, so that no rank holds more than one whole tensor besides them."""
        kept: dict[str, Tensor] = {}
        for name, value in whole:
            if self.processes.main:
                known = self._copies.get(name) if self._copies is not None else None
                if known is None or known.shape != value.shape or known.dtype != value.dtype:
                    known = torch.empty(value.shape, dtype=value.dtype)
                kept[name] = known.copy_(value.detach())
        if self._copies is not None:
            self._copies |= kept
        return kept


def full(tensor: Tensor) -> Tensor:
    """The whole tensor of a sharded (then collective) or sparse one."""
    from torch.distributed.tensor import DTensor

    if tensor.is_sparse:
        return tensor.to_dense()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Any) -> Tensor:
    """This rank's part of a sharded tensor, or the values of a sparse one; shares its memory."""
    from torch.distributed.tensor import DTensor

    if tensor.is_sparse:
        return tensor._values()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_bytes(tensor: Tensor) -> int:
    """Bytes of this rank's part of a tensor."""
    mine = local(tensor)
    return mine.numel() * mine.element_size()


def by_parameter(tensors: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """Group states by parameter.

    Args:
        tensors: Tensors by `<parameter>/<state>`.
        trained: The trained parameters by name.

    Returns:
        Tensors by parameter and state.

    Raises:
        CheckpointError: There are states of parameters that are not trained.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, state = key.rpartition("/")
        if name not in trained:
            raise CheckpointError(f"the checkpoint has optimiser state of {name!r}, which this run does not train")
        states.setdefault(name, {})[state] = value
    return states
