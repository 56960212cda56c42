"""The backbone's features of a batch, as methods use them: cached or computed, frozen or not, and for any number of rows, also none.

A rank without rows encodes one dummy row and cuts it off again: libraries refuse empty batches here and there, and an output that hangs on
no parameter would leave this rank out of the collectives of the backward pass, which the others wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ccr_dist.data.loader import Batch
    from ccr_dist.models.backbones import Backbone


def at_least_one(texts: Sequence[str]) -> list[str]:
    """The texts, or one empty text in place of none; the caller cuts the result to `len(texts)` rows."""
    return list(texts) or [""]


def encode_english(backbone: Backbone, texts: Sequence[str]) -> Tensor:
    """(n, D), n ≥ 0, not normalised, the backbone's own path."""
    return backbone.encode_text(at_least_one(texts))[: len(texts)]


def encode_visual(backbone: Backbone, visual: Tensor) -> Tensor:
    """Pixels (n, 3, H, W) or cached features (n, F) to (n, D), n ≥ 0, not normalised."""
    rows = visual if len(visual) else visual.new_zeros((1, *visual.shape[1:]))
    return backbone.encode_image(rows)[: len(visual)]


def english(backbone: Backbone, batch: Batch) -> Tensor:
    """The English captions' features (n, D), from the cached column where there is one. Keeps gradients of projection heads."""
    if batch.source_feature is None:
        return encode_english(backbone, batch.source_text)
    cached = batch.source_feature
    rows = cached if len(cached) else cached.new_zeros((1, *cached.shape[1:]))
    return backbone.project_text(rows)[: len(cached)]


def frozen(encode: Callable[[], Tensor]) -> Tensor:
    """A constant of the step: computed without gradient, float32 (or float64)."""
    import torch

    with torch.no_grad():
        return precise(encode())


def precise(x: Tensor) -> Tensor:
    """Float32, where autocast left something smaller: losses are computed in it."""
    return x.float() if x.dtype.itemsize < 4 else x
