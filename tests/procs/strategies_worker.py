"""The ranks of test_strategies.py: every strategy in worlds of 1 to 4, out of one start.

    python strategies_worker.py OUT

OUT: {world: {strategy: what `proofs` finds}}. Gradients are those of float64 where the strategy can do that; DeepSpeed
computes in float32. The loss of one of the mutants is multiplied by the world size, and so is the gradient of one
parameter of the other.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ccr_dist.config import RuntimeConfig, StageConfig
from ccr_dist.data.stream.order import rank_slots
from ccr_dist.train.optimizers.optimizer import make_optimizer
from ccr_dist.train.strategies.base import Engine
from ccr_dist.train.strategies.choose import engine_of
from ccr_dist.train.strategies.strategy import Strategy
from tests.procs import forked
from tests.procs.gradients_worker import DIM, Towers, shares

NAMES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")  # ddp: a process alone is "single"
LOSSES = ("contrastive, gathered", "slots, tiled", "temperature alone, ring", "weighted")
ZERO: dict[str, Any] = {"stage3_param_persistence_threshold": 0}  # by default ZeRO-3 keeps small tensors whole
OFFLOAD = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
SETTINGS = StageConfig(steps=1, batch=10, lr=0.1, weight_decay=0.1, lr_scale={"text": 0.5})


class Model(Towers):
    """What strategies stumble over: frozen blocks, a shared tensor, a parameter for each language, sizes that do not
    divide.

    Args:
        factor: of the gradient of the temperature, for the mutant.
        width: of the blocks and of a hidden layer.
    """

    def __init__(self, factor: float = 1.0, width: int = 7) -> None:
        super().__init__()
        self.factor = factor
        self.backbone.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(DIM, width), nn.Linear(width, DIM)) for _ in range(2)
        )
        self.backbone.requires_grad_(False)
        self.wide = nn.Sequential(
            nn.Linear(DIM, width), nn.GELU(), nn.Linear(width, width - 2), nn.Linear(width - 2, DIM)
        )
        self.again = nn.Linear(DIM, DIM)
        self.again.weight = self.image.weight
        self.languages = nn.ParameterDict({lang: torch.randn(5, DIM) for lang in ("es", "de")})

    def forward(self, x: Tensor, y: Tensor, lang: str = "es") -> tuple[Tensor, Tensor, Tensor]:
        for block in self.backbone.blocks:
            x = x + block(x)
        own = self.languages[lang]
        image, text, _ = super().forward(x, y + y @ own.T @ own)
        heat = self.temperature
        return (
            image + self.again(x),
            text + self.wide(y),
            (self.factor * heat + (1 - self.factor) * heat.detach()).exp(),
        )


def made(name: str) -> Strategy:
    """A strategy, and in its name after a blank, what else its launch profile says."""
    strategy = Strategy(RuntimeConfig(threads=1), name=name.split()[0])
    strategy._options = {"zero_optimization": ZERO | (OFFLOAD if "offload" in name else {})}
    return strategy


def proofs(strategy: Strategy, name: str) -> dict[str, Any]:
    """Everything that is found about one strategy; the same on every rank."""
    dtype = torch.float32 if name.startswith("zero") else torch.float64
    return {
        "right": {
            batch: gradients(strategy, dtype, batch, losses) for batch, losses in {10: LOSSES, 2: LOSSES[:1]}.items()
        },
        "loss scaled": gradients(strategy, dtype, 10, LOSSES[:1], scaled=strategy.world),
        "temperature scaled": gradients(strategy, dtype, 10, LOSSES[:1], factor=strategy.world),
        "step": plain_step(strategy, dtype),
        "step in parts": plain_step(strategy, dtype, parts=2),
        "step scaled": plain_step(strategy, dtype, scaled=strategy.world),
        "skipped": skipped(strategy),
        "bounded": bounded(strategy),
        "held": held(strategy),
    }


def engine(strategy: Strategy, model: nn.Module, settings: StageConfig = SETTINGS, *, plain: bool = False) -> Engine:
    """`plain`: SGD in the place of AdamW, which hides what multiplies a gradient."""

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        part = [[p for n, p in parameters.items() if n.startswith("text") == slow] for slow in (False, True)]
        return torch.optim.SGD(
            [{"params": members, "scale": scale} for members, scale in zip(part, (1.0, 0.5), strict=True)], lr=0.1
        )

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    make = sgd if plain else partial(make_optimizer, settings, device=strategy.device)
    return engine_of(strategy.name)(strategy, model, trained, make, settings, options=strategy._options)


def rows(batch: int, strategy: Strategy) -> list[int]:
    return list(rank_slots(batch, 2, strategy.world, strategy.rank))


def content(batch: int, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(batch)
    data = {
        "x": torch.randn(batch, DIM).to(dtype),
        "y": torch.randn(batch, DIM).to(dtype),
        "place": torch.arange(batch),
    }
    return data | {"group": torch.tensor([0, 0, 1, 1, 2, 3, 3, 3, 4, 4] if batch == 10 else range(batch))}


def share(engine: Any, loss: str, batch: int, mine: list[int], dtype: torch.dtype, lang: str = "es") -> Tensor:
    return shares(lambda x, y: engine(x, y, lang), content(batch, dtype), mine, nn.Identity())[loss]()


def gradients(
    strategy: Strategy,
    dtype: torch.dtype,
    batch: int,
    losses: Sequence[str],
    *,
    scaled: float = 1.0,
    factor: float = 1.0,
) -> dict[str, Any]:
    """{loss: {"value", "norm", parameter: gradient}}. Languages take turns: what a batch does not use has a gradient of
    zero.
    """
    torch.manual_seed(0)
    step = engine(strategy, Model(factor).to(dtype), plain=True)

    def one(loss: str, lang: str) -> dict[str, list[float]]:
        value = scaled * share(step, loss, batch, rows(batch, strategy), dtype, lang)
        step.backward(value)
        gradients = {name: gradient.flatten().tolist() for name, gradient in step.gradients().items()}
        whole = strategy.sum(value.detach().clone()).item()
        return {"value": [whole], "norm": [step.update(0.0)], **gradients}

    return {loss: one(loss, lang) for loss, lang in zip(losses, itertools.cycle(("es", "de")), strict=False)}


def plain_step(
    strategy: Strategy, dtype: torch.dtype, *, parts: int = 1, scaled: float = 1.0
) -> dict[str, list[float]]:
    """What one clipped step of SGD adds to each parameter. In parts: gradients of several backward passes are added
    up.
    """
    torch.manual_seed(0)
    # it would hide what multiplies all of them
    settings = SETTINGS if scaled == 1 else SETTINGS.model_copy(update={"clip_norm": None})
    step = engine(strategy, Model().to(dtype), settings, plain=True)
    before = step.weights(step.trained)
    mine = rows(10, strategy)
    cuts = [mine[part::parts] for part in range(parts)]
    for number, cut in enumerate(cuts):
        with step.accumulate(last=number == parts - 1):
            value = share(step, "mean", 10, cut, dtype)  # a share of the mean of `cut` alone
            step.backward(scaled * value * strategy.sum(torch.tensor(float(len(cut)))).item() / 10)
    step.update(0.1)
    return {name: (after - before[name]).flatten().tolist() for name, after in step.weights(step.trained).items()}


def skipped(strategy: Strategy) -> list[dict[str, bool]]:
    """A step, one in which the last rank alone has a gradient that is not finite, and one more."""
    torch.manual_seed(0)
    step = engine(strategy, Model())

    def update(factor: float = 1.0) -> float:
        step.backward(share(step, "mean", 10, rows(10, strategy), torch.float32) * factor)
        return step.update(0.1)

    update()
    before = local(step)
    norm = update(math.nan if strategy.rank == strategy.world - 1 else 1.0)
    unchanged = local(step) == before
    finite = math.isfinite(update())
    return strategy.all(
        {"refused": not math.isfinite(norm), "unchanged": unchanged, "goes on": finite and local(step) != before}
    )


def bounded(strategy: Strategy) -> dict[str, list[float]]:
    """The temperature beyond its limit, and steps of gradients up, up and down, as CLIP's is bounded after each."""
    torch.manual_seed(0)
    model = Model()
    with torch.no_grad():
        model.temperature.fill_(5.0)
    step = engine(strategy, model, plain=True)
    limits = {"temperature": (0.0, math.log(100))}
    step.bound(limits)
    seen = step.weights(step.trained).get("temperature", torch.zeros(0)).tolist()
    for sign in (-1.0, -1.0, 1.0):
        heat = step(*(content(10, torch.float32)[key][rows(10, strategy)] for key in ("x", "y")), "es")[2]
        step.backward(sign * heat.sum() * 1e-3 / strategy.world)
        step.update(0.1)
        step.bound(limits)
        seen += step.weights(step.trained).get("temperature", torch.zeros(0)).tolist()
    return {"temperature": seen}


