"""Encodes a gallery and the captions of every language on all ranks (`encode`), and turns them into results
(`results`).

Belongs here: reading through `data.sweep`, gathering, the check that everything was counted once. Ranks come from
`retrieval.py`, metrics from `protocols.py`, the example queries from `examples.py`. Models are put in eval mode by the
caller.
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
from ccr_dist.evaluate import retrieval
from ccr_dist.evaluate.examples import Texts, pick
from ccr_dist.evaluate.protocols import language_result
from ccr_dist.evaluate.retrieval import Bank, merge
from ccr_dist.evaluate.schema import LanguageResult
from ccr_dist.losses.gather import gather_rows, largest, row_counts
from ccr_dist.losses.gather import world as rank_and_world

SHOWN = 5  # retrieved items of an example


class EncodeText(Protocol):
    """(texts, their language, aligned companion texts or none) -> bank of n texts."""

    def __call__(self, texts: list[str], lang: str, companion: list[str]) -> Bank: ...


class EncodeVisual(Protocol):
    """(n, ...) tensor on the device, mask (n, T) or None, descriptions or none -> bank of n items."""

    def __call__(self, visual: Tensor, mask: Tensor | None, description: list[str]) -> Bank: ...


@dataclass(frozen=True)
class Found:
    """One language's result, and the ranks (`retrieval.Ranks`, with each caption's item) that comparisons of runs are
    made from.
    """

    result: LanguageResult
    # t2v (Nt,), v2t (Nv,), item (Nt,), part (Nt,): as in `Queries`; rows (Nv,): row numbers of the gallery
    ranks: dict[str, np.ndarray]


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


@torch.no_grad()
def encode(
    encode_text: EncodeText,
    encode_visual: EncodeVisual,
    dataset: Dataset,
    *,
    queries: Mapping[str, str],
    visual_column: str,
    many: bool = False,
    description_column: str | None = None,
    companions: Mapping[str, str] | None = None,
    group_column: str | None = None,
    transform: Callable[[Any], Tensor] | None = None,
    device: torch.device | str = "cpu",
    batch: int = 256,
    workers: int = 0,
    before: Callable[[str], None] = lambda what: None,
    lockstep: bool = False,
) -> Encoded:
    """Reads and encodes on all processes of the default process group together.

    Args:
        encode_text, encode_visual: ranks call them different numbers of times, so they must not communicate, unless
        `lockstep`. queries: language -> column of captions. Blank ones are no queries, and counted as `captions_blank`.
        companions: language -> column of texts aligned with them; a caption whose companion is blank is left out, and
        counted, too. visual_column: pictures (give `transform`) or vectors, one a row or, with `many`, any number.
        Items without one are no candidates;
            their captions are left out, counted as `captions_without_item`. description_column: "" where an item has
        none, counted. group_column: label column; items of one label are all correct. None, or no label: an item is
        correct for itself alone. batch: rows, and texts, at a time; fixed blocks, so that any world size encodes the
        same batches. workers: reading processes. before: called on every rank before the gallery ("gallery") and every
        language, for progress and stop requests. lockstep: all ranks call equally often, for sharded models: who is
        done early encodes something once more and forgets it.
    Raises:
        DataError: a language without captions, companions that are not aligned, a column that is missing or incomplete.
    """
    rank, world = rank_and_world()
    for lang, name in queries.items():
        _require_captions(dataset, lang, name)
    sweeping: dict[str, Any] = {"world": world, "rank": rank, "block_rows": batch, "workers": workers}

    before("gallery")
    undescribed = 0

    def reading(world: int, rank: int) -> Iterable[Items]:
        options = {**sweeping, "world": world, "rank": rank}
        return gallery(
            dataset, visual_column, many=many, description=description_column, transform=transform, **options
        )

    def item_bank(block: Items) -> Bank:
        return encode_visual(
            block.visual.to(device).float(), None if block.mask is None else block.mask.to(device), block.description
        )

    def items() -> Iterator[Call]:
        nonlocal undescribed
        for block in reading(world, rank):
            if len(block.rows):
                undescribed += sum(not has_text(text) for text in block.description)
                yield block.rows, torch.zeros_like(block.rows), partial(item_bank, block)

    def any_item() -> Bank:
        return item_bank(next(block for block in reading(1, 0) if len(block.rows)))

    gallery_rows, _, visual = _gathered(
        dataset, visual_column, _made(items(), any_item if lockstep else None, device), [], device
    )
    position = np.full(dataset.rows, -1)
    position[gallery_rows] = np.arange(len(gallery_rows))
    missing = int(merge(torch.tensor([undescribed]))) if description_column else None

    def texts(lang: str, column: str, beside: str | None, left_out: _LeftOut) -> Iterator[Call]:
        for block in sweep(dataset, column, beside=beside, **sweeping):
            left_out.texts += block.blank
            left_out.rows += block.without
            for start in range(0, len(block.values), batch):
                cut = slice(start, start + batch)
                yield (
                    block.rows[cut],
                    block.parts[cut],
                    partial(encode_text, block.values[cut], lang, block.beside[cut]),
                )

    found: dict[str, Queries] = {}
    for lang, column in queries.items():
        before(lang)
        beside = (companions or {}).get(lang)
        any_text = partial(encode_text, [""], lang, [""] if beside else []) if lockstep else None
        left_out = _LeftOut()
        made = _made(texts(lang, column, beside, left_out), any_text, device)
        rows, parts, bank = _gathered(dataset, column, made, left_out.rows, device)
        known = position[rows] >= 0
        if not len(rows):
            raise DataError(
                f"{dataset.root}: all captions of language {lang!r} in {column}{f' or {beside}' if beside else ''} are"
                " blank"
            )
        if not known.any():
            raise DataError(
                f"{dataset.root}: no caption of language {lang!r} in {column} belongs to an item that has a value in"
                f" {visual_column}"
            )
        kept = {name: part[torch.from_numpy(known).to(part.device)] for name, part in bank.items()}
        without, blank = int((~known).sum()), int(merge(torch.tensor([left_out.texts])))
        found[lang] = Queries(column, rows[known], parts[known], position[rows][known], kept, without, blank)
    return Encoded(dataset, gallery_rows, _groups(dataset, group_column)[gallery_rows], visual, found, missing)


@dataclass
class _LeftOut:
    """What this rank does not ask: texts that say nothing, and the rows of which nothing is left."""

    texts: int = 0
    rows: list[int] = field(default_factory=list)


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


@torch.no_grad()
def results(
    encoded: Encoded,
    *,
    score: retrieval.Score = retrieval.cosine,
    fusion: retrieval.Fusion = retrieval.PLAIN,
    shown: Mapping[str, str] | None = None,
    english_column: str | None = None,
    examples: int = 6,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Found]:
    """Results by language, the same on every rank.

    Args:
        score, fusion: parts of a score, and how they become one (`retrieval.py`).
        shown: language -> aligned column whose texts the examples show (the untranslated ones).
        examples: queries a language whose best items are kept. replicates, seed: of the bootstrap.
    Raises:
        NonFiniteError: a score that is NaN.
    """
    group, gallery_rows = encoded.group, encoded.rows
    languages: dict[str, Found] = {}
    for lang, asked in encoded.queries.items():
        item = asked.item
        scoring: dict[str, Any] = {"score": score, "fusion": fusion}
        found = retrieval.ranks(asked.bank, encoded.visual, torch.from_numpy(item), torch.from_numpy(group), **scoring)
        t2v, v2t, v2t_items = (
            ranks.numpy() for ranks in (found.text_to_visual, found.visual_to_text, found.visual_to_text_items)
        )
        assert (t2v > 0).all(), "every caption has a rank"
        picked = pick(item, examples)
        best, scores = retrieval.top_k(asked.bank, encoded.visual, torch.from_numpy(picked), SHOWN, **scoring)
        table = Texts(encoded.dataset, (shown or {}).get(lang, asked.column), english_column)
        kept = []
        for q, top, values in zip(picked, best.tolist(), scores.tolist(), strict=True):
            hits = [
                (gallery_rows[v], round(value, 6), bool(group[v] == group[item[q]]))
                for v, value in zip(top, values, strict=True)
            ]
            kept.append(table.example(asked.rows[q], int(asked.parts[q]), int(t2v[q]), hits))
        counts = {
            "captions_without_item": asked.without_item,
            "captions_blank": asked.blank,
            "groups": len(np.unique(group)),
        }
        if encoded.undescribed is not None:
            counts["items_without_description"] = encoded.undescribed
        result = language_result(
            asked.column,
            t2v,
            v2t,
            v2t_items,
            item,
            counts=counts,
            examples=tuple(kept),
            replicates=replicates,
            seed=seed,
        )
        languages[lang] = Found(
            result, {"t2v": t2v, "v2t": v2t, "item": item, "part": asked.parts, "rows": gallery_rows}
        )
    return languages


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
