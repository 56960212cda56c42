"""Exact ranks and top-k lists, computed on all ranks together.

Belongs here: scoring in blocks, ranks of the correct answers, the sums over processes that merge them. Does not belong
here: encoding (`evaluate.py`), metrics made from ranks (`protocols.py`).

Scores are computed from float64 features and rounded to float32: equal vectors then get equal scores wherever they
stand in a block, so that ties are seen as ties, and neither TF32 nor the number of threads moves a rank.

Plain cosines are ranked by `scoring.ranks` on the CPU: one product in float32 for all directions, and exact scores
where it cannot decide. Other scores, and features on a GPU, take the general way: products in the features' precision,
made float64 (float32 on MPS, which has no other). There queries are cut in blocks whose size depends on the number of
candidates alone; rank r of a world takes blocks r, r + world, ... and every row is computed by exactly one rank, so a
sum over ranks merges the results and any world size gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ccr_dist.errors import ConfigError, DataError, NonFiniteError
from ccr_dist.losses.gather import world
from ccr_dist.scoring import ranks as kernel

Bank = Mapping[str, Tensor]  # parts of N encoded texts or items by name, each (N, ...)
Score = Callable[[Bank, Bank], Mapping[str, Tensor]]
BLOCK_SCORES = 1 << 24  # scores held at once: 64 MiB of float32
LONGEST_BLOCK = 1024
PLAIN_COSINE = "plain_cosine"
_Scoring = TypeVar("_Scoring", bound=Callable[..., Mapping[str, Tensor]])


@dataclass(frozen=True)
class Fusion:
    """How the parts of a score become one: their weighted sum.

    minmax: each part is first brought to [0, 1] by its least and largest value over all texts and items of the split.
    That makes a score depend on the other queries of the test (transductive), so results say so.
    ranges: with `minmax`, the (least, largest) value of every part that has a weight, as `ranges` found them on another
    split: scores then depend on no other query. None: of the split itself.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"global": 1.0})
    minmax: bool = False
    ranges: Mapping[str, tuple[float, float]] | None = None

    def __str__(self) -> str:
        terms = " + ".join(f"{weight:g} {part}" for part, weight in self.weights.items() if weight)
        if not self.minmax:
            return terms
        over = "over the whole test (transductive)" if self.ranges is None else "by ranges found before"
        return f"{terms}, each min-max normalised {over}"

    def fused(self, parts: Mapping[str, Tensor]) -> Tensor:
        """One float32 score a pair.

        Args:
            parts: scores by name, all of one shape; those without weight are not looked at.

        Raises:
            ConfigError: `minmax` without the range of a part.
        """
        terms = []
        for name, weight in self.weights.items():
            if not weight:
                continue
            low, high = 0.0, 1.0
            if self.minmax:
                if name not in (self.ranges or {}):
                    raise ConfigError(
                        f"the score is fused by min-max, and the range of its part {name!r} is not known; "
                        f"known are {', '.join(self.ranges or {}) or 'none'}: find them by `retrieval.ranges`"
                    )
                low, high = (self.ranges or {})[name]
            # a part that is constant decides nothing
            terms.append(weight * (parts[name] - low) / (high - low if high > low else 1.0))
        return torch.stack(terms).sum(0).float()


PLAIN = Fusion()


@dataclass(frozen=True)
class Ranks:
    """Rank of the best correct candidate of every query, from 1; 0 where no correct candidate exists (an item without
    captions).
    """

    text_to_visual: Tensor  # (Nt,) int64, on the CPU
    visual_to_text: Tensor  # (Nv,) candidates are captions: the primary protocol (LECCR, NRCCR)
    visual_to_text_items: Tensor  # (Nv,) candidates are items, each with its best caption (MLA, DASD)


def plain_cosine(score: _Scoring) -> _Scoring:
    """Marks a score as that of `cosine`, also where a method gives it: its ranks come from the kernel of the search."""
    setattr(score, PLAIN_COSINE, True)
    return score


@plain_cosine
def cosine(text: Bank, visual: Bank) -> dict[str, Tensor]:
    """The one part "global": cosines (Nt, Nv) of `text["global"]` (Nt, D) and `visual["global"]` (Nv, D)."""
    x, y = (torch.nn.functional.normalize(bank["global"], dim=-1) for bank in (text, visual))
    return {"global": x @ y.T}


def merge(rows: Tensor) -> Tensor:
    """Sum over all ranks, exact when every row is zero on all ranks but one."""
    if world()[1] == 1:
        return rows
    total = rows.cuda() if dist.get_backend() == "nccl" else rows.clone()
    dist.all_reduce(total)
    return total.to(rows.device)


