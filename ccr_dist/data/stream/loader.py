"""Turns an order into batches: one rank's part of each global batch in turn, read by worker processes.

Belongs here: processes, and the batches that they make. Does not belong here: which rows make up a batch (`order.py`),
which columns a stage reads (`fields.py`), reading and substitution (`rows.py`), tokenising (methods do that), the
budget of broken samples (the training loop sums `Batch.substituted` over the ranks). A batch is a function of its
number and the rank, whichever process reads it, and whenever.
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
    """The collate function of a DataLoader whose dataset already returns whole batches."""
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
    """A loader of one `Batch` for each global batch k in [first, last), in order.

    Does not touch torch's global random state. Iterating raises DataError if no row can replace a broken one, and
    StorageError if reading keeps failing.

    Args:
        order: The order of rows.
        datasets: The datasets, in the order of `order.sources`.
        fields: The columns that are read.
        world: Number of ranks.
        rank: The rank whose rows are read.
        first: The first batch.
        last: The batch after the last one.
        workers: Processes that read; 0: this process.
        transform: RGB picture -> float tensor, see `TableRows`.
        pin_memory: Pin the tensors, for CUDA.

    Raises:
        ConfigError: The datasets are not those of the order, or the cache of remote payloads is too small for the
            order's windows.
    """
    if [dataset.digest for dataset in datasets] != [source.digest for source in order.sources]:
        raise ConfigError(
            f"the datasets ({', '.join(d.name for d in datasets)}) are not the sources of the order, in that sequence"
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
    """Yields the batches on `device`. On CUDA the next batch is copied in its own stream while the caller works.

    For that, the next batch is taken from `batches` before the current one is yielded. Batches should be pinned
    (`pin_memory` of `make_loader`).
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
    """Makes the current stream wait for the copy, and the allocator keep the memory until that stream is done."""
    current = torch.cuda.current_stream(batch.slots.device)
    current.wait_event(copied)
    for tensor in batch.tensors():
        tensor.record_stream(current)
    return batch
