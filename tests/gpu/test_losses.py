"""Contrastive losses on a GPU: value and gradients of float64 on the CPU, tiled as gathered, for features of every
precision.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ccr_dist.losses import tiled
from ccr_dist.losses.context import Context
from ccr_dist.losses.slots import slot_scores
from tests.gpu.on import DEVICE, needs_gpu
from tests.nearness import close

pytestmark = needs_gpu
ROWS, DIM = 37, 24
LOSSES = ["gathered", "tiled", "ring"]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def inputs(dtype: torch.dtype, device: str, *shape: int) -> list[Tensor]:
    """x, y and the scale; on every device the same values, rounded to the type."""
    dice = torch.Generator().manual_seed(0)
    sides = (torch.randn(*(shape or (ROWS, DIM)), generator=dice, dtype=torch.float64) for _ in range(2))
    widest = torch.float64 if dtype == torch.float64 else torch.float32
    found = [*(side.to(dtype) for side in sides), torch.tensor([14.0], dtype=widest)]
    return [part.to(device).requires_grad_() for part in found]


def computed(loss: str, dtype: torch.dtype, device: str, groups: bool, half: torch.dtype | None = None) -> list[Tensor]:
    """The loss and its gradients, in float64 on the CPU; `half`: of autocast, around the forward alone."""
    given = inputs(dtype, device)
    group = torch.arange(ROWS, device=device) // 2 if groups else None
    context = Context(seed=0, step=0, rows=ROWS, device=device, loss=loss)
    with torch.autocast(device, half, enabled=half is not None):
        value = context.contrastive(given[0], given[1], scale=given[2], group=group)
    value.backward()
    return [value.detach().double().cpu(), *(part.grad.double().cpu() for part in given if part.grad is not None)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_the_loss_of_the_cpu_in_float64(loss: str, groups: bool, dtype: torch.dtype) -> None:
    expected = computed("gathered", torch.float64, "cpu", groups)
    found = computed(loss, dtype, DEVICE, groups)
    assert len(found) == 4
    close(found, expected, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_does_not_round_the_logits(loss: str, half: torch.dtype) -> None:
    found = computed(loss, torch.float32, DEVICE, True, half)
    close(found, computed("gathered", torch.float64, "cpu", True), tolerance=1e-4)


@pytest.mark.parametrize("tile", [5, 16])
def test_tiles_of_any_size_give_the_same_slot_scores(tile: int) -> None:
    found = []
    for size in (tile, 10**6):
        x, _, scale = inputs(torch.float64, DEVICE, ROWS, 3, DIM)
        y = inputs(torch.float64, DEVICE)[1]
        rows = tiled.symmetric(x, y, scale=scale, counts=[ROWS], score=slot_scores, tile=size)
        rows.mean().backward()
        found.append([rows.detach(), x.grad, y.grad, scale.grad])
    close(*found)
