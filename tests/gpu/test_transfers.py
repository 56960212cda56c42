"""Batches that are copied to a GPU ahead of their use arrive whole. Skipped without one."""

from __future__ import annotations

import pytest
import torch

from ccr_dist.data.stream.batch import Batch
from ccr_dist.data.stream.loader import on_device

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def batch(k: int) -> Batch:
    rows = torch.arange(64)
    visual = torch.full((64, 3, 224, 224), float(k))
    return Batch(k, "de", rows, [str(i) for i in range(64)], rows, visual, [], [], None, [], []).pin_memory()


def test_each_batch_is_whole_when_it_is_used_and_its_memory_is_not_reused_too_soon():
    device, busy = torch.device("cuda"), torch.randn(2000, 2000, device="cuda")
    sums = []
    for got in on_device((batch(k) for k in range(20)), device):
        for _ in range(20):  # the caller's stream lags behind the copies
            busy = torch.tanh(busy @ busy)
        assert got.visual.device.type == "cuda" and got.items[5] == "5"
        sums.append((got.k, got.visual.double().mean()))
        del got
    assert [(k, float(mean)) for k, mean in sums] == [(k, float(k)) for k in range(20)]
