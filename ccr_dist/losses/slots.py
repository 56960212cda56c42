"""What LECCR asks of its slots: the score of a text with the best of an item's slots, and how much the slots of one
item overlap.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from ccr_dist.losses.contrastive import similarities


def slot_scores(local: Tensor, text: Tensor) -> Tensor:
    """max_k <l_ik, x_j> of items' local features (n, K, D) and texts (m, D): (n, m). Slots are not normalised.

    Where slots tie, the first takes the whole gradient, as in the released code: by that, slots that begin alike come
    apart.
    """
    return reduce(_larger, (similarities(slot, text) for slot in local.unbind(dim=1)))  # never holds (n, K, m) at once


def _larger(a: Tensor, b: Tensor) -> Tensor:
    """`torch.maximum`, which would halve the gradient where both are equal."""
    return torch.where((a >= b) | a.isnan(), a, b)


def overlap(slots: Tensor) -> Tensor:
    """mean_kl (cos(s_k, s_l) - 1[k = l]) of each item's slots (n, K, d): (n,). Over all K² pairs, so that it can become
    negative.
    """
    slots = functional.normalize(slots if slots.dtype == torch.float64 else slots.float(), dim=-1)
    with torch.autocast(slots.device.type, enabled=False):
        return (slots @ slots.transpose(1, 2)).mean((1, 2)) - 1 / slots.shape[1]
