"""How a run is distributed: its processes, precision, and an engine for every stage.

Loop and methods know neither ranks nor wrappers: they call an engine, give it their share of the loss, and ask it for
state by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ccr_dist.config import RuntimeConfig, StageConfig
from ccr_dist.errors import ConfigError
from ccr_dist.train.optimizers.optimizer import make_optimizer
from ccr_dist.train.processes import Processes
from ccr_dist.train.strategies.base import Engine
from ccr_dist.train.strategies.choose import engine_of, requested

if TYPE_CHECKING:
    from ccr_dist.methods.base import Method


class Step(nn.Module):
    """The module that is wrapped for distribution: backbone and method networks behind one `forward`, the only call
    that wrappers hook.

    Args:
        method: The method, built.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.backbone = method.backbone
        self.net = method.net
        self.method = method  # not a module; its networks are the two above

    def forward(self, part: str, *inputs: Any) -> Any:
        """Call a function of the method.

        Args:
            part: Its name: outputs(stage, batch), encode_visual(visual, mask, description) or encode_text(texts, lang,
                companion).
            inputs: Its arguments.
        """
        if part == "outputs":
            return self.method.outputs(*inputs)
        if part == "encode_visual":
            return self.method.encode_visual(*inputs)
        if part == "encode_text":
            return self.method.encode_text(*inputs)
        raise ValueError(f"unknown part {part!r} of a step")


class Strategy(Processes):
    """Processes, precision and strategy of a run.

    Args:
        runtime: The run config's `runtime`.
        world: Number of processes that is required; None accepts what the launcher started.
        name: Name of the strategy; None: the launch profile's, otherwise ddp, or "single" on one process.

    Attributes:
        name: Name of the strategy.
        precision: fp32, bf16 or fp16.
        scaler: The loss scaler of fp16, or None.
        in_shards: Whether checkpoints are written in shards.
        facts: What really runs, for records; the same on every rank.

    Raises:
        ConfigError: The launcher started something else, or the device or strategy does not support the precision.
    """

    def __init__(self, runtime: RuntimeConfig, *, world: int | None = None, name: str | None = None) -> None:
        wanted, self._options = requested(name)
        sharded = wanted not in (None, "ddp")
        super().__init__(threads=runtime.threads, world=world, group=sharded, timeout=runtime.timeout)
        if sharded:
            self.name = str(wanted)
        else:
            self.name = "ddp" if self.world > 1 else "single"
        self.precision = runtime.precision
        if self.precision == "fp16":
            if self.device.type != "cuda":
                raise ConfigError(
                    "runtime.precision: fp16 needs a GPU (its loss scaling is a CUDA feature here); use bf16 or fp32"
                )
            if self.name.startswith("zero"):
                raise ConfigError(
                    f"runtime.precision: fp16 needs a loss scale, which {self.name} does not have here; use bf16"
                )
        self.scaler = torch.amp.GradScaler(self.device.type) if self.precision == "fp16" else None
        self.in_shards = runtime.checkpoint == "sharded"
        self.facts = {"strategy": self.name, "precision": self.precision, **self.describe()}
        if self._options:
            self.facts["deepspeed"] = self._options

    def engine(self, step: nn.Module, trained: Mapping[str, nn.Parameter], settings: StageConfig) -> Engine:
        """Make the engine of a stage. Changes `step` for good, where a strategy replaces its parameters. Collective.

        Args:
            step: The step.
            trained: Its trained parameters by name.
            settings: Settings of the stage.
        """
        self.same({**dict(step.named_parameters()), **dict(step.named_buffers())})
        kind = engine_of(self.name if any(p.requires_grad for p in step.parameters()) else "single")
        return kind(
            self,
            step,
            trained,
            lambda parameters: make_optimizer(settings, parameters, self.device),
            settings,
            scaler=self.scaler,
            options=self._options,
        )

    @property
    def offload(self) -> bool:
        """Whether the profile keeps parameters or optimiser state in the CPU's memory."""
        return any(key.startswith("offload") for key in self._options.get("zero_optimization", {}))

    @property
    def replicated(self) -> bool:
        """Whether every rank holds all weights."""
        return engine_of(self.name).replicated

    @property
    def shards_weights(self) -> bool:
        """Whether ranks hold parts of the weights, so that a forward gathers them and all ranks must make the same
        ones.
        """
        return self.name in ("zero3", "fsdp2")

    def autocast(self) -> Any:
        """Context manager: autocast to the run's precision."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision])
