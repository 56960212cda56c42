"""The way from an order to batches: one rank's part of each global batch in turn, read by worker processes.

Belongs here: processes, and which batches they make. Does not belong here: which rows make up a batch (`order.py`),
which columns a stage reads (`fields.py`), reading and stand-ins (`rows.py`), tokenising (a method's business), the
budget of broken samples (the loop sums `Batch.substituted` over the ranks). A batch is a function of its number and the
rank: it makes no difference who reads it, or when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.data import DataLoader

from ccr_dist.data.stream.batch import Batch
from ccr_dist.data.stream.cache_window import require_room
from ccr_dist.data.stream.fields import Fields, content_digests, sources
from ccr_dist.data.stream.order import Order, rank_slots
from ccr_dist.data.stream.rows import TableRows
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError

__all__ = ["Batch", "Fields", "content_digests", "make_loader", "on_device", "sources"]

T = TypeVar("T")


def as_it_is(value: T) -> T:
    """Collates nothing: the datasets here return whole batches."""
    return value


def make_loader(
    order: Order,
    datasets: Sequence[Dataset],
    fields: Fields,
    *,
    world: int,
    rank: int,
    first: int,
    last: int,
    workers: int,
    transform: Callable[..., torch.Tensor] | None = None,
    pin_memory: bool = False,
) -> DataLoader:
    """Yields one `Batch` for each global batch k in [first, last), with the rows of `rank`, in order, read by `workers`
    processes.

    `datasets` in the order of the order's sources. While iterating: DataError when no stand-in for a broken row is
    found, StorageError when reading keeps failing. Does not touch torch's global random state. ConfigError at once
    where the cache of remote payloads is too small for the order's windows.
    """
    if len(datasets) != len(order.sources) or any(
        d.digest != s.digest for d, s in zip(datasets, order.sources, strict=True)
    ):
        raise ConfigError(
            f"the datasets ({', '.join(d.name for d in datasets)}) are not those of the order, in its order"
        )
    slots = rank_slots(order.batch_size, order.lanes, world, rank)
    rows = TableRows(order, datasets, fields, slots, last=last, transform=transform)
    require_room(order, rows.columns, slots)
    return DataLoader(
        rows,
        batch_size=None,
        sampler=range(first, last),
        collate_fn=as_it_is,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on `device`. On CUDA the next one is copied, on a stream of its own, while the caller works on the
    one before.

    For that, a batch is taken from `batches` before the one before it is yielded; it should be pinned (`pin_memory` of
    `make_loader`).
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    stream, waiting = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = batch.to(device), stream.record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = copied
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """Makes the current stream wait for the copy, and the allocator keep its memory until that stream is done with
    it.
    """
    current = torch.cuda.current_stream(batch.slots.device)
    current.wait_event(copied)
    for tensor in batch.tensors():
        tensor.record_stream(current)
    return batch
