"""Batches that are copied to the GPU ahead of their use (`on_device`, pinned memory), beside copies that are waited
for: how much of the time of copying is hidden behind the work of a step. The batches are held against the loader's own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ccr_dist.data.stream.batch import Batch
from ccr_dist.data.stream.loader import Fields, make_loader, on_device, sources
from ccr_dist.data.stream.order import Order
from tests.benchmarks.loader import tensor_of
from tests.benchmarks.record import pictures
from tests.gpu.part import Found, run


def transfers(found: Found) -> None:
    batch, count, side = (8, 4, 64) if found.cpu else (128, 12, 256)
    device = torch.device(found.device)
    with tempfile.TemporaryDirectory() as folder:
        dataset = pictures(Path(folder) / "data", batch * count, shards=4, side=side, seed=0)
        fields = Fields(visual="image")
        order = Order(sources([dataset], [1.0], fields, ["en"]), batch=batch, seed=1, languages={"en": 1.0})

        def read(*, pin: bool, workers: int) -> list[Batch]:
            options = {"world": 1, "rank": 0, "first": 0, "last": count, "transform": tensor_of}
            return list(make_loader(order, [dataset], fields, workers=workers, pin_memory=pin, **options))

        pinned, plain = read(pin=not found.cpu, workers=0 if found.cpu else 4), read(pin=False, workers=0)
    size = sum(tensor.nbytes for tensor in plain[0].tensors())
    found.line(
        batches=count, rows=batch, mb=round(size / 1e6, 1), pinned=all(t.is_pinned() for t in pinned[0].tensors())
    )
    for mine, there in zip(plain, on_device(iter(pinned), device), strict=True):
        same = all(torch.equal(a, b.cpu()) for a, b in zip(mine.tensors(), there.tensors(), strict=True))
        if not same or mine.items != there.items:
            found.wrong(f"batch {mine.k} is another one on the device")
    copy = seconds(device, lambda: pinned, lambda b: b.to(device), 0.0)
    work = calibrated(device, copy / count)
    alone = seconds(device, lambda: range(count), lambda _: None, work)
    waiting = seconds(device, lambda: plain, lambda b: b.to(device), work)
    ahead = seconds(device, lambda: on_device(iter(pinned), device), lambda b: b, work)
    found.line(
        copies_s=copy, gb_per_s=size * count / copy / 1e9, work_s=alone, work_and_copies_s=waiting,
        work_and_copies_ahead_s=ahead, part_of_copies_hidden=1 - max(0.0, ahead - alone) / copy,
    )  # fmt: skip


def seconds(
    device: torch.device, batches: Callable[[], Iterable[Any]], use: Callable[[Any], object], products: float
) -> float:
    """Of all batches, each used and followed by a step's work; the best of three."""
    a = torch.randn(2048 if device.type == "cuda" else 64, 64, device=device)
    best = float("inf")
    for _ in range(3):
        settle(device)
        begun = time.perf_counter()
        for each in batches():
            use(each)
            for _ in range(int(products)):
                a = torch.tanh(a @ (a.T @ a))
        settle(device)
        best = min(best, time.perf_counter() - begun)
    return best


def calibrated(device: torch.device, wanted: float) -> float:
    """How many products take about twice as many seconds as are wanted."""
    one = seconds(device, lambda: range(1), lambda _: None, 50) / 50
    return max(1.0, 2 * wanted / one)


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    run(transfers)
