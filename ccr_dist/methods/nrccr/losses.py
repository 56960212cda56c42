"""Triplet ranking with the hardest negative of the batch (Faghri et al., VSE++, BMVC 2018), as NRCCR uses it. Per row;
reducing is the caller's affair.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hardest_negative(similarity: Tensor, own: Tensor, right: Tensor, margin: float) -> Tensor:
    """max(0, margin + the most similar wrong column - the own partner), (n,); 0 for a row without a wrong column.

    Of columns that tie the first takes the gradient, as in the released code of NRCCR.

    Args:
        similarity: (n, B) of this rank's rows with all columns.
        own: (n,) of each row with its partner.
        right: (n, B) bool, columns that are no negatives; the partner is one of them.
    """
    if not similarity.shape[1]:  # no rows, either; torch knows no maximum of nothing
        return own
    worst = similarity.masked_fill(right, -torch.inf).max(dim=1).values
    return (margin + worst - own).clamp(min=0)
