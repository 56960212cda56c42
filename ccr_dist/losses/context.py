"""What a method may ask about the other ranks. It is all a method sees of distribution: no rank, no world size.

Every loss that a method returns is its rank's *share*: the sum over ranks is the loss of the global batch, for any
split into ranks. Logits are those of a rank's own rows with all columns, and gradients reach the features of all ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ccr_dist.data.stream.order import mix
from ccr_dist.losses import tiled
from ccr_dist.losses.contrastive import Score, cross_entropy, positives, similarities, symmetric
from ccr_dist.losses.gather import gather_rows, largest, own, row_counts, world


class Context:
    """The global batch of one step, seen from one rank.

    Args:
        seed: the run's seed.
        step: the global step k; with the seed it fixes every pairing.
        rows: rows on this rank.
        device: where collectives take their tensors.
        loss: how `contrastive` is computed; the value is the same. gathered: all (n, B) logits at once. tiled: one tile
            of them at a time. ring: tiles, and features are passed round instead of gathered. auto: tiled where (n, B)
            is larger than a tile.
        scope: global, or local: the global batch is this rank's rows, and the share is that of the mean over ranks, all
            with the same weight, as DDP averages losses that each process computes separately. The result then depends
            on the number of processes. No published method does this for all of its terms; LECCR's released code does
            it for those of its slots (`method.processes`).
        counts: rows of every rank, where they are known; None: the ranks are asked.
    """

    def __init__(
        self,
        *,
        seed: int,
        step: int,
        rows: int,
        device: torch.device | str = "cpu",
        loss: Literal["auto", "gathered", "tiled", "ring"] = "auto",
        scope: Literal["global", "local"] = "global",
        counts: Sequence[int] | None = None,
    ) -> None:
        self.seed = seed
        self.step = step
        self.loss = loss
        if scope == "local":
            self.counts = [rows]
        else:
            self.counts = row_counts(rows, device) if counts is None else list(counts)
        self.batch = sum(self.counts)
        self._first = own(self.counts).start
        self._whole = self.batch if scope == "global" else max(rows, 1) * world()[1]
        self._weights: Tensor | None = None

    def gather(self, rows: Tensor) -> Tensor:
        """(n, ...) -> (B, ...), with gradient; the order of the rows does not depend on the world size."""
        return gather_rows(rows, self.counts)

    def mean(self, per_row: Tensor) -> Tensor:
        """Share of the mean over the global batch of a per-row value, (n,) -> scalar."""
        return (per_row if self._weights is None else self._weights * per_row).sum() / self._whole

    def weighted(self, weights: Tensor) -> Context:
        """The same batch, where a row counts `weights` (n,) times in `mean` and in all losses, which are means of rows;
        1 on average.
        """
        other = copy.copy(self)
        other._weights = weights
        return other

    def contrastive(
        self, x: Tensor, y: Tensor, *, scale: Tensor | float, group: Tensor | None = None, score: Score | None = None
    ) -> Tensor:
        """Share of the symmetric contrastive loss of the global batch, of logits scale * score(x_i, y_j).

        Args:
            x, y: features of this rank's rows; (n, D), brought to unit length here, if no `score` is given.
            scale: 1/tau, a number or a tensor (its gradient, too, is a share).
            group: (n,) int64, rows with the same number are positives of each other; None: only a row and its partner.
            score: from features (n, ...) and (m, ...) to (n, m), such as `slot_scores`; None: cosines.
        """
        if score is None:
            x, y, score = functional.normalize(x, dim=-1), functional.normalize(y, dim=-1), similarities
        small = max(self.counts) * self.batch <= tiled.tile_of(x.device) ** 2  # on all ranks alike
        if self.loss == "gathered" or (self.loss == "auto" and small):
            ids, all_ids = self._ids(group, x.device)
            every_x, every_y = self.gather(x), self.gather(y)
            return self.mean(
                symmetric(x, y, all_x=every_x, all_y=every_y, group=ids, groups=all_ids, scale=scale, score=score)
            )
        groups = None if group is None else self.gather(group)
        around = self.loss == "ring"
        return self.mean(
            tiled.symmetric(x, y, scale=scale, counts=self.counts, groups=groups, score=score, around=around)
        )

    def matching(self, scores: Tensor, *, group: Tensor | None = None, chunk: int | None = None) -> Tensor:
        """Share of the symmetric contrastive loss of the global batch's logits Z (B, B), 1/2 [CE(P, Z) + CE(P, Z^T)].

        Args:
            scores: (n, B), this rank's rows of Z; columns are the other side of the same B rows.
            group: as in `contrastive`.
            chunk: the global batch is divided in parts of this many rows, and a row is compared with its own part only;
                the mean is still over all rows. None: the whole batch.
        """
        near = self._near(chunk, scores)
        labels = positives(*self._ids(group, scores.device), near, scores.dtype)
        both = scores.new_zeros(scores.shape[0])
        for logits in (scores, self.transpose(scores)):
            both = both + cross_entropy(_among(logits, near), labels)
        return self.mean(both / 2)

    def classify(self, scores: Tensor, *, group: Tensor | None = None, chunk: int | None = None) -> Tensor:
        """Share of CE(P, Z) of the global batch, rows to columns alone; arguments as in `matching`."""
        near = self._near(chunk, scores)
        labels = positives(*self._ids(group, scores.device), near, scores.dtype)
        return self.mean(cross_entropy(_among(scores, near), labels))

    def transpose(self, scores: Tensor) -> Tensor:
        """This rank's rows (n, B) of a matrix over the global batch to its rows of the transposed matrix, (n, B), with
        gradient.
        """
        return self.gather(scores)[:, self._first : self._first + scores.shape[0]].T

    def minmax(self, scores: Tensor) -> Tensor:
        """This rank's rows (n, B) of a matrix, brought to [0, 1] by the whole matrix's least and largest value. Without
        gradient.

        A matrix of equal values becomes zeros.
        """
        scores = scores.detach()
        ends = scores.new_full((2,), -torch.inf)
        if scores.numel():
            ends = torch.stack([-scores.min(), scores.max()])
        if len(self.counts) > 1:
            ends = largest(ends)
        low, high = (ends * ends.new_tensor([-1.0, 1.0])).unbind()
        return (scores - low) / torch.where(high > low, high - low, 1.0)

    def _near(self, chunk: int | None, scores: Tensor) -> Tensor | None:
        """(n, B), which columns are in the same part of the global batch as a row; None: all of them."""
        if chunk is None:
            return None
        rows, columns = self._ids(None, scores.device)
        return rows[:, None] // chunk == columns[None, :] // chunk

    def _ids(self, group: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """Group ids of this rank's rows (n,) and of the global batch (B,); without groups, places in the global
        batch.
        """
        if group is not None:
            return group, self.gather(group)
        places = torch.arange(self.batch, device=device)
        return places[own(self.counts)], places

    def permute(self, rows: Tensor, pairing: Literal["derangement", "reversed"] = "derangement") -> Tensor:
        """Rows of the global batch re-paired, (n, ...) -> (n, ...), without gradient.

        Args:
            rows: (n, ...) of this rank.
            pairing: "derangement": no row keeps its own partner (B > 1); one cycle through a random order of the batch,
                a pure function of (seed, step). "reversed": the first row receives the last one's partner, and so on;
                the middle row of an odd batch keeps its own.
        """
        if pairing == "reversed":
            return self.gather(rows.detach()).flip(0)[self._first : self._first + rows.shape[0]]
        order = sorted(range(self.batch), key=lambda i: mix(self.seed, self.step, i, 0x9A17))
        partner = [0] * self.batch
        for here, there in zip(order, order[1:] + order[:1], strict=True):
            partner[here] = there
        mine = partner[self._first : self._first + rows.shape[0]]
        return self.gather(rows.detach())[torch.tensor(mine, dtype=torch.int64, device=rows.device)]


def _among(logits: Tensor, near: Tensor | None) -> Tensor:
    """Without what is not near; finite, since its label 0 times -inf would be NaN."""
    return logits if near is None else logits.masked_fill(~near, torch.finfo(logits.dtype).min)
