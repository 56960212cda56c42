"""Optimiser, learning rate and clipping of a stage. The rate is a pure function of the step, so no scheduler state
exists.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ccr_dist.config import StageConfig
from ccr_dist.errors import ConfigError
from ccr_dist.train.optimizers.lazy_tables import is_table, lazily


def rate(stage: StageConfig, k: int) -> float:
    """Learning rate of step `k` (0 <= k < steps): linear warm-up, then cosine or linear to zero, or constant.

    "bert" is BertAdam's: with x = k / steps, x / warmup before the warm-up's end (zero in the first step), then (1 +
    cos(pi x)) / 2, which falls a little short of 1 there. "hf_linear" is `get_linear_schedule_with_warmup` of
    transformers: the warm-up is cut to whole steps and begins with a rate of zero.
    """
    steps = stage.schedule_steps or stage.steps
    if stage.schedule == "bert":
        x = k / steps
        return stage.lr * (x / stage.warmup if x < stage.warmup else 0.5 * (1 + math.cos(math.pi * x)))
    if stage.schedule == "hf_linear":
        warm = int(stage.warmup * steps)
        return stage.lr * (k / warm if k < warm else (steps - k) / max(1, steps - warm))
    warm = round(stage.warmup * steps)
    if k < warm:
        return stage.lr * (k + 1) / warm
    x = (k - warm) / max(1, steps - warm)
    factor = {"constant": 1.0, "linear": 1 - x, "cosine": 0.5 * (1 + math.cos(math.pi * x))}[stage.schedule]
    return stage.lr * factor


def set_rate(optimizer: Any, learning_rate: float) -> None:
    """Give every group its rate: the stage's times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]


def make_optimizer(
    stage: StageConfig, parameters: Mapping[str, nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The stage's optimiser over named parameters, in groups by weight decay and by factor on the rate (`scale`).

    Raises ConfigError where `lr_scale`, `decay_vectors` or `lazy_tables` means nothing that is trained.
    """
    _check_names(stage, parameters)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        prefix = max((prefix for prefix in stage.lr_scale if name.startswith(prefix)), key=len, default=None)
        scale = 1.0 if prefix is None else stage.lr_scale[prefix]
        groups.setdefault((stage.weight_decay if is_decayed(stage, name, parameter) else 0.0, scale), []).append(
            parameter
        )
    made = [{"params": members, "weight_decay": decay, "scale": scale} for (decay, scale), members in groups.items()]
    common: dict[str, Any] = {"lr": stage.lr, "betas": stage.betas, "eps": stage.eps}
    kind: type[torch.optim.Optimizer] = HfAdamW if stage.optimizer == "hf_adamw" else BertAdam
    if stage.optimizer == "adamw":
        kind, common["fused"] = torch.optim.AdamW, True
    return (lazily(kind) if stage.lazy_tables else kind)(made, **common)


def is_decayed(stage: StageConfig, name: str, parameter: Tensor) -> bool:
    """Matrices are decayed. Vectors (biases, norms, temperatures) are where the stage names them; embedding tables
    where it says so: rows of unseen words would shrink towards zero with every step, as they do in the published DASD
    code.
    """
    if is_table(name):
        return stage.decay_tables
    return parameter.ndim >= 2 or any(fnmatchcase(name, pattern) for pattern in stage.decay_vectors)


def _check_names(stage: StageConfig, parameters: Mapping[str, nn.Parameter]) -> None:
    checks: list[tuple[str, Iterable[str], Callable[[str, str], bool]]] = [
        ("lr_scale", stage.lr_scale, str.startswith),
        ("decay_vectors", stage.decay_vectors, fnmatchcase),
    ]
    for key, wanted, fits in checks:
        for each in wanted:
            if not any(fits(name, each) for name in parameters):
                raise ConfigError(
                    f"stages: {key} names '{each}', but no trained parameter is called so; one is"
                    f" {next(iter(parameters), '(none)')}"
                )
    if stage.lazy_tables and not any(map(is_table, parameters)):
        raise ConfigError(
            "stages: lazy_tables is set, but no embedding table is trained (method.frontend.rows); leave it out"
        )


class _Adam(torch.optim.Optimizer, ABC):
    """The moments of Adam, m = b1 m + (1 - b1) g and v = b2 v + (1 - b2) g^2; what is made of them is `_move`."""

    counts = False  # whether the steps of each parameter are counted, as `state["step"]`

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Parameters without a gradient stay as they are, and so do their moments."""
        assert closure is None
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    if self.counts:
                        state["step"] = torch.zeros(())
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                if self.counts:
                    state["step"] = state["step"] + 1
                state["exp_avg"].lerp_(gradient, 1 - first)
                state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
                self._move(parameter, state, group)

    @abstractmethod
    def _move(self, parameter: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any]) -> None:
        """Moves a parameter by its moments, in place."""


class BertAdam(_Adam):
    """Adam without bias correction and with decoupled weight decay, as released with BERT, MLA and DASD.

        p = p - lr (m / (sqrt(v) + eps) + decay p)

    Its schedule and its clipping of each tensor are `StageConfig.schedule: bert` and `clip: tensor`.
    """

    def _move(self, parameter: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any]) -> None:
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-group["lr"])


class HfAdamW(_Adam):
    """AdamW as transformers had it until version 5, released with LECCR.

        p = p - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps),  then  p = p - lr decay p

    torch's adds eps after the bias correction, which in the first steps makes it up to 1 / sqrt(1 - b2) times smaller,
    and decays first.
    """

    counts = True

    def _move(self, parameter: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any]) -> None:
        t, (first, second) = float(state["step"]), group["betas"]
        size = group["lr"] * math.sqrt(1 - second**t) / (1 - first**t)
        parameter.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-size)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])


def clip(gradients: Sequence[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale gradients, whose norm is `norm`, down to a norm of at most `max_norm`, in place."""
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(list(gradients), factor)


def clip_each(gradients: Sequence[Tensor], max_norm: float) -> None:
    """Scale every gradient down to a norm of at most `max_norm`, each by itself."""
    for gradient in gradients:
        clip([gradient], max_norm, torch.linalg.vector_norm(gradient))
