"""The ranks of test_gradients.py: every loss over fixed global batches, through DDP and FSDP2 in worlds of 1 to 4, out
of one start.

    python -m tests.procs.gradients_worker OUT

OUT: {world and strategy: {batch: {loss: {"value": [...], parameter: gradient, ...}}}}. Instead of a batch "scaled": the
first batch, losses multiplied by the world size once too often; "largest": elements of the largest tensor that a rank
holds in the loss of WIDE rows of width 16, by way. A process alone computes the local-scope loss of several ranks rank
by rank.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccr_dist.config import RuntimeConfig, StageConfig
from ccr_dist.data.stream.order import rank_slots
from ccr_dist.losses import tiled
from ccr_dist.losses.adversarial import Discriminator, confusion_loss, discriminator_loss
from ccr_dist.losses.context import Context
from ccr_dist.losses.contrastive import similarities
from ccr_dist.losses.slots import overlap, slot_scores
from ccr_dist.methods.leccr.losses import softened
from ccr_dist.methods.nrccr.losses import hardest_negative
from ccr_dist.train.strategies.strategy import Strategy
from tests.procs import forked
from tests.watch import largest_tensor

DIM, BATCHES, WORLDS, WIDE = 6, (10, 2), (2, 3, 4), 90
WAYS = ("gathered", "tiled", "ring")


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()  # where FSDP looks for frozen blocks
        self.image, self.text = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.temperature = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.image(x).tanh(), self.text(y), self.temperature.exp()


def shares(step: Any, data: dict[str, Tensor], mine: list[int], rival: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """The losses by name, after a forward of the rows `mine`."""
    x, y, group, place = (data[key][mine] for key in ("x", "y", "group", "place"))
    image, text, scale = step(x, y)
    slots, half = image.unflatten(1, (2, -1)), text[:, : DIM // 2]
    context = partial(Context, seed=3, step=5, rows=len(mine))
    ctx = context()

    def soft(ctx: Context = ctx) -> Tensor:
        teacher = ctx.minmax(ctx.transpose(similarities(image, ctx.gather(text))))
        return ctx.mean(softened(teacher, similarities(text, ctx.gather(image)), 0.5))

    def triplet(ctx: Context = ctx) -> Tensor:
        right = place[:, None] == ctx.gather(place)
        return ctx.mean(hardest_negative(similarities(text, ctx.gather(image)), (text * image).sum(1), right, 20.0))

    def weighted() -> Tensor:
        sure = torch.sigmoid((text * image).sum(1))
        return ctx.weighted(sure / ctx.gather(sure).mean()).contrastive(image, text, scale=scale, group=group)

    def local_scope() -> Tensor:
        here = context(scope="local")
        slot_losses = here.matching(scale * slot_scores(slots, here.gather(half)), group=group)
        tiles = context(scope="local", loss="tiled").contrastive(image, text, scale=scale)
        permuted = here.mean((text * here.permute(y)).sum(1))
        return slot_losses + here.contrastive(image, text, scale=scale) + tiles + soft(here) + triplet(here) + permuted

    found = {
        "mean": lambda: ctx.mean((text - image.detach()).square().mean(1)),
        "gather": lambda: ctx.mean((text * ctx.gather(image).square().sum(0)).sum(1).tanh()),
        "weighted": weighted,
        "permute": lambda: ctx.mean((text * ctx.permute(y)).sum(1) + (image * ctx.permute(x, "reversed")).sum(1)),
        "adversarial": lambda: ctx.mean(confusion_loss(rival, text, ctx.permute(y))),
        "discriminator": lambda: ctx.mean(discriminator_loss(rival, text.detach(), y, ctx.permute(y))),
        "matching": lambda: ctx.matching(scale * slot_scores(slots, ctx.gather(half)), group=group),
        "matching in chunks": lambda: ctx.matching(scale * slot_scores(slots, ctx.gather(half)), chunk=4),
        "classify": lambda: ctx.classify(similarities(text, ctx.gather(image)), group=group),
        "minmax": lambda: ctx.mean((text * ctx.minmax(x @ ctx.gather(y).T).square().sum(1, keepdim=True)).sum(1)),
        "soft": soft,
        "overlap": lambda: ctx.mean(overlap(slots)),
        "triplet": triplet,
        "local scope": local_scope,
    }
    for way in WAYS:
        contrastive = context(loss=way).contrastive
        found |= {
            f"contrastive, {way}": partial(contrastive, image, text, scale=scale),
            f"groups, {way}": partial(contrastive, image, text, scale=scale, group=group),
            f"slots, {way}": partial(contrastive, slots, half, scale=scale, group=group, score=slot_scores),
            f"texts alone, {way}": partial(contrastive, image.detach(), text, scale=3.0),
            f"images alone, {way}": partial(contrastive, image, text.detach(), scale=3.0),
            f"temperature alone, {way}": partial(contrastive, image.detach(), text.detach(), scale=scale),
        }
    return found


def wide(way: Any, rows: int) -> None:
    x, y = (torch.randn(rows, 16, requires_grad=True) for _ in range(2))
    Context(seed=3, step=5, rows=rows, loss=way).contrastive(x, y, scale=1.0).backward()


def main(name: str, out: Path) -> None:
    strategy = Strategy(RuntimeConfig(threads=1), name=name)
    torch.manual_seed(0)
    towers, rival = Towers().double(), Discriminator(2 * DIM).double()
    engine = strategy.engine(towers, dict(towers.named_parameters()), StageConfig(steps=1, batch=1, lr=1.0))
    tiled.tile_of = lambda device: 3  # several, the last ones cut

    def loss_and_gradients(loss: str, data: dict[str, Tensor], factor: int = 1) -> dict[str, list[float]]:
        def share(rank: int = strategy.rank, world: int = strategy.world) -> Tensor:
            rows = rank_slots(len(data["x"]), 2, world, rank)
            return factor * shares(engine, data, list(rows), rival)[loss.split(" of ")[0]]()

        rival.zero_grad()
        ranks = int(loss.split(" of ")[1]) if " of " in loss else strategy.world
        value = (
            share() if ranks == strategy.world else torch.stack([share(rank, ranks) for rank in range(ranks)]).mean()
        )
        if loss == "discriminator":
            value.backward()
            strategy.sum_gradients(rival.parameters())
            gradients = {n: p.grad for n, p in rival.named_parameters() if p.grad is not None}
        else:
            engine.backward(value)
            gradients = engine.gradients()
            engine.update(0.0)  # forgets the gradients, and at this rate nothing else
        found = {n: g.flatten().tolist() for n, g in gradients.items() if g.any()}
        assert found, loss
        return {"value": [strategy.sum(value.detach().clone()).item()], **found}

    result: dict[str, Any] = {}
    for batch in BATCHES:
        data = {
            "x": torch.randn(batch, DIM).double(),
            "y": torch.randn(batch, DIM).double(),
            "place": torch.arange(batch),
        }
        data["group"] = torch.tensor([0, 0, 1, 1, 2, 3, 3, 3, 4, 4] if batch == 10 else range(batch))
        local = [f"local scope of {ranks}" for ranks in (WORLDS if strategy.world == 1 else [strategy.world])]
        names = [*(loss for loss in shares(engine, data, [], rival) if loss != "local scope"), *local]
        result[str(batch)] = {loss: loss_and_gradients(loss, data) for loss in names}
        if batch == BATCHES[0]:
            result["scaled"] = {loss: loss_and_gradients(loss, data, factor=strategy.world) for loss in names}
    result["largest"] = {
        way: largest_tensor(partial(wide, way, len(rank_slots(WIDE, 1, strategy.world, strategy.rank)))) for way in WAYS
    }
    if strategy.main:
        out.write_text(json.dumps(result))
    strategy.close()


if __name__ == "__main__":
    importlib.import_module("torch.distributed.fsdp")  # once, not in every rank
    importlib.import_module("torch._dynamo")  # optimisers import it at their first step
    found = {}
    for size, name in [(1, "ddp"), (2, "ddp"), (3, "ddp"), (4, "ddp"), (3, "fsdp2")]:
        forked.world(size, main, name, Path(sys.argv[1]))
        found[f"{size} {name}"] = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[1]).write_text(json.dumps(found))