def local(step: Engine) -> list[bytes]:
    """All that this rank holds of weights and of optimiser state. As bytes: where the last rank's part is longer than
    what is left of a parameter, ZeRO-3 leaves memory as it found it, and that may be NaN, which equals nothing.
    """
    inner = getattr(step, "inner", step.optimizer)
    weights = [getattr(p, "ds_tensor", p) for p in step.step.parameters()]
    states = [value for state in inner.state.values() for value in state.values()]
    assert any(state.ndim for state in states)
    return [(t.to_local() if isinstance(t, DTensor) else t).detach().numpy().tobytes() for t in (*weights, *states)]


def held(strategy: Strategy) -> dict[str, Any]:
    """Bytes on every rank after a step, of a model that is mostly matrices, and of the whole."""
    torch.manual_seed(0)
    model = Model(width=131)
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    step = engine(strategy, model)
    step.backward(share(step, "mean", 10, rows(10, strategy), torch.float32))
    step.update(0.1)
    return {"ranks": strategy.all(step.held()), "whole": {"parameters": whole, "optimizer": 2 * trained}}


def main(out: Path, world: int) -> None:
    found = {}
    for name in (*NAMES, *(["zero3 offload"] * (world == 2))):
        strategy = made(name)
        found[name] = proofs(strategy, name)
    if strategy.main:
        (out / f"{world}.json").write_text(json.dumps(found))
    strategy.close()


if __name__ == "__main__":
    assert not dist.is_initialized()
    forked.prepare()
    for size in (1, 2, 3, 4):
        forked.world(size, main, Path(sys.argv[1]), size)
