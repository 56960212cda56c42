"""Texts are laid into shared rows and taken out again without losing, doubling or mixing up a position."""

from __future__ import annotations

import random

import pytest
import torch

from ccr_dist.models.packing import ROW, Packing, pack


@pytest.mark.parametrize("seed", range(20))
def test_rows_hold_every_text_once_and_little_else(seed):
    dice = random.Random(seed)
    lengths = [dice.randint(2, 40) for _ in range(dice.randint(1, 300))]
    rows = pack(lengths, ROW)
    assert sorted(text for row in rows for text in row) == list(range(len(lengths)))
    loads = [sum(lengths[text] for text in row) for row in rows]
    assert max(loads) <= ROW
    assert sum(load <= ROW / 2 for load in loads) <= 1, "two of them would fit into one"
    assert rows == pack(lengths, ROW), "every rank and every repetition packs alike"


@pytest.mark.parametrize("lengths", [[1], [3, 3], [2, 64, 5, 5, 70, 7], [9] * 50])
def test_there_and_back(lengths):
    packing, longest = Packing(lengths, 77), max(lengths)
    x = torch.full((len(lengths), longest, 2), torch.nan)
    for text, length in enumerate(lengths):
        x[text, :length] = torch.stack([torch.full((length,), float(text)), torch.arange(length)], dim=-1)
    rows = packing.lay(torch.where(x.isnan(), -1.0, x))
    assert rows.shape[:2] == packing.mask.shape[:2] and rows.shape[1] <= max(ROW, longest)
    back = packing.texts(rows)
    for text, length in enumerate(lengths):
        assert torch.equal(back[text, :length], x[text, :length])
    assert torch.equal(packing.times(rows, torch.eye(2).expand(len(lengths), 2, 2))[..., 1], rows[..., 1])
    matrices = torch.arange(len(lengths)).float()[:, None, None] * torch.ones(2, 1)
    assert torch.equal(
        packing.texts(packing.times(torch.ones_like(rows), matrices))[:, 0, 0], 2.0 * torch.arange(len(lengths))
    )


def test_no_row_is_longer_than_the_tower_allows():
    assert Packing([5, 6, 7, 8], limit=12).mask.shape[1] <= 12


def test_a_position_sees_its_own_text_alone():
    lengths = [30, 20, 40, 10, 3]
    packing = Packing(lengths)
    numbers = torch.arange(1.0, 6)[:, None].expand(5, 40)
    owner = packing.lay(numbers)
    seen = packing.mask.sum(-1)
    for text, length in enumerate(lengths, start=1):
        here = packing.texts(seen)[text - 1, :length]
        assert torch.equal(here, torch.full_like(here, length))
    assert packing.mask.any(-1).all(), "an empty position without a view would be not a number"
    assert owner.shape == (2, 63)
    moved = packing.to("meta")
    assert moved.mask.device.type == "meta" == moved.lay(torch.empty(5, 40, 3, device="meta")).device.type
