"""The discriminator and its opponent: sizes, formulas in plain loops, and that neither's step touches the other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ccr_dist.losses.adversarial import Discriminator, confusion_loss, discriminator_loss
from tests.nearness import close


def test_published_size():
    assert sum(parameter.numel() for parameter in Discriminator(1024).parameters()) == 295_554


def parts(rows=3, free=5, dim=4, seed=0):
    torch.manual_seed(seed)
    judge = Discriminator(free + dim).double()
    f_sa, y, strange = (torch.randn(rows, width, dtype=torch.float64, requires_grad=True) for width in (free, dim, dim))
    return judge, f_sa, y, strange


def logits(judge, pair):
    """Two logits of one pair, neuron by neuron."""
    values = list(pair)
    for layer in judge.layers:
        if isinstance(layer, nn.Linear):
            values = [
                sum(w * v for w, v in zip(row, values, strict=True)) + b
                for row, b in zip(layer.weight, layer.bias, strict=True)
            ]
        else:
            values = [torch.tanh(v) for v in values]
    return values


def cross_entropy(values, which):
    """Mean over two logits of binary cross entropy against one-hot class `which`."""
    total = 0
    for place, value in enumerate(values):
        p = 1 / (1 + torch.exp(-value))
        total = total - (torch.log(p) if place == which else torch.log(1 - p))
    return total / 2


@pytest.mark.long
def test_discriminator_loss_and_gradients_by_loops():
    judge, f_sa, y, strange = parts()
    wanted = list(judge.parameters())
    rows = [
        0.5
        * (
            cross_entropy(logits(judge, [*f_sa[i], *strange[i]]), 1)
            + cross_entropy(logits(judge, [*f_sa[i], *y[i]]), 0)
        )
        for i in range(3)
    ]
    slow = sum(rows) / 3
    fast = discriminator_loss(judge, f_sa, y, strange).mean()
    close(fast, slow)
    for a, b in zip(torch.autograd.grad(fast, wanted), torch.autograd.grad(slow, wanted), strict=True):
        close(a, b)


@pytest.mark.long
def test_confusion_loss_and_gradient_by_loops():
    judge, f_sa, _, strange = parts()
    slow = sum(cross_entropy(logits(judge, [*f_sa[i], *strange[i]]), 0) for i in range(3)) / 3
    fast = confusion_loss(judge, f_sa, strange).mean()
    close(fast, slow)
    close(torch.autograd.grad(fast, f_sa)[0], torch.autograd.grad(slow, f_sa)[0])


def test_the_encoders_step_leaves_discriminator_and_semantics_alone():
    judge, f_sa, _, strange = parts()
    confusion_loss(judge, f_sa, strange).sum().backward()
    assert f_sa.grad.abs().sum() > 0
    assert strange.grad is None
    assert all(parameter.grad is None for parameter in judge.parameters())
    judge.requires_grad_(False)  # the opponent's gradient needs no trainable judge either
    assert torch.autograd.grad(confusion_loss(judge, f_sa, strange).sum(), f_sa)[0].abs().sum() > 0


def test_classes_are_the_right_way_round():
    """A discriminator that has learned gives a small loss on its own task and a large one to its opponent."""
    judge, f_sa, y, strange = parts(rows=32)
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        discriminator_loss(judge, f_sa.detach(), y.detach(), strange.detach()).mean().backward()
        optimizer.step()
    assert discriminator_loss(judge, f_sa, y, strange).mean() < 0.1
    assert confusion_loss(judge, f_sa, strange).mean() > math.log(2)
    assert confusion_loss(judge, f_sa, y).mean() < 0.2  # true pairs are taken for true
