"""Encodes a gallery and the captions of every language, on all ranks together.

Values are read through `data.stream.sweep`, encoded, gathered, and checked: every value was read exactly once. Ranks
and metrics are made from the result in `evaluate.py`. The caller puts models into eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ccr_dist.data.media.text import has_text
from ccr_dist.data.stream.sweep import Items, Sweep, gallery, sweep
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import DataError
from ccr_dist.evaluate.retrieval import Bank, merge
from ccr_dist.losses.gather import gather_rows, largest, row_counts
from ccr_dist.losses.gather import world as rank_and_world


class EncodeText(Protocol):
    """(texts, their language, aligned companion texts or none) -> bank of n texts."""

    def __call__(self, texts: list[str], lang: str, companion: list[str]) -> Bank: ...


class EncodeVisual(Protocol):
    """(n, ...) tensor on the device, mask (n, T) or None, descriptions or none -> bank of n items."""

    def __call__(self, visual: Tensor, mask: Tensor | None, description: list[str]) -> Bank: ...


@dataclass(frozen=True)
class Encoders:
    """What encodes texts and items.

    Attributes:
        text, visual: ranks call them different numbers of times, so they must not communicate, unless `lockstep`.
        transform: makes a tensor of a picture; None for vectors.
        device: that items are moved to, and that banks lie on.
        lockstep: all ranks call equally often, for sharded models: a rank that has finished encodes something once more
            and discards it.
    """

    text: EncodeText
    visual: EncodeVisual
    transform: Callable[[Any], Tensor] | None = None
    device: torch.device | str = "cpu"
    lockstep: bool = False


@dataclass(frozen=True)
class EvaluatedColumns:
    """The columns of a dataset that are evaluated.

    Attributes:
        queries: language -> captions. Blank ones are no queries, and are counted as `captions_blank`.
        visual: pictures or vectors. Items without one are no candidates; their captions are left out, and counted as
            `captions_without_item`.
        many: a row has any number of vectors, not one.
        description: texts that describe items, "" where an item has none (counted); None: they are not read.
        companions: language -> texts aligned with its captions. A caption whose companion is blank is left out and
            counted, too.
        group: labels; items of one label are all correct. None, or no label: an item is correct for itself alone.
    """

    queries: Mapping[str, str]
    visual: str
    many: bool = False
    description: str | None = None
    companions: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None


@dataclass(frozen=True)
class Queries:
    """The captions of one language that belong to an item of the gallery."""

    column: str
    rows: np.ndarray  # (Nt,) row in the dataset
    parts: np.ndarray  # (Nt,) which caption of the row
    item: np.ndarray  # (Nt,) row in the gallery
    bank: Bank
    without_item: int
    blank: int  # texts that were not asked: they, or those beside them, say nothing


@dataclass(frozen=True)
class Encoded:
    """A gallery and its queries by language; the same on every rank."""

    dataset: Dataset
    rows: np.ndarray  # (Nv,) row in the dataset
    group: np.ndarray  # (Nv,)
    visual: Bank
    queries: dict[str, Queries]
    undescribed: int | None  # items without a description, where descriptions are read


@dataclass
class _LeftOut:
    """What this rank does not use as queries: the number of blank texts, and the rows of which nothing is left."""

    texts: int = 0
    rows: list[int] = field(default_factory=list)


class Encoding:
    """One pass over a gallery and its captions, on all processes of the default process group together.

    Args:
        encoders: of texts and items.
        dataset: whose rows are encoded.
        columns: that are read.
        batch: rows, and texts, at a time. Blocks are fixed, so any world size encodes the same batches.
        workers: reading processes of this rank.
        before: called on every rank before the gallery ("gallery") and before every language, for progress and stop
            requests.
    """

    def __init__(
        self,
        encoders: Encoders,
        dataset: Dataset,
        columns: EvaluatedColumns,
        *,
        batch: int = 256,
        workers: int = 0,
        before: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.encoders, self.dataset, self.columns = encoders, dataset, columns
        self.batch, self.workers, self._before = batch, workers, before
        self.rank, self.world = rank_and_world()

    @torch.no_grad()
    def run(self) -> Encoded:
        """Read and encode everything. Collective.

        Raises:
            DataError: a language has no captions, companions are not aligned, or a column is missing or incomplete.
        """
        dataset, columns = self.dataset, self.columns
        for lang, name in columns.queries.items():
            _require_captions(dataset, lang, name)
        self._before("gallery")
        gallery_rows, visual, undescribed = self._gallery()
        position = np.full(dataset.rows, -1)
        position[gallery_rows] = np.arange(len(gallery_rows))
        queries: dict[str, Queries] = {}
        for lang, column in columns.queries.items():
            self._before(lang)
            queries[lang] = self._queries(lang, column, position)
        group = _groups(dataset, columns.group)[gallery_rows]
        return Encoded(dataset, gallery_rows, group, visual, queries, undescribed)

    # The gallery.

    def _gallery(self) -> tuple[np.ndarray, Bank, int | None]:
        """Row numbers (Nv,), bank of Nv items, and how many have no description, where descriptions are read."""
        undescribed: list[int] = []
        idle = self._encode_any_item if self.encoders.lockstep else None
        blocks = _made(self._item_calls(undescribed), idle, self.encoders.device)
        rows, _, visual = _gathered(self.dataset, self.columns.visual, blocks, [], self.encoders.device)
        missing = int(merge(torch.tensor([sum(undescribed)]))) if self.columns.description else None
        return rows, visual, missing

    def _items(self, rank: int, world: int) -> Iterable[Items]:
        """The blocks of a rank."""
        return gallery(
            self.dataset,
            self.columns.visual,
            many=self.columns.many,
            description=self.columns.description,
            transform=self.encoders.transform,
            world=world,
            rank=rank,
            block_rows=self.batch,
            workers=self.workers,
        )

    def _item_calls(self, undescribed: list[int]) -> Iterator[Call]:
        """What this rank encodes of the gallery; `undescribed` gets the items without a description, by block."""
        for block in self._items(self.rank, self.world):
            if len(block.rows):
                undescribed.append(sum(not has_text(text) for text in block.description))
                yield block.rows, torch.zeros_like(block.rows), partial(self._encode_items, block)

    def _encode_items(self, block: Items) -> Bank:
        device = self.encoders.device
        mask = None if block.mask is None else block.mask.to(device)
        return self.encoders.visual(block.visual.to(device).float(), mask, block.description)

    def _encode_any_item(self) -> Bank:
        return self._encode_items(next(block for block in self._items(0, 1) if len(block.rows)))

    # The captions.

    def _queries(self, lang: str, column: str, position: np.ndarray) -> Queries:
        """The captions of a language; `position` (rows,): place in the gallery of each row, -1 where it has none."""
        dataset, device = self.dataset, self.encoders.device
        beside = self.columns.companions.get(lang)
        left_out = _LeftOut()
        companion = [""] if beside else []
        idle = partial(self.encoders.text, [""], lang, companion) if self.encoders.lockstep else None
        made = _made(self._text_calls(lang, column, beside, left_out), idle, device)
        rows, parts, bank = _gathered(dataset, column, made, left_out.rows, device)
        if not len(rows):
            names = f"{column} or {beside}" if beside else column
            raise DataError(f"{dataset.root}: all captions of language {lang!r} in {names} are blank")
        known = position[rows] >= 0
        if not known.any():
            raise DataError(
                f"{dataset.root}: no caption of language {lang!r} in {column} belongs to an item that has a value in"
                f" {self.columns.visual}"
            )
        kept = {name: part[torch.from_numpy(known).to(part.device)] for name, part in bank.items()}
        without, blank = int((~known).sum()), int(merge(torch.tensor([left_out.texts])))
        return Queries(column, rows[known], parts[known], position[rows][known], kept, without, blank)

    def _text_calls(self, lang: str, column: str, beside: str | None, left_out: _LeftOut) -> Iterator[Call]:
        """What this rank encodes of a language; `left_out` gets what it does not."""
        options: dict[str, Any] = {"world": self.world, "rank": self.rank, "workers": self.workers}
        for block in sweep(self.dataset, column, beside=beside, block_rows=self.batch, **options):
            left_out.texts += block.blank
            left_out.rows += block.without
            for start in range(0, len(block.values), self.batch):
                cut = slice(start, start + self.batch)
                encode = partial(self.encoders.text, block.values[cut], lang, block.beside[cut])
                yield block.rows[cut], block.parts[cut], encode


Call = tuple[Tensor, Tensor, Callable[[], Bank]]  # rows, parts, and what encodes them


def _made(
    calls: Iterator[Call], idle: Callable[[], Bank] | None, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor, Bank]]:
    """What this rank's calls give. With `idle`, which is called in place of a call that others still have, all ranks
    call equally often.
    """
    while True:
        call = next(calls, None)
        if idle is not None and not largest(torch.tensor(float(call is not None), device=device)):
            return
        if call is not None:
            rows, parts, encode = call
            yield rows, parts, encode()
        elif idle is not None:
            idle()
        else:
            return


def _require_captions(dataset: Dataset, lang: str, name: str) -> None:
    column = dataset.column(name)
    column.require_complete()
    if not any(column.present(shard).any() for shard in range(len(dataset.shards))):
        raise DataError(
            f"{dataset.root}: no captions of language {lang!r}: column {name} of dataset {dataset.name}/{dataset.split}"
            " is empty; take the language out of the queries or name another column"
        )


def _gathered(
    dataset: Dataset,
    column: str,
    blocks: Iterable[tuple[Tensor, Tensor, Bank]],
    without: list[int],
    device: torch.device | str,
) -> tuple[np.ndarray, np.ndarray, Bank]:
    """Row numbers (N,), parts (N,) and bank of N of all ranks, in row order; checked that every value was read exactly
    once.

    without: rows of this rank that turned out to have nothing, once `blocks` are read.
    """
    read = [(place.to(device), part.to(device), bank) for place, part, bank in blocks]
    shapes = _agreed({name: tuple(x.shape[1:]) for name, x in read[0][2].items()} if read else None)
    places = torch.zeros(0, 2, dtype=torch.int64, device=device)
    bank = {name: torch.zeros(0, *shape, device=device) for name, shape in shapes.items()}
    if read:
        places = torch.stack([torch.cat([p[0] for p in read]), torch.cat([p[1] for p in read])], dim=1)
        bank = {name: torch.cat([p[2][name] for p in read]).to(device, torch.float32) for name in shapes}
    counts = row_counts(len(places), device)
    rows, part = gather_rows(places, counts).cpu().numpy().T
    later = (np.diff(rows) > 0) | ((np.diff(rows) == 0) & (np.diff(part) > 0))
    empty = torch.zeros(dataset.rows, dtype=torch.int64)
    empty[without] = 1
    times = merge(empty).numpy()
    times[np.unique(rows)] += 1
    source = dataset.column(column)
    expected = np.concatenate([source.present(shard) for shard in range(len(dataset.shards))])
    assert later.all(), f"{column}: a value was read twice"
    if not np.array_equal(times, expected):
        row = int(np.flatnonzero(times != expected)[0])
        raise DataError(
            f"{source.folder}: the index and the payload do not agree on which rows have a value (row {row} is the"
            " first); `ccr-dist shards verify` names what is damaged"
        )
    return rows, part, {name: gather_rows(x, counts) for name, x in bank.items()}


def _agreed(shapes: dict[str, tuple[int, ...]] | None) -> dict[str, tuple[int, ...]]:
    """What a rank that read something knows, on every rank; a rank without blocks does not know it."""
    everywhere = [shapes]
    if rank_and_world()[1] > 1:
        everywhere = [None] * rank_and_world()[1]
        dist.all_gather_object(everywhere, shapes)
    return next((found for found in everywhere if found is not None), {"global": (0,)})


def _groups(dataset: Dataset, column: str | None) -> np.ndarray:
    """`(rows,)` int64: one number a label; rows without one are alone."""
    alone = np.arange(dataset.rows)
    if column is None:
        return alone
    number: dict[str, int] = {}
    source = Sweep(dataset, column, block_rows=1024)
    for block in (source[i] for i in range(len(source))):
        for row, label in zip(block.rows.tolist(), block.values, strict=True):  # blank ones are none
            alone[row] = dataset.rows + number.setdefault(label, len(number))
    return alone