@torch.no_grad()
def ranks(
    text: Bank,
    visual: Bank,
    text_item: Tensor,
    group: Tensor,
    score: Score = cosine,
    *,
    fusion: Fusion = PLAIN,
    block: int | None = None,
) -> Ranks:
    """Ranks in both directions; ties count against the method: 1 + the wrong candidates that score no less than the
    best right one.

    Args: `text` of Nt texts and `visual` of Nv items, the same on every rank; `text_item` (Nt,): the row in `visual`
    that each caption belongs to; `group` (Nv,) int: items of one group are all correct for each other's captions;
    `score`: banks of b texts and Nv items -> parts (b, Nv), larger is better, each pair on its own, in the features'
    precision; `fusion` of the parts. `block`: queries at a time, for tests. Raises DataError for shapes that do not
    fit, NonFiniteError (on every rank) for a score that is NaN.
    """
    texts, items = _check(text, visual, text_item, group)
    if _is_plain(score, fusion) and text["global"].device.type != "cuda":
        return _plain_ranks(text["global"], visual["global"], text_item, group, block)
    scored = _Scored(text, visual, score, fusion, block)
    text_item, group = text_item.to(scored.device, torch.int64), group.to(scored.device, torch.int64)
    text_group = group[text_item]
    captioned = torch.zeros(items, dtype=torch.bool, device=scored.device)
    captioned[text_item] = True

    to_visual = torch.zeros(texts, dtype=torch.int64, device=scored.device)
    for rows in _own_blocks(texts, items, block):
        scores = scored(rows, slice(None))
        to_visual[rows] = _rank(scores, text_group[rows, None] == group)

    to_text = torch.zeros(2, items, dtype=torch.int64, device=scored.device)
    for rows in _own_blocks(items, texts, block):
        scores = scored(slice(None), rows).T
        to_text[0, rows] = _rank(scores, group[rows, None] == text_group)
        merged = scores.new_full((len(scores), items), -torch.inf)
        merged.scatter_reduce_(1, text_item.expand(len(scores), -1), scores, "amax")
        to_text[1, rows] = _rank(merged[:, captioned], group[rows, None] == group[captioned])

    found = Ranks(merge(to_visual).cpu(), *merge(to_text).cpu())
    for values, query, candidate in (
        (found.text_to_visual, "caption", "item"),
        (found.visual_to_text, "item", "caption"),
    ):
        if (values < 0).any():
            at = int((values < 0).nonzero()[0])
            raise _diverged(query, at, candidate, -int(values[at]) - 1)
    return found


def _plain_ranks(text: Tensor, visual: Tensor, text_item: Tensor, group: Tensor, block: int | None) -> Ranks:
    """The same ranks by the kernel of `scoring`: one product for all directions, in float32 where that decides."""
    features = (each.cpu() if each.dtype == torch.float32 else each.double().cpu() for each in (text, visual))
    texts, items = (kernel.Rows(each.numpy()) for each in features)
    caption, item = texts.broken(), items.broken()
    if caption == 0 or (item is None and caption is not None):
        raise _diverged("caption", caption, "item", 0)
    if item is not None:
        raise _diverged("caption", 0, "item", item)
    found = kernel.ranks(
        texts,
        items,
        text_item.cpu().numpy().astype(np.int64),
        group.cpu().numpy(),
        share=world(),
        merge=lambda values: merge(torch.from_numpy(values)).numpy(),
        block=block or kernel.BLOCK,
    )
    return Ranks(*(torch.from_numpy(each) for each in (found.text_to_visual, found.visual_to_text, found.by_item)))


def _is_plain(score: Score, fusion: Fusion) -> bool:
    used = {name: weight for name, weight in fusion.weights.items() if weight}
    return getattr(score, PLAIN_COSINE, False) and used == PLAIN.weights and not fusion.minmax


def _diverged(query: str, at: int, candidate: str, other: int) -> NonFiniteError:
    return NonFiniteError(
        f"the score of {query} {at} and {candidate} {other} is NaN: the features or the method diverged"
    )


