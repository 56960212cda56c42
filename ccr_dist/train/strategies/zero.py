"""ZeRO-1, 2 and 3 by DeepSpeed: optimiser state, then gradients, then parameters in partitions.

DeepSpeed gets the stage's own optimiser and clipping. Precision is autocast's, as under the other strategies, so
DeepSpeed itself runs in fp32. `zero_state.py` uses DeepSpeed's internals to move state in and out of flat partitions.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ccr_dist.errors import ConfigError
from ccr_dist.train.optimizers.optimizer import set_rate
from ccr_dist.train.strategies import zero_state
from ccr_dist.train.strategies.base import Engine, MakeOptimizer

OURS = {  # key of a DeepSpeed config: what decides it here
    "train_batch_size": "stages.*.batch", "train_micro_batch_size_per_gpu": "runtime.micro_batch",
    "gradient_accumulation_steps":
    "runtime.micro_batch", "gradient_clipping": "stages.*.clip_norm", "optimizer": "stages.*.optimizer",
    "scheduler": "stages.*.schedule",
    "fp16": "runtime.precision", "bf16": "runtime.precision", "amp": "runtime.precision",
    "torch_autocast": "runtime.precision",
}  # fmt: skip


class _Zero(Engine):
    stage: ClassVar[int]

    def build(self, make_optimizer: MakeOptimizer, options: Mapping[str, Any]) -> None:
        deepspeed = imported()
        settings = self.settings
        if settings.clip == "tensor" and settings.clip_norm is not None:
            raise ConfigError(
                f"stages: clip: tensor needs whole gradients, but {self.name} partitions them flat; use ddp, or clip:"
                " global"
            )
        config = {
            **options,
            "train_micro_batch_size_per_gpu": 1,  # no effect: the order divides batches
            "gradient_accumulation_steps": 1,
            "gradient_clipping": settings.clip_norm or 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        config["zero_optimization"] = {**options.get("zero_optimization", {}), "stage": self.stage}
        self.wrapped, self.optimizer, *_ = deepspeed.initialize(
            model=self.step, optimizer=make_optimizer(self.trained), config=config, dist_init_required=False
        )
        actual = self.wrapped.zero_optimization_stage()
        if actual != self.stage:
            raise ConfigError(
                f"{self.name} was asked for, but DeepSpeed runs ZeRO stage {actual}: look at {sorted(options)}"
            )
        self.inner: torch.optim.Optimizer = self.optimizer.optimizer  # of flat partitions

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        @contextmanager
        def bounded() -> Any:
            self.wrapped.set_gradient_accumulation_boundary(last)
            yield

        return bounded()

    def backward(self, share: Tensor) -> None:
        self.wrapped.backward(share * self.processes.world, scale_wrt_gas=False)

    def update(self, rate: float) -> float:
        set_rate(self.optimizer, rate)
        self.wrapped.step()
        return float(self.wrapped.get_global_grad_norm())

    def bound(self, limits: Mapping[str, tuple[float, float]]) -> None:
        for name, (low, high) in limits.items():
            zero_state.bound(self.trained[name], low, high, stage=self.stage)

    def norms(self, groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
        return {}  # flat partitions: the norm of one parameter would need its whole gradient

    def gradients(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_grad

        return {name: safe_get_full_grad(parameter).clone() for name, parameter in self.trained.items()}

    def weights(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        return self._on_main((name, zero_state.whole(parameter)) for name, parameter in parameters.items())

    def optimizer_state(self) -> dict[str, Tensor]:
        return self._on_main(zero_state.states(self.optimizer, self.trained, stage=self.stage))

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        zero_state.restore(self.optimizer, self.trained, tensors, stage=self.stage)

    def held(self) -> dict[str, int]:
        states = (v for state in self.inner.state.values() for v in state.values() if isinstance(v, Tensor) and v.ndim)
        return {
            "parameters": sum(zero_state.local_bytes(parameter) for parameter in self.step.parameters()),
            "optimizer": sum(v.numel() * v.element_size() for v in states),
        }


class Zero1(_Zero):
    """Optimiser state in partitions."""

    name, stage = "zero1", 1


class Zero2(_Zero):
    """Optimiser state and gradients in partitions."""

    name, stage = "zero2", 2


class Zero3(_Zero):
    """Optimiser state, gradients and parameters in partitions."""

    name, stage = "zero3", 3

    def build(self, make_optimizer: MakeOptimizer, options: Mapping[str, Any]) -> None:
        own = functional.linear
        super().build(make_optimizer, options)
        self._linear, functional.linear = functional.linear, own
        self._strays = zero_state.strays(self.step)

    def regathered(self) -> int:
        """All weights; small ones, which DeepSpeed keeps, and those that no gradient passes are not gathered again."""
        sizes = (getattr(p, "ds_numel", p.numel()) * p.element_size() for p in self.step.parameters())
        return sum(sizes)

    @contextmanager
    def _its_linear(self) -> Iterator[None]:
        """Context manager: DeepSpeed's `linear` in place of PyTorch's, only while its step runs.

        It frees gathered weights and rounds differently in bf16. DeepSpeed itself would replace PyTorch's for
        everything that this process does later.
        """
        own, functional.linear = functional.linear, self._linear
        try:
            yield
        finally:
            functional.linear = own

    def backward(self, share: Tensor) -> None:
        with self._its_linear():  # gradient checkpointing repeats forwards
            super().backward(share)

    def __call__(self, part: str, *inputs: Any) -> Any:
        with self._its_linear():
            outputs = super().__call__(part, *inputs)
        found = zero_state.strays(self.step)
        if found != self._strays:
            self._strays = found
            zero_state.forget_order(self.optimizer)
        return outputs

    def update(self, rate: float) -> float:
        norm = super().update(rate)
        zero_state.forget_gradients(self.optimizer)
        return norm


def imported() -> Any:
    """The module `deepspeed`, configured for this device. Raises ConfigError if it is not installed."""
    # it requires a launcher's variables, which a single process may lack
    os.environ.setdefault("LOCAL_RANK", "0")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise ConfigError(
            f"ZeRO needs DeepSpeed (pip install 'ccr-dist[deepspeed]'), which cannot be imported: {error}"
        ) from None
    # DeepSpeed calls functions that were renamed
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    # it warns about unknown optimisers and skipped steps
    deepspeed.utils.logger.setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        # Gloo reduces; otherwise a C++ extension for reductions in shared memory would be compiled for a minute at the
        # first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
