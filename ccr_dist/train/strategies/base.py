"""What a strategy makes of a stage: an engine that runs the step, reduces gradients, updates, and gives state out by
parameter name.

Gradients mean the same everywhere: that of the global batch's loss, and zero for a parameter that the batch does not
use (flat partitions know no "none", so nobody does: moments fade alike under every strategy). An update whose gradient
norm is not finite is not made: weights and moments of all ranks stay as they are, bit for bit.
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
        step: the module that is called; on the device, its trained parameters need gradients and no others do.
        trained: those parameters by name; weights of a resumed run are in them already.
        make_optimizer: the stage's optimiser over named parameters.
        settings: of the stage.
        scaler: the loss scaler of fp16, where the strategy can have one.
    """

    name: ClassVar[str]  # of the strategy
    replicated: ClassVar[bool] = False  # every rank holds all weights: the step may be wrapped again for the next stage

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
        """Wrap `step` and make `optimizer`. ConfigError for a stage that the strategy cannot train."""

    wrapped: Any  # what is called: `step`, or a wrapper around it
    optimizer: Any
    # where copies for checkpoints are made, again and again (new memory is slow); None: in new memory
    _copies: dict[str, Tensor] | None = None
    # gradient norms by parameter of the last update, where it was not made, as `norms` gives them
    refused: Mapping[str, float] = {}

    def __call__(self, part: str, *inputs: Any) -> Any:
        return self.wrapped(part, *inputs)

    def train(self, mode: bool = True) -> None:
        """Not collective."""
        self.wrapped.train(mode)

    def eval(self) -> None:
        """Not collective."""
        self.train(False)

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        """Around the forward and backward of one of several parts of a batch: gradients are reduced with the last,
        where that can be.
        """
        return nullcontext()

    def backward(self, share: Tensor) -> None:
        """Back-propagate a share of the global loss. Wrappers average over ranks and shares add up, therefore the
        factor.
        """
        share = share * self.processes.world
        (share if self.scaler is None else self.scaler.scale(share)).backward()

    def update(self, rate: float) -> float:
        """Clip, step, forget the gradients. Returns the whole gradient's norm before clipping; not finite: nothing was
        changed.
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
        """Put trained parameters back between their limits, wherever copies of them lie. Not collective."""
        for name, (low, high) in limits.items():
            local(self.trained[name]).clamp_(low, high)
        if limits:
            self.rewritten()

    def fill(self) -> None:
        """Zero gradients in place of none, and those of lazy tables from all ranks, once a step."""
        if self._filled:
            return
        self._filled = True
        for parameter in self.trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            elif parameter.grad.is_sparse:
                parameter.grad = whole_rows(parameter.grad, self.processes.world)

    def norms(self, groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Norm of the gradient of each group of parameters, before `update`; nothing where gradients are not held by
        parameter.
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
        """Of the global batch, before `update`, whole, on every rank."""
        self.fill()
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        return {name: full(p.grad) / scale for name, p in self.trained.items() if p.grad is not None}

    def weights(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Of any parameters of the step, for a checkpoint (`kept`)."""
        return self.kept(self.actual(parameters).items())

    def optimizer_state(self) -> dict[str, Tensor]:
        """`<parameter>/<state>`, for a checkpoint (`kept`)."""
        return self.kept(
            (f"{name}/{key}", value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64))
            for name, parameter in self.trained.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        )

    def reuse_copies(self) -> None:
        """From now on, copies for a checkpoint overwrite those of the one before (new memory is slow).

        The caller has each checkpoint on disk before it asks for the next. Not collective.
        """
        self._copies = {}

    def kept(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Copies on the CPU of tensors that lie as parameters or their states do: whole on rank 0, elsewhere nothing;
        or, where a checkpoint is written in shards, every rank's part.
        """
        return self._on_main((name, full(tensor)) for name, tensor in tensors)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over `optimizer_state` of any strategy and world size. CheckpointError on states of parameters that are
        not trained.
        """
        for name, states in by_parameter(tensors, self.trained).items():
            parameter = self.trained[name]
            self.optimizer.state[parameter] = {
                key: self._placed(key, value, parameter) for key, value in states.items()
            }

    def rewritten(self) -> None:  # noqa: B027 (where parameters are what is computed with, there is nothing to do)
        """To be called after anything but `update` has written into the parameters."""

    def _placed(self, key: str, value: Tensor, parameter: nn.Parameter) -> Tensor:
        if key == "step":  # AdamW keeps it on the CPU unless fused; the fused one wants it beside the parameter
            return value.to(parameter.device if self.optimizer.defaults.get("fused") else "cpu", copy=True)
        return self.placed(value, parameter)

    def placed(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        """A copy of a whole tensor of the parameter's shape, as the parameter lies. Not collective: every rank has the
        whole.
        """
        return value.to(parameter.device, copy=True)

    def actual(self, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, nn.Parameter]:
        """The parameters of these names as the engine has them now (wrapping may have replaced them). Not
        collective.
        """
        return parameters

    def held(self) -> dict[str, int]:
        """Bytes of parameters and of optimiser state on this rank. Not collective."""
        states = (
            v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor) and v.ndim
        )
        return {"parameters": sum(map(local_bytes, self.step.parameters())), "optimizer": sum(map(local_bytes, states))}

    def _on_main(self, whole: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """One tensor after the other, so that no rank holds more than one whole tensor beside what it keeps."""
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
    """The whole of a tensor that may be sharded (collective then) or sparse."""
    from torch.distributed.tensor import DTensor

    if tensor.is_sparse:
        return tensor.to_dense()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Any) -> Tensor:
    """This rank's part of a tensor that may be sharded, or what a sparse one holds; the same memory."""
    from torch.distributed.tensor import DTensor

    if tensor.is_sparse:
        return tensor._values()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_bytes(tensor: Tensor) -> int:
    mine = local(tensor)
    return mine.numel() * mine.element_size()


def by_parameter(tensors: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """`<parameter>/<state>` as {parameter: {state: tensor}}. Raises CheckpointError on states of parameters that are
    not there.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, state = key.rpartition("/")
        if name not in trained:
            raise CheckpointError(f"the checkpoint has optimiser state of {name!r}, which this run does not train")
        states.setdefault(name, {})[state] = value
    return states
