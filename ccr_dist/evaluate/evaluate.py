"""Encodes a gallery and the captions of every language on all ranks, and turns them into results.

Belongs here: reading through `data.sweep`, gathering, the check that everything was counted once, the example queries. Ranks come from
`retrieval.py`, metrics from `protocols.py`. Models are put in eval mode by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ccr_dist.data.decode import texts_of
from ccr_dist.data.sweep import Sweep, sweep
from ccr_dist.data.table import Dataset
from ccr_dist.errors import DataError
from ccr_dist.evaluate import retrieval
from ccr_dist.evaluate.protocols import language_result
from ccr_dist.evaluate.schema import Example, Hit, LanguageResult
from ccr_dist.losses.gather import gather_rows, row_counts
from ccr_dist.losses.gather import world as rank_and_world

SHOWN = 5  # retrieved items of an example


@torch.no_grad()
def evaluate(
    encode_text: Callable[[list[str], str], Tensor],
    encode_visual: Callable[[Any], Tensor],
    dataset: Dataset,
    *,
    queries: Mapping[str, str],
    visual_column: str,
    group_column: str | None = None,
    shown: Mapping[str, str] | None = None,
    english_column: str | None = None,
    transform: Callable[[Any], Tensor] | None = None,
    score: retrieval.Score = retrieval.cosine,
    device: torch.device | str = "cpu",
    batch: int = 256,
    workers: int = 0,
    examples: int = 6,
    replicates: int = 1000,
    seed: int = 0,
    before: Callable[[str], None] = lambda what: None,
) -> dict[str, LanguageResult]:
    """Results by language, of all processes of the default process group together; the same on every rank.

    Args:
        encode_text: (texts, language) -> (n, D). encode_visual: (n, ...) tensor on `device` -> (n, D). Ranks call them different numbers of
            times, so they must not communicate.
        queries: language -> column of captions. shown: language -> aligned column whose texts the examples show (the untranslated ones).
        visual_column: pictures (give `transform`) or one vector a row. Items without one are no candidates; their captions are left out,
            counted as `captions_without_item`.
        group_column: label column; items of one label are all correct. None, or no label: an item is correct for itself alone.
        batch: rows, and texts, at a time; fixed blocks, so that any world size encodes the same batches. workers: reading processes.
        examples: queries a language whose best items are kept. replicates, seed: of the bootstrap.
        before: called on every rank before the gallery ("gallery") and every language, for progress and stop requests.
    Raises:
        DataError: a language without captions, a column that is missing or incomplete; NonFiniteError: a score that is NaN.
    """
    rank, world = rank_and_world()
    for lang, name in queries.items():
        _require_captions(dataset, lang, name)
    sweeping: dict[str, Any] = {"world": world, "rank": rank, "block_rows": batch, "workers": workers}

    before("gallery")
    blocks = sweep(dataset, visual_column, transform=transform, **sweeping)
    encoded = ((b.rows, b.parts, encode_visual(b.values.to(device).float())) for b in blocks if len(b.rows))
    gallery_rows, _, visual = _gathered(dataset, visual_column, encoded, device)
    if len(gallery_rows) != len(np.unique(gallery_rows)):
        raise DataError(
            f"{dataset.root}: column {visual_column} has several vectors a row; a gallery needs one: evaluate on another column"
        )
    position = np.full(dataset.rows, -1)
    position[gallery_rows] = np.arange(len(gallery_rows))
    group = _groups(dataset, group_column)[gallery_rows]

    def text_blocks(lang: str, column: str) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        for block in sweep(dataset, column, **sweeping):
            for start in range(0, len(block.values), batch):
                cut = slice(start, start + batch)
                yield block.rows[cut], block.parts[cut], encode_text(block.values[cut], lang)

    languages: dict[str, LanguageResult] = {}
    for lang, column in queries.items():
        before(lang)
        rows, parts, text = _gathered(dataset, column, text_blocks(lang, column), device)
        item, known = position[rows], position[rows] >= 0
        if not known.any():
            raise DataError(
                f"{dataset.root}: no caption of language {lang!r} in {column} belongs to an item that has a value in {visual_column}"
            )
        rows, parts, item, text = rows[known], parts[known], item[known], text[torch.from_numpy(known).to(text.device)]
        found = retrieval.ranks(text, visual, torch.from_numpy(item), torch.from_numpy(group), score)
        t2v, v2t, v2t_items = (ranks.numpy() for ranks in (found.text_to_visual, found.visual_to_text, found.visual_to_text_items))
        assert len(t2v) == known.sum() and (t2v > 0).all(), "every caption has a rank"
        picked = _pick(item, examples)
        best, scores = retrieval.top_k(text[torch.from_numpy(picked).to(text.device)], visual, SHOWN, score)
        table = _Texts(dataset, (shown or {}).get(lang, column), english_column)
        kept = []
        for q, top, values in zip(picked, best.tolist(), scores.tolist(), strict=True):
            hits = [(gallery_rows[v], round(value, 6), bool(group[v] == group[item[q]])) for v, value in zip(top, values, strict=True)]
            kept.append(table.example(rows[q], int(parts[q]), int(t2v[q]), hits))
        counts = {"captions_without_item": int((~known).sum()), "groups": len(np.unique(group))}
        languages[lang] = language_result(
            column, t2v, v2t, v2t_items, item, counts=counts, examples=tuple(kept), replicates=replicates, seed=seed
        )
    return languages


def _require_captions(dataset: Dataset, lang: str, name: str) -> None:
    column = dataset.column(name)
    column.require_complete()
    if not any(column.present(shard).any() for shard in range(len(dataset.shards))):
        raise DataError(
            f"{dataset.root}: no captions of language {lang!r}: column {name} of dataset {dataset.name}/{dataset.split} is empty; "
            "take the language out of the queries or name another column"
        )


def _gathered(
    dataset: Dataset, column: str, blocks: Iterable[tuple[Tensor, Tensor, Tensor]], device: torch.device | str
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Row numbers (N,), parts (N,) and features (N, D) of all ranks, in row order; checked that every value was read exactly once."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = [(place.to(device), part.to(device), values) for place, part, values in blocks]
    width = torch.tensor([parts[0][2].shape[1] if parts else 0], device=device)
    if rank_and_world()[1] > 1:
        dist.all_reduce(width, op=dist.ReduceOp.MAX)  # a rank without blocks does not know it
    parts = parts or [(*torch.zeros(2, 0, dtype=torch.int64, device=device), torch.zeros(0, int(width), device=device))]
    places = torch.stack([torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])], dim=1)
    features = torch.cat([p[2] for p in parts]).to(device, torch.float32)
    counts = row_counts(len(places), device)
    rows, part = gather_rows(places, counts).cpu().numpy().T
    later = (np.diff(rows) > 0) | ((np.diff(rows) == 0) & (np.diff(part) == 1))
    source = dataset.column(column)
    expected = np.flatnonzero(np.concatenate([source.present(shard) for shard in range(len(dataset.shards))]))
    assert later.all() and np.array_equal(np.unique(rows), expected), f"{column}: not every value was read exactly once"
    return rows, part, gather_rows(features, counts)


def _groups(dataset: Dataset, column: str | None) -> np.ndarray:
    """`(rows,)` int64: one number a label; rows without one are alone."""
    alone = np.arange(dataset.rows)
    if column is None:
        return alone
    number: dict[str, int] = {}
    source = Sweep(dataset, column, block_rows=1024)
    for block in (source[i] for i in range(len(source))):
        for row, label in zip(block.rows.tolist(), block.values, strict=True):
            alone[row] = dataset.rows + number.setdefault(label, len(number))
    return alone


def _pick(item: np.ndarray, n: int) -> np.ndarray:
    """The first captions of n items spread evenly over the gallery: the same for every method on the same captions."""
    first = np.unique(item, return_index=True)[1]
    return first[np.unique(np.linspace(0, len(first) - 1, min(n, len(first)) + 2)[1:-1].round().astype(int))] if len(first) > n else first


class _Texts:
    """Keys and texts of single rows, for the examples."""

    def __init__(self, dataset: Dataset, query_column: str, english_column: str | None) -> None:
        self._dataset = dataset
        self._query = dataset.column(query_column)
        there = english_column in dataset.columns()  # a training set's descriptions need not exist of the others
        self._english = dataset.column(english_column) if english_column and there else None
        self._ends = np.cumsum(dataset.shard_rows)

    def _place(self, row: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, row, side="right"))
        return shard, int(row - self._ends[shard] + self._dataset.shard_rows[shard])

    def example(self, row: int, part: int, rank: int, hits: list[tuple[int, float, bool]]) -> Example:
        """`hits`: dataset row, score, correct."""
        top = tuple(Hit(item=self.key(r), score=score, correct=right, english=self.english(r)) for r, score, right in hits)
        return Example(item=self.key(row), query=self.query(row, part), english=self.english(row), rank=rank, top=top)

    def key(self, row: int) -> str:
        shard, at = self._place(row)
        return self._dataset.keys(shard)[at]

    def query(self, row: int, part: int) -> str:
        texts = self._query.value(*self._place(row))
        if not isinstance(texts, list) or part >= len(texts):
            raise DataError(
                f"{self._query.folder}: item {self.key(row)!r} has no caption {part}: the column is not aligned with the queries"
            )
        return texts[part]

    def english(self, row: int) -> str | None:
        texts = texts_of(self._english.value(*self._place(row))) if self._english else None
        return texts[0] if texts else None
