"""How a run is spread over processes: the processes, the precision, and an engine for every stage (`strategies/`).

Loop and methods know neither rank arithmetic nor wrappers: they call an engine, hand it their loss share, and ask it
for state by name.
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
    """What is wrapped for distribution: backbone and method networks behind one `forward`, since wrappers hook nothing
    else.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.backbone = method.backbone
        self.net = method.net
        self.method = method  # no module: its networks are the two above

    def forward(self, part: str, *inputs: Any) -> Any:
        """`part` is a function of the method: outputs(stage, batch), encode_visual(visual, mask, description) or
        encode_text(texts, lang, companion).
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
        runtime: precision, threads, timeout.
        world: refuse to run on any other number of processes; None: take what the launcher started.
        name: of the strategy; None: the launch profile's, or ddp (with one process: none).

    Raises:
        ConfigError: the launcher started something else than what was asked for, or the device cannot do the precision.
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
        # Of what really runs; the same on every rank.
        self.facts = {"strategy": self.name, "precision": self.precision, **self.describe()}
        if self._options:
            self.facts["deepspeed"] = self._options

    def engine(self, step: nn.Module, trained: Mapping[str, nn.Parameter], settings: StageConfig) -> Engine:
        """The step as a stage trains it. Whatever the strategy replaces in `step` stays replaced."""
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
        """The profile puts parameters or optimiser state into the memory of the CPU."""
        return any(key.startswith("offload") for key in self._options.get("zero_optimization", {}))

    @property
    def replicated(self) -> bool:
        """Every rank holds all weights."""
        return engine_of(self.name).replicated

    @property
    def shards_weights(self) -> bool:
        """Each rank holds a part of the weights: a forward pass gathers them, so that all ranks make the same ones."""
        return self.name in ("zero3", "fsdp2")

    def autocast(self) -> Any:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision])
