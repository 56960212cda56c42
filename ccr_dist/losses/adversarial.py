"""DASD's adversarial pair (Cai et al., AAAI 2025): a discriminator of (semantics-free vector, semantic vector) pairs
and the loss of its opponent.

The discriminator learns whether a semantic vector belongs to the caption behind f_sa; the encoder is rewarded when a
strange pair passes for a true one, so that f_sa carries no semantics. All values are per row; the caller
reduces them over the global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TRUE_PAIR, STRANGE_PAIR = 0, 1  # the class that each logit stands for


class Discriminator(nn.Module):
    """[f_sa; y] (n, inputs) to two logits (n, 2), by way of 256 and 128 tanh units."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, 256), nn.Tanh(), nn.Linear(256, 128), nn.Tanh(), nn.Linear(128, 2)
        )

    def forward(self, pairs: Tensor) -> Tensor:
        return self.layers(pairs)


def loss_of_class(logits: Tensor, which: int) -> Tensor:
    """Binary cross entropy of two logits (n, 2) with the one-hot class `which`, mean over the two: (n,)."""
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    target = torch.zeros_like(logits)
    target[:, which] = 1
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(-1)


def discriminator_loss(discriminator: nn.Module, free: Tensor, semantic: Tensor, strange: Tensor) -> Tensor:
    """½ (BCE on the true pair + BCE on the strange pair), (n,). `free` (n, w) is f_sa; `semantic` (n, D) its own,
    `strange` (n, D) another row's.
    """
    of_strange = loss_of_class(discriminator(torch.cat([free, strange], -1)), STRANGE_PAIR)
    of_true = loss_of_class(discriminator(torch.cat([free, semantic], -1)), TRUE_PAIR)
    return 0.5 * (of_strange + of_true)


def confusion_loss(discriminator: nn.Module, free: Tensor, strange: Tensor, *, isolated: bool = True) -> Tensor:
    """BCE of taking the strange pair for a true one, (n,). Its gradient reaches `free`, never the semantic vector, and
    the discriminator only where it is not `isolated`.
    """
    pairs = torch.cat([free, strange.detach()], -1)
    if not isolated:
        return loss_of_class(discriminator(pairs), TRUE_PAIR)
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return loss_of_class(torch.func.functional_call(discriminator, fixed, (pairs,)), TRUE_PAIR)
