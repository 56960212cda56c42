"""Symmetric contrastive loss over the global batch, as a share of each rank.

`SC(X, Y; P, tau)` of the literature: half the cross entropy from X to Y and half from Y to X, with label matrix P. Pure: no process
group in here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def positives(rows: Tensor, columns: Tensor) -> Tensor:
    """Row-normalised label matrix, (n, B): every column of a row's group is equally right.

    Args:
        rows: (n,) group ids of the rows.
        columns: (B,) group ids of the columns; contains every row's group.
    """
    same = (rows[:, None] == columns[None, :]).float()
    return same / same.sum(dim=1, keepdim=True)


def contrastive_share(x: Tensor, y: Tensor, all_x: Tensor, all_y: Tensor, labels: Tensor, scale: Tensor | float) -> Tensor:
    """This rank's share of SC; the sum over ranks is the loss of the global batch.

    Args:
        x, y: this rank's features, (n, D), unit length; n may be 0.
        all_x, all_y: the global batch's features in the same order on every rank, (B, D), gathered with gradient.
        labels: (n, B), rows sum to one.
        scale: 1/tau.

    Returns:
        Scalar in float32 (float64 for float64 features).
    """
    x, y, all_x, all_y = (t if t.dtype == torch.float64 else t.float() for t in (x, y, all_x, all_y))
    labels = labels.to(x.dtype)
    total = 2 * all_x.shape[0]
    share = x.new_zeros(())
    for rows, columns in ((x, all_y), (y, all_x)):
        logits = scale * rows @ columns.T
        share = share - (labels * functional.log_softmax(logits, dim=1)).sum() / total
    return share
