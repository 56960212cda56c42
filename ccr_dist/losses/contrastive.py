"""Contrastive losses over the global batch, row by row.

`SC(X, Y; P, tau)` of the literature: half the cross entropy from X to Y and half from Y to X, with label matrix P.
Pure: no process group in here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# features (n, ...) and (m, ...) to (n, m), differentiable, each entry by itself
Score = Callable[[Tensor, Tensor], Tensor]


def positives(rows: Tensor, columns: Tensor, among: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Row-normalised label matrix, (n, B): every column of a row's group is equally right.

    Args:
        rows: (n,) group ids of the rows.
        columns: (B,) group ids of the columns; contains every row's group.
        among: (n, B) bool, the columns that count for a row; its own place is one of them.
        dtype: of the labels, that of the logits they are for.
    """
    same = rows[:, None] == columns[None, :]
    if among is not None:
        same = same & among
    same = same.to(dtype)
    return same / same.sum(dim=1, keepdim=True)


def similarities(x: Tensor, y: Tensor) -> Tensor:
    """Dot products (n, B) of (n, D) and (B, D) in float32 (float64 for float64 features), under autocast, too."""
    with torch.autocast(x.device.type, enabled=False):
        x, y = (t if t.dtype == torch.float64 else t.float() for t in (x, y))
        return x @ y.T


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each row, (n,): -sum_j P_ij log softmax_j(Z_ij) of logits Z and labels P, both (n, B)."""
    return -(labels.to(logits.dtype) * functional.log_softmax(logits, dim=1)).sum(dim=1)


def symmetric(
    x: Tensor,
    y: Tensor,
    *,
    all_x: Tensor,
    all_y: Tensor,
    group: Tensor,
    groups: Tensor,
    scale: Tensor | float,
    score: Score = similarities,
) -> Tensor:
    """Of each of this rank's rows, (n,), by (n, B) logits with all columns; the mean over the global batch is SC.

    Args:
        x, y: this rank's features, (n, ...); n may be 0.
        all_x, all_y: the global batch's features in the same order on every rank, (B, ...), gathered with gradient.
        group, groups: ids (n,) of the rows and (B,) of the global batch; rows with the same id are positives of each
            other.
        scale: 1/tau.
        score: logits are scale times this; `slots.slot_scores` takes x of (n, K, D).

    Returns:
        float32 (float64 for float64 features).
    """
    forth, back = scale * score(x, all_y), scale * score(all_x, y).T
    labels = positives(group, groups, dtype=forth.dtype)
    return (cross_entropy(forth, labels) + cross_entropy(back, labels)) / 2
