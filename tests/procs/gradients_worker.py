"""One rank of test_gradients.py: every loss of `Context` on a fixed global batch, through DDP as the strategy sets it up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ccr_dist.config import RuntimeConfig
from ccr_dist.data.order import rank_slots
from ccr_dist.losses.adversarial import Discriminator, confusion_loss, discriminator_loss
from ccr_dist.losses.contrastive import similarities
from ccr_dist.losses.slots import slot_scores
from ccr_dist.losses.soft import softened
from ccr_dist.train.context import Context
from ccr_dist.train.strategy import Strategy

DIM = 6


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.temperature = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.image(x).tanh(), self.text(y), self.temperature.exp()


def main(batch: int, out: Path, broken: str) -> None:
    strategy = Strategy(RuntimeConfig(threads=1))
    torch.manual_seed(0)
    towers, rival = Towers().double(), Discriminator(2 * DIM).double()
    x, y = torch.randn(batch, DIM).double(), torch.randn(batch, DIM).double()
    group = torch.arange(batch) // 2  # pairs of rows show the same thing
    mine = list(rank_slots(batch, 2, strategy.world, strategy.rank))
    wrapped = strategy.wrap(towers)
    result = {}
    names = ("mean", "contrastive", "groups", "permute", "adversarial", "discriminator")
    for loss_name in (*names, "local_contrastive", "local_chunks", "soft", "vision", "minmax"):
        towers.zero_grad()
        rival.zero_grad()
        context = Context(seed=3, step=5, rows=len(mine))
        image, text, scale = wrapped(x[mine], y[mine])
        if loss_name == "mean":
            share = context.mean(functional.mse_loss(text, image.detach(), reduction="none").mean(dim=-1))
        elif loss_name in ("contrastive", "groups"):
            share = context.contrastive(image, text, scale=scale, group=group[mine] if loss_name == "groups" else None)
        elif loss_name == "permute":
            share = context.mean((text * context.permute(y[mine])).sum(dim=-1))
        elif loss_name == "adversarial":
            share = context.mean(confusion_loss(rival, text, context.permute(y[mine])))
        elif loss_name in ("local_contrastive", "local_chunks"):
            scores = scale * slot_scores(image.unflatten(1, (2, -1)), context.gather(text[:, : DIM // 2]))
            chunk = 4 if loss_name == "local_chunks" else None
            share = context.matching(scores, group=group[mine] if chunk is None else None, chunk=chunk)
        elif loss_name == "soft":
            teacher = context.minmax(context.transpose(similarities(image, context.gather(text))))
            share = context.mean(softened(teacher, similarities(text, context.gather(image)), 0.5))
        elif loss_name == "vision":
            share = context.classify(similarities(text, context.gather(image)), group=group[mine])
        elif loss_name == "minmax":
            share = context.mean((text * context.minmax(x[mine] @ context.gather(y[mine]).T).square().sum(1, keepdim=True)).sum(1))
        else:
            share = context.mean(discriminator_loss(rival, text.detach(), y[mine], context.permute(y[mine])))
        if loss_name == "discriminator":
            share.backward()
            strategy.sum_gradients(rival.parameters())
            named = dict(rival.named_parameters())
        else:
            strategy.backward(share)
            named = dict(towers.named_parameters())
        if broken == "scaled":
            for p in named.values():
                if p.grad is not None:
                    p.grad *= strategy.world
        gradients = {name: p.grad.flatten().tolist() for name, p in named.items() if p.grad is not None and p.grad.abs().sum() > 0}
        assert gradients, loss_name
        result[loss_name] = {"value": [strategy.sum(share.detach().clone()).item()], **gradients}
    if strategy.main:
        out.write_text(json.dumps(result))
    strategy.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
