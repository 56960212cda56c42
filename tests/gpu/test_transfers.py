"""Batches that are copied to a GPU ahead of their use arrive whole. Skipped without one."""

from __future__ import annotations

import torch

from ccr_dist.data.stream.batch import Batch
from ccr_dist.data.stream.loader import on_device
from tests.gpu.on import DEVICE, needs_gpu

pytestmark = needs_gpu


def batch(k: int) -> Batch:
    rows = torch.arange(64)
    visual = torch.full((64, 3, 224, 224), float(k))
    made = Batch(k, "de", rows, [str(i) for i in range(64)], rows, visual, [], [], None, [], [])
    return made.pin_memory() if DEVICE == "cuda" else made


def test_each_batch_is_whole_when_it_is_used_and_its_memory_is_not_reused_too_soon():
    device, busy = torch.device(DEVICE), torch.randn(2000 if DEVICE == "cuda" else 50, 2000, device=DEVICE)
    sums = []
    for got in on_device((batch(k) for k in range(20)), device):
        for _ in range(20):  # the caller's stream lags behind the copies
            busy = torch.tanh(busy @ busy.T @ busy)
        assert got.visual.device.type == DEVICE and got.items[5] == "5"
        sums.append((got.k, got.visual.double().mean()))
        del got
    assert [(k, float(mean)) for k, mean in sums] == [(k, float(k)) for k in range(20)]