@torch.no_grad()
def top_k(
    text: Bank,
    visual: Bank,
    queries: Tensor,
    k: int,
    score: Score = cosine,
    *,
    fusion: Fusion = PLAIN,
    block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best items of the texts number `queries` (q,): `(q, min(k, Nv))` int64 rows of `visual` and float32 scores,
    best first, ties in row order.
    """
    scored = _Scored(text, visual, score, fusion, block)
    queries, candidates = queries.to(scored.device), _rows(visual)
    k = min(k, candidates)
    items = torch.zeros(len(queries), k, dtype=torch.int64, device=scored.device)
    values = torch.zeros(len(queries), k, dtype=torch.float32, device=scored.device)
    for rows in _own_blocks(len(queries), candidates, block):
        # topk promises nothing about ties
        best = scored(queries[rows], slice(None)).sort(dim=1, descending=True, stable=True)
        items[rows], values[rows] = best.indices[:, :k], best.values[:, :k]
    return merge(items).cpu(), merge(values).cpu()


@torch.no_grad()
def ranges(
    text: Bank, visual: Bank, score: Score = cosine, fusion: Fusion = PLAIN, *, block: int | None = None
) -> dict[str, tuple[float, float]]:
    """The least and largest value over all pairs, of every part that has a weight; the same on every rank.

    `replace(fusion, ranges=ranges(...))` scores other queries on the scale of these.

    Args:
        text, visual, score, fusion, block: as for `ranks`.
    """
    return _Scored(text, visual, score, fusion, block).ranges(block)


class _Scored:
    """Fused float32 scores of any texts with any items; the ranges that `minmax` needs are found once, on all ranks."""

    def __init__(self, text: Bank, visual: Bank, score: Score, fusion: Fusion, block: int | None) -> None:
        self._text, self._visual = ({name: _exact(part) for name, part in bank.items()} for bank in (text, visual))
        self._score, self._fusion = score, fusion
        self.device = self._text["global"].device
        if fusion.minmax and fusion.ranges is None:
            self._fusion = replace(fusion, ranges=self.ranges(block))

    def __call__(self, texts: slice | Tensor, items: slice | Tensor) -> Tensor:
        return self._fusion.fused(self._parts(texts, items))

    def _parts(self, texts: slice | Tensor, items: slice | Tensor) -> Mapping[str, Tensor]:
        return self._score(
            {name: x[texts] for name, x in self._text.items()}, {name: x[items] for name, x in self._visual.items()}
        )

    def ranges(self, block: int | None) -> dict[str, tuple[float, float]]:
        used = [name for name, weight in self._fusion.weights.items() if weight]
        # least value, least negative
        ends = torch.full((2, len(used)), torch.inf, dtype=self._text["global"].dtype, device=self.device)
        for rows in _own_blocks(_rows(self._text), _rows(self._visual), block):
            parts = self._parts(rows, slice(None))
            found = torch.stack([torch.stack([parts[name].min(), -parts[name].max()]) for name in used], dim=1)
            ends = torch.minimum(ends, found)
        if world()[1] > 1:
            dist.all_reduce(ends, op=dist.ReduceOp.MIN)
        return {name: (float(ends[0, at]), -float(ends[1, at])) for at, name in enumerate(used)}


def _rows(bank: Bank) -> int:
    return len(bank["global"])


def _own_blocks(queries: int, candidates: int, block: int | None) -> Iterator[slice]:
    """This rank's query blocks; their cut knows nothing of the world."""
    rank, ranks_in_all = world()
    size = block or max(1, min(LONGEST_BLOCK, BLOCK_SCORES // max(1, candidates)))
    for start in range(rank * size, queries, ranks_in_all * size):
        yield slice(start, min(start + size, queries))


def _rank(scores: Tensor, correct: Tensor) -> Tensor:
    """`(b, N)` scores and which candidates are right -> `(b,)`; 0 without a right one, -1 - (first NaN candidate) where
    a score is NaN.
    """
    best = scores.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)
    ahead = ((scores >= best) & ~correct).sum(dim=1)
    rank = torch.where(correct.any(dim=1), 1 + ahead, 0)
    nan = scores.isnan()
    return torch.where(nan.any(dim=1), -1 - nan.int().argmax(dim=1), rank)


def _exact(features: Tensor) -> Tensor:
    return features if features.device.type == "mps" else features.double()


def _check(text: Bank, visual: Bank, text_item: Tensor, group: Tensor) -> tuple[int, int]:
    """Numbers of texts and items."""
    texts, items = _rows(text), _rows(visual)
    if not texts or not items:
        raise DataError(f"nothing to rank: {texts} captions and {items} items")
    for name, index, rows in (("text_item", text_item, texts), ("group", group, items)):
        if index.shape != (rows,):
            raise DataError(
                f"{name} has shape {tuple(index.shape)}, expected ({rows},): one entry a row of the features"
            )
    outside = (text_item < 0) | (text_item >= items)
    if outside.any():
        at = int(outside.nonzero()[0])
        raise DataError(
            f"caption {at} belongs to item {int(text_item[at])}, but the gallery has items 0 to {items - 1}"
        )
    return texts, items
