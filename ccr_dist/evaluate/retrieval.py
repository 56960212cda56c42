"""Exact ranks and top-k lists, computed on all ranks together.

Belongs here: scoring in blocks, ranks of the correct answers, the sums over processes that merge them. Does not belong here: encoding
(`evaluate.py`), metrics made from ranks (`protocols.py`).

Queries are cut in blocks whose size depends on the number of candidates alone; rank r of a world takes blocks r, r + world, ... and every
row is computed by exactly one rank, so a sum over ranks merges the results and any world size gives the same bits.

Scores are computed from float64 features and rounded to float32: equal vectors then get equal scores wherever they stand in a block,
so that ties are seen as ties, and neither TF32 nor the number of threads moves a rank. (MPS has no float64: float32 throughout.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ccr_dist.errors import DataError, NonFiniteError
from ccr_dist.losses.gather import world

Score = Callable[[Tensor, Tensor], Tensor]
BLOCK_SCORES = 1 << 24  # scores held at once: 64 MiB of float32
LONGEST_BLOCK = 1024


@dataclass(frozen=True)
class Ranks:
    """Rank of the best correct candidate of every query, from 1; 0 where no correct candidate exists (an item without captions)."""

    text_to_visual: Tensor  # (Nt,) int64, on the CPU
    visual_to_text: Tensor  # (Nv,) candidates are captions: the primary protocol (LECCR, NRCCR)
    visual_to_text_items: Tensor  # (Nv,) candidates are items, each with its best caption (MLA, DASD)


def cosine(text: Tensor, visual: Tensor) -> Tensor:
    """`(Nt, D)`, `(Nv, D)` -> `(Nt, Nv)` cosines."""
    return torch.nn.functional.normalize(text, dim=-1) @ torch.nn.functional.normalize(visual, dim=-1).T


def merge(rows: Tensor) -> Tensor:
    """Sum over all ranks, exact when every row is zero on all ranks but one."""
    if world()[1] == 1:
        return rows
    total = rows.cuda() if dist.get_backend() == "nccl" else rows.clone()
    dist.all_reduce(total)
    return total.to(rows.device)


@torch.no_grad()
def ranks(text: Tensor, visual: Tensor, text_item: Tensor, group: Tensor, score: Score = cosine, *, block: int | None = None) -> Ranks:
    """Ranks in both directions; ties count against the method: 1 + the wrong candidates that score no less than the best right one.

    Args: `text` (Nt, D) and `visual` (Nv, D), the same on every rank; `text_item` (Nt,): the row in `visual` that each caption belongs to;
    `group` (Nv,) int: items of one group are all correct for each other's captions; `score`: (b, D), (Nv, D) -> (b, Nv), larger is
    better, each pair on its own (no normalisation over the block), in the features' precision. `block`: queries at a time, for tests.
    Raises DataError for shapes that do not fit, NonFiniteError (on every rank) for a score that is NaN.
    """
    _check(text, visual, text_item, group)
    text, visual = _exact(text), _exact(visual)
    text_item, group = text_item.to(text.device, torch.int64), group.to(text.device, torch.int64)
    text_group = group[text_item]
    captioned = torch.zeros(len(visual), dtype=torch.bool, device=text.device)
    captioned[text_item] = True

    to_visual = torch.zeros(len(text), dtype=torch.int64, device=text.device)
    for rows in _own_blocks(len(text), len(visual), block):
        scores = score(text[rows], visual).float()
        to_visual[rows] = _rank(scores, text_group[rows, None] == group)

    to_text = torch.zeros(2, len(visual), dtype=torch.int64, device=text.device)
    for rows in _own_blocks(len(visual), len(text), block):
        scores = score(text, visual[rows]).T.float()
        to_text[0, rows] = _rank(scores, group[rows, None] == text_group)
        merged = scores.new_full((len(scores), len(visual)), -torch.inf)
        merged.scatter_reduce_(1, text_item.expand(len(scores), -1), scores, "amax")
        to_text[1, rows] = _rank(merged[:, captioned], group[rows, None] == group[captioned])

    found = Ranks(merge(to_visual).cpu(), *merge(to_text).cpu())
    for values, query, candidate in ((found.text_to_visual, "caption", "item"), (found.visual_to_text, "item", "caption")):
        if (values < 0).any():
            at = int((values < 0).nonzero()[0])
            raise NonFiniteError(
                f"the score of {query} {at} and {candidate} {-int(values[at]) - 1} is NaN: the features or the method diverged"
            )
    return found


@torch.no_grad()
def top_k(text: Tensor, visual: Tensor, k: int, score: Score = cosine, *, block: int | None = None) -> tuple[Tensor, Tensor]:
    """The k best items of every query: `(Nt, min(k, Nv))` int64 rows of `visual` and float32 scores, best first, ties in row order."""
    text, visual, k = _exact(text), _exact(visual), min(k, len(visual))
    items = torch.zeros(len(text), k, dtype=torch.int64, device=text.device)
    values = torch.zeros(len(text), k, dtype=torch.float32, device=text.device)
    for rows in _own_blocks(len(text), len(visual), block):
        best = score(text[rows], visual).float().sort(dim=1, descending=True, stable=True)  # topk promises nothing about ties
        items[rows], values[rows] = best.indices[:, :k], best.values[:, :k]
    return merge(items).cpu(), merge(values).cpu()


def _own_blocks(queries: int, candidates: int, block: int | None) -> Iterator[slice]:
    """This rank's query blocks; their cut knows nothing of the world."""
    rank, ranks_in_all = world()
    size = block or max(1, min(LONGEST_BLOCK, BLOCK_SCORES // max(1, candidates)))
    for start in range(rank * size, queries, ranks_in_all * size):
        yield slice(start, min(start + size, queries))


def _rank(scores: Tensor, correct: Tensor) -> Tensor:
    """`(b, N)` scores and which candidates are right -> `(b,)`; 0 without a right one, -1 - (first NaN candidate) where a score is NaN."""
    best = scores.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)
    ahead = ((scores >= best) & ~correct).sum(dim=1)
    rank = torch.where(correct.any(dim=1), 1 + ahead, 0)
    nan = scores.isnan()
    return torch.where(nan.any(dim=1), -1 - nan.int().argmax(dim=1), rank)


def _exact(features: Tensor) -> Tensor:
    return features if features.device.type == "mps" else features.double()


def _check(text: Tensor, visual: Tensor, text_item: Tensor, group: Tensor) -> None:
    if not len(text) or not len(visual):
        raise DataError(f"nothing to rank: {len(text)} captions and {len(visual)} items")
    for name, index, features in (("text_item", text_item, text), ("group", group, visual)):
        if index.shape != (len(features),):
            raise DataError(f"{name} has shape {tuple(index.shape)}, expected ({len(features)},): one entry a row of the features")
    outside = (text_item < 0) | (text_item >= len(visual))
    if outside.any():
        at = int(outside.nonzero()[0])
        raise DataError(f"caption {at} belongs to item {int(text_item[at])}, but the gallery has items 0 to {len(visual) - 1}")
