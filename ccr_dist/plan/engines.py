"""Measures what an engine's own work costs the host: hooks of modules and parameters, buckets and partitions, in Python
and C++. Real engines train a chain of layers too small to compute or send anything; the chain is made longer by some
layers, and a step takes so much longer.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ccr_dist import resources
from ccr_dist.config import StageConfig
from ccr_dist.plan.cost.copies import LAYER
from ccr_dist.train.optimizers.optimizer import make_optimizer
from ccr_dist.train.processes import Processes
from ccr_dist.train.strategies.base import Engine
from ccr_dist.train.strategies.choose import deepspeed_config, engine_of

PARTS = ("forward", "backward", "update")
ROWS, WIDTH = 1252, 8  # of a matrix that ZeRO-3 cuts: more elements than it keeps whole
LESS, MORE = 4, 16  # layers of the shorter chain, and by how many the longer one is longer
STEPS, SKIPPED = 12, 4
SETTINGS = StageConfig(steps=1000, batch=1, lr=1e-4, clip_norm=1.0)
# layers by which the chain is made longer, for each strategy
KINDS = {
    "ddp": ("small",),
    "zero1": ("small",),
    "zero2": ("small",),
    "zero3": ("small", "cut", "frozen"),
    "fsdp2": ("small", "block"),
}
SHAPES = {"small": (WIDTH,), "cut": (ROWS, WIDTH), "frozen": (ROWS, WIDTH), "block": (WIDTH,)}
CUT = 4 * ROWS * WIDTH  # bytes


class _Layer(nn.Module):
    """A module with two tensors, as most of a transformer's."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class _Chain(nn.Module):
    """A step of a few small layers, and of so many of a kind. `frozen` and `block` are blocks of a backbone that is not
    trained, of as many tensors as a transformer's.
    """

    def __init__(self, kind: str, count: int) -> None:
        super().__init__()
        shape, fixed = SHAPES[kind], kind in ("frozen", "block")
        self.idle = nn.Parameter(torch.zeros(WIDTH))  # DDP warns where all are used
        self.net = nn.ModuleList([_Layer(WIDTH) for _ in range(LESS)])
        self.net += [_Layer(*shape) for _ in range(0 if fixed else count)]
        blocks = [nn.Sequential(*(_Layer(*shape) for _ in range(LAYER // 2))) for _ in range(count if fixed else 0)]
        self.backbone = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})
        self.backbone.requires_grad_(False)

    def forward(self, part: str, x: Tensor) -> Tensor:
        for layer in (*self.net, *self.backbone["blocks"]):  # type: ignore[misc]
            x = layer(x)
        return x.sum()


class _Here(Processes):
    """This rank of a process group that is there."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), device
        self.group, self.in_shards = None, False


def engines(
    device: torch.device, clock: Literal["wall", "cpu"], alpha: dict[str, float], beta: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Seconds of the host's work, by strategy and by `KIND PART`: of a trained tensor (of those that ZeRO-3 cuts:
    `cut`), and of a frozen block of `copies.LAYER` tensors. Strategies whose library is not installed are left out.
    Collective.

    Args:
        device: of this rank.
        clock: as for `measure`.
        alpha, beta: of collectives, which `messages` has by themselves.
    """
    _name_the_rank()
    processes = _Here(device)
    alone = {kind: _slope("single", kind, processes, clock) for kind in SHAPES}
    found: dict[str, dict[str, float]] = {}
    for strategy, kinds in KINDS.items():
        if strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
            continue
        found[strategy] = {}
        for kind in kinds:
            slope = _slope(strategy, kind, processes, clock)
            for part in PARTS:
                beside = alone[kind][part] + _sending(strategy, kind, part, alpha, beta)
                found[strategy][f"{kind} {part}"] = max(0.0, slope[part] - beside)
    return found


def _sending(strategy: str, kind: str, part: str, alpha: dict[str, float], beta: dict[str, float]) -> float:
    """Seconds of collectives of one more tensor, or block."""
    return {
        ("zero3", "small", "update"): alpha["all_gather"],
        ("zero3", "cut", "forward"): CUT * beta["all_gather"],
        ("zero3", "cut", "backward"): CUT * beta["reduce_scatter"],
        ("zero3", "frozen", "forward"): LAYER * CUT * beta["all_gather"],
        ("fsdp2", "block", "forward"): alpha["all_gather"],
        ("fsdp2", "block", "backward"): alpha["all_gather"],
    }.get((strategy, kind, part), 0.0)


def _slope(strategy: str, kind: str, processes: Processes, clock: str) -> dict[str, float]:
    """Seconds by which one more tensor, or frozen block, makes a step longer, by part."""
    short = _step(strategy, _Chain(kind, 0), processes, clock)
    long = _step(strategy, _Chain(kind, MORE), processes, clock)
    tensors = MORE * (2 if kind in ("small", "cut") else 1)
    return {part: (long[part] - short[part]) / tensors for part in PARTS}


def _step(strategy: str, chain: _Chain, processes: Processes, clock: str) -> dict[str, float]:
    """Seconds of a step, by part: the first quartile of some."""
    now: Callable[[], float] = time.process_time if clock == "cpu" else time.perf_counter
    chain.to(processes.device)
    trained = {name: parameter for name, parameter in chain.named_parameters() if parameter.requires_grad}
    engine: Engine = engine_of(strategy)(
        processes, chain, trained, lambda some: make_optimizer(SETTINGS, some, processes.device), SETTINGS,
        options=_options(strategy),
    )  # fmt: skip
    engine.train()
    x = torch.ones(ROWS, WIDTH, device=processes.device)
    spent: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(STEPS):
        result: list[Any] = []
        works: tuple[Callable[[], Any], ...] = (
            lambda result=result: result.append(engine("outputs", x)),  # type: ignore[misc]
            lambda result=result: engine.backward(result[0]),  # type: ignore[misc]
            lambda: engine.update(1e-4),
        )
        dist.barrier()
        for part, work in zip(PARTS, works, strict=True):
            begun = now()
            work()
            if processes.device.type == "cuda":
                torch.cuda.synchronize(processes.device)
            spent[part].append(now() - begun)
    return {part: sorted(rows[SKIPPED:])[(STEPS - SKIPPED) // 4] for part, rows in spent.items()}


def _options(strategy: str) -> dict[str, Any]:
    """The DeepSpeed config that comes with ccr-dist."""
    return deepspeed_config(str(resources.DEEPSPEED.files()[strategy])) if strategy.startswith("zero") else {}


def _name_the_rank() -> None:
    """DeepSpeed reads the variables of a launcher."""
    rank, world = str(dist.get_rank()), str(dist.get_world_size())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
