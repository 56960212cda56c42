"""Ranks of right answers by cosine, in both directions, from one product of all texts with all items.

A block is multiplied in float32. Where that product is too near to the score that decides a rank, the pair's exact
score decides; where many are (vectors that are nearly alike), the whole block is scored exactly. So every comparison is
that of exact scores, and neither the cut into blocks nor the division among processes can move a rank.

The score of a pair: rows in float64, divided by their length, the sum of their products, rounded to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ccr_dist.scoring import bounds
from ccr_dist.scoring.gallery import Floats, Numbers, row_lengths

Merge = Callable[[NDArray], NDArray]
BLOCK = 1024  # texts and items of a block
FEW_PAIRS = 1024  # right pairs of a group that are scored one by one, not as a product
PAIRS_AT_ONCE = 1 << 13
CROWDED = 256  # of one pair in so many near to a deciding score, an exact product of the whole block is cheaper
ALIKE = 1e-12  # a shorter row is not stretched further: as torch.nn.functional.normalize does


class Rows:
    """Rows as they are divided by their lengths.

    Attributes:
        lengths: (n,) float64, at least `ALIKE`.
    """

    def __init__(self, rows: NDArray) -> None:
        """rows: (n, D) float32 or float64; not copied."""
        self._rows = rows
        self.lengths = np.empty(len(rows))
        for start in range(0, len(rows), BLOCK):
            part = slice(start, start + BLOCK)
            self.lengths[part] = np.maximum(row_lengths(rows[part]), ALIKE)  # NaN stays NaN

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def width(self) -> int:
        return self._rows.shape[1]

    def exact(self, at: slice | Numbers) -> NDArray[np.float64]:
        """Unit rows in float64, the same bits whichever are asked for together."""
        return self._rows[at].astype(np.float64) / self.lengths[at, None]

    def near(self, at: slice | Numbers) -> Floats:
        """The same, rounded to float32."""
        return self.exact(at).astype(np.float32)

    def broken(self) -> int | None:
        """The first row that is not finite."""
        wrong = np.flatnonzero(~np.isfinite(self.lengths))
        return int(wrong[0]) if len(wrong) else None


@dataclass(frozen=True)
class Counts:
    """Ranks, from 1; 0 where no candidate is right."""

    text_to_visual: Numbers  # (Nt,)
    visual_to_text: Numbers  # (Nv,) candidates are texts
    by_item: Numbers  # (Nv,) candidates are items that have texts, each with its best


def ranks(
    text: Rows,
    visual: Rows,
    text_item: Numbers,
    group: Numbers,
    *,
    share: tuple[int, int] = (0, 1),
    merge: Merge = lambda values: values,
    block: int = BLOCK,
) -> Counts:
    """1 + the wrong candidates that score no less than the best right one.

    Args:
        text: Nt finite texts.
        visual: Nv finite items.
        text_item: (Nt,) the item that each text belongs to.
        group: (Nv,) items of one group are right for each other's texts.
        share: (this process, of how many): each does its share of the blocks.
        merge: the sum of an array over all processes. They call it together, as often.
        block: texts and items at a time.
    """
    return _Ranking(text, visual, text_item, group, share, merge, block).counts()


class _Ranking:
    """Texts are sorted by group and item, so that what belongs together lies together; `order` leads back.

    Of a text at its sorted place, or of an item: `best_...` is the best score with a right candidate, `right_...` the
    number of right candidates that have it.
    """

    def __init__(
        self,
        text: Rows,
        visual: Rows,
        text_item: Numbers,
        group: Numbers,
        share: tuple[int, int],
        merge: Merge,
        block: int,
    ) -> None:
        self.text, self.visual, self.share, self.merge, self.block = text, visual, share, merge, block
        _, self.group = np.unique(group, return_inverse=True)
        self.order = np.lexsort((text_item, self.group[text_item]))
        self.item = text_item[self.order]
        self.ends = np.append(np.flatnonzero(np.diff(self.item)) + 1, len(text))  # of each item's texts
        self.members = np.argsort(self.group, kind="stable")  # items by group
        groups = np.arange(self.group.max() + 2)
        self.first_text = np.searchsorted(self.group[self.item], groups)
        self.first_member = np.searchsorted(self.group[self.members], groups)
        self.near_visual = np.empty((len(visual), visual.width), np.float32)
        for start in range(0, len(visual), block):
            self.near_visual[start : start + block] = visual.near(slice(start, start + block))
        self.best_text, self.best_visual = np.zeros(len(text), np.float32), np.zeros(len(visual), np.float32)
        self.right_text = np.zeros(len(text), np.int64)
        self.right_captions, self.right_items = np.zeros((2, len(visual)), np.int64)

    def counts(self) -> Counts:
        self._decide()
        answered = np.diff(self.first_text)[self.group] > 0
        for_text = _Deciding(self.best_text, self.text.width)
        for_visual = _Deciding(np.where(answered, self.best_visual, np.float32(np.inf)), self.text.width)
        text, (captions, items) = np.zeros(len(self.text), np.int64), np.zeros((2, len(self.visual)), np.int64)
        rank, world = self.share
        for rows in list(self._units(slice(0, len(self.text))))[rank::world]:
            near = self.text.near(self.order[rows])
            for columns in self._columns(rows, len(self.visual)):
                by_text, by_visual = self._ahead(near, rows, columns, for_text, for_visual)
                text[rows] += count_rows(by_text)
                by_caption, by_item = self._counted(by_visual, rows)
                captions[columns] += by_caption
                items[columns] += by_item
        to_text = self.merge(np.stack([captions, items])) - np.stack([self.right_captions, self.right_items])
        to_visual = np.empty(len(self.text), np.int64)
        to_visual[self.order] = 1 + self.merge(text) - self.right_text
        return Counts(to_visual, *np.where(answered, 1 + to_text, 0))

    def _ahead(
        self, near: Floats, rows: slice, columns: slice, for_text: _Deciding, for_visual: _Deciding
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which pairs of a block score no less than the best right pair of the text, and of the item."""
        found = near @ self.near_visual[columns].T
        ahead, doubt = [], []
        for deciding, at in ((for_text, (rows, None)), (for_visual, (None, columns))):
            sure = found >= deciding.above[at]
            ahead.append(sure)
            doubt.append(np.flatnonzero(sure ^ (found >= deciding.below[at])))
        if sum(map(len, doubt)) > found.size // CROWDED:
            exact = self._exact(self.order[rows], columns)
            return exact >= for_text.best[rows, None], exact >= for_visual.best[None, columns]
        for sure, pairs, deciding, side in zip(ahead, doubt, (for_text, for_visual), (0, 1), strict=True):
            text, item = np.divmod(pairs, found.shape[1])
            text, item = rows.start + text, columns.start + item
            scores = self._scores(self.order[text], item)
            sure.reshape(-1)[pairs] = scores >= deciding.best[(text, item)[side]]
        return ahead[0], ahead[1]

    def _decide(self) -> None:
        """The best right score of every text and item, and how many right candidates have it."""
        texts, members = np.diff(self.first_text), np.diff(self.first_member)
        pairs = texts * members
        rank, world = self.share
        own = (np.cumsum(pairs) * world // (pairs.sum() + 1) == rank) & (pairs > 0)
        few = np.flatnonzero(own & (pairs <= FEW_PAIRS))
        for some in np.split(few, np.flatnonzero(np.diff(np.cumsum(pairs[few]) // PAIRS_AT_ONCE)) + 1):
            text = _ranges(self.first_text[some], texts[some])
            of = np.repeat(some, texts[some])
            item = self.members[_ranges(self.first_member[of], members[of])]
            self._decide_pairs(np.repeat(text, members[of]), item)
        for group in np.flatnonzero(own & (pairs > FEW_PAIRS)):
            self._decide_group(
                slice(self.first_text[group], self.first_text[group + 1]),
                self.members[self.first_member[group] : self.first_member[group + 1]],
            )
        for name in ("best_text", "best_visual", "right_text", "right_captions", "right_items"):
            setattr(self, name, self.merge(getattr(self, name)))

    def _decide_pairs(self, text: Numbers, item: Numbers) -> None:
        """All right pairs of some groups."""
        scores = self._scores(self.order[text], item)
        for best, at in ((self.best_text, text), (self.best_visual, item)):
            best[at] = -np.inf
            np.maximum.at(best, at, scores)
        np.add.at(self.right_text, text[scores == self.best_text[text]], 1)
        tied = scores == self.best_visual[item]
        np.add.at(self.right_captions, item[tied], 1)
        # an item that is right counts once, with however many of its captions
        owners = np.unique(np.stack([item[tied], self.item[text[tied]]]), axis=1)
        np.add.at(self.right_items, owners[0], 1)

    def _decide_group(self, texts: slice, members: Numbers) -> None:
        """All pairs of one group, in blocks."""
        self.best_text[texts], self.best_visual[members] = -np.inf, -np.inf
        for last in (False, True):
            for rows in self._units(texts):
                for columns in self._columns(rows, len(members)):
                    item = members[columns]
                    scores = self._exact(self.order[rows], item)
                    if last:
                        self.right_text[rows] += count_rows(scores == self.best_text[rows, None])
                        captions, items = self._counted(scores == self.best_visual[item], rows)
                        self.right_captions[item] += captions
                        self.right_items[item] += items
                    else:
                        self.best_text[rows] = np.maximum(self.best_text[rows], scores.max(axis=1))
                        self.best_visual[item] = np.maximum(self.best_visual[item], scores.max(axis=0))

    def _counted(self, mask: NDArray[np.bool_], rows: slice) -> tuple[Numbers, Numbers]:
        """How many texts of `rows`, and how many of their items, have a True in each column."""
        texts = count_columns(mask)
        starts = np.flatnonzero(np.diff(self.item[rows], prepend=-1))
        if len(starts) == len(mask):
            return texts, texts
        return texts, count_columns(np.bitwise_or.reduceat(mask.view(np.uint8), starts, axis=0).view(np.bool_))

    def _scores(self, text: Numbers, item: Numbers) -> Floats:
        """Of pairs, exact."""
        found = np.empty(len(text), np.float32)
        for start in range(0, len(text), PAIRS_AT_ONCE):
            at = slice(start, start + PAIRS_AT_ONCE)
            found[at] = bounds.scores(self.text.exact(text[at]), self.visual.exact(item[at]))
        return found

    def _exact(self, text: Numbers, item: slice | Numbers) -> Floats:
        """Of all texts with all items, exact: a product in float64, and pair by pair where its rounding is in doubt."""
        product = self.text.exact(text) @ self.visual.exact(item).T
        off = bounds.double_error(self.text.width)
        scores = (product - off).astype(np.float32)
        doubt = np.flatnonzero(scores != (product + off).astype(np.float32))
        if len(doubt):
            a, b = np.divmod(doubt, scores.shape[1])
            items = np.arange(len(self.visual))[item]
            scores.reshape(-1)[doubt] = self._scores(text[a], items[b])
        return scores

    def _units(self, texts: slice) -> Iterator[slice]:
        """Texts in blocks that end where an item's texts end, so that none is in two; the cut knows of no process."""
        start = texts.start
        while start < texts.stop:
            ends = self.ends[np.searchsorted(self.ends, start, side="right") :]
            fitting = int(np.searchsorted(ends, start + self.block, side="right"))
            end = min(int(ends[max(0, fitting - 1)]), texts.stop)
            yield slice(start, end)
            start = end

    def _columns(self, rows: slice, items: int) -> Iterator[slice]:
        """Items in blocks: the more texts there are, the fewer items."""
        size = max(1, self.block * self.block // (rows.stop - rows.start))
        for start in range(0, items, size):
            yield slice(start, min(start + size, items))


class _Deciding:
    """Scores that decide, and what a float32 product must reach to be surely no less, and to be perhaps no less.

    A score is no less than a float32 number where it is above the middle between that number and the one before.
    """

    def __init__(self, best: Floats, width: int) -> None:
        middle = (best.astype(np.float64) + np.nextafter(best, np.float32(-np.inf))) / 2
        middle[np.isinf(best)] = np.inf
        off = bounds.product_error(width)
        self.best = best
        self.above = np.nextafter((middle + off).astype(np.float32), np.float32(np.inf))
        self.below = np.nextafter((middle - off).astype(np.float32), np.float32(-np.inf))


def _ranges(starts: Numbers, counts: Numbers) -> Numbers:
    """start, start + 1, ... of each, `count` numbers of each, one after another."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + counts, counts)


def count_rows(mask: NDArray[np.bool_]) -> Numbers:
    """(b, n) -> (b,)"""
    return np.count_nonzero(mask, axis=1)


def count_columns(mask: NDArray[np.bool_]) -> Numbers:
    """(b, n) -> (n,); bytes hold up to 255, and sums of bytes are fast."""
    total = np.zeros(mask.shape[1], np.int64)
    for start in range(0, len(mask), 255):
        total += mask[start : start + 255].view(np.uint8).sum(axis=0, dtype=np.uint8)
    return total
