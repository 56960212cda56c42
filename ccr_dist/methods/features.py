"""The backbone's features of a batch, as methods use them: cached or computed, frozen or not, and for any number of
rows, also none.

A rank without rows encodes one dummy row and removes it again: libraries refuse empty batches here and there, and an
output that depends on no parameter would exclude this rank from the collectives of the backward pass, for which the
others wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import layer_norm
from torch.utils.checkpoint import checkpoint

from ccr_dist.data.stream.loader import Batch
from ccr_dist.models.backbones.backbone import Backbone
from ccr_dist.models.towers import TextTower


def at_least_one(texts: Sequence[str]) -> list[str]:
    """The texts, or one empty text if there are none; the caller truncates the result to `len(texts)` rows."""
    return list(texts) or [""]


def encode_english(backbone: Backbone, texts: Sequence[str]) -> Tensor:
    """(n, D), n ≥ 0, not normalised, the backbone's own path."""
    return backbone.encode_text(at_least_one(texts))[: len(texts)]


def one_row(rows: Tensor) -> Tensor:
    """The rows, or one row of zeros if there are none; the caller truncates the result."""
    return rows if rows.shape[0] else rows.new_zeros((1, *rows.shape[1:]))


def nothing_like(visual: Tensor) -> Tensor:
    """One item of zeros for a batch of none: a picture (1, 3, H, W), or one token (1, 1, F). The caller truncates the
    result to no rows.
    """
    if visual.ndim == 4:
        return visual.new_zeros(1, *visual.shape[1:])
    return visual.new_zeros(1, 1, visual.shape[-1])


def encode_visual(backbone: Backbone, visual: Tensor, *, heads: Backbone | None = None) -> Tensor:
    """Pixels (n, 3, H, W) or cached features (n, F) to (n, D), n ≥ 0, not normalised. heads: the backbone whose
    projection is taken; by default its own.
    """
    rows = one_row(visual)
    features = _in_slices(backbone, backbone.image_features, rows) if rows.ndim == 4 else rows
    return (heads or backbone).project_image(features)[: visual.shape[0]]


def image_tokens(backbone: Backbone, pixels: Tensor, *, recompute: bool = False) -> Tensor:
    """Pixels (n, 3, H, W), n ≥ 1, to (n, T, F). recompute: a backward pass does the image encoder's work once more,
    slice by slice.
    """

    def again(some: Tensor) -> Tensor:
        found: Tensor = checkpoint(backbone.image_tokens, some, use_reentrant=False)
        return found

    return _in_slices(backbone, again if recompute else backbone.image_tokens, pixels, keeps=not recompute)


def _in_slices(backbone: Backbone, encode: Callable[[Tensor], Tensor], pixels: Tensor, *, keeps: bool = True) -> Tensor:
    """`encode(pixels)` of n ≥ 1 pictures, some at a time where no activations are kept for a backward pass: those of
    512 pictures are gigabytes, and on a CPU those of 16 stay in its caches, which makes EfficientNet-Lite0 more than
    twice as fast.
    """
    if not backbone.slices or (keeps and torch.is_grad_enabled() and backbone.trains("image")):
        return encode(pixels)
    return torch.cat([encode(some) for some in pixels.split(16 if pixels.device.type == "cpu" else 128)])


def english(backbone: Backbone, batch: Batch) -> Tensor:
    """The English captions' features (n, D), from the cached column where there is one. Keeps gradients of projection
    heads.
    """
    return _english(backbone, batch.source_text, batch.source_feature)


def back(backbone: Backbone, batch: Batch) -> Tensor:
    """The English features (n, D) of the target captions' back-translations, from the cached column where there is
    one.
    """
    return _english(backbone, batch.back_text, batch.back_feature)


def _english(backbone: Backbone, texts: Sequence[str], cached: Tensor | None) -> Tensor:
    if cached is None:
        return encode_english(backbone, texts)
    return backbone.project_text(one_row(cached))[: len(cached)]


def frozen(encode: Callable[[], Tensor]) -> Tensor:
    """A constant of the step: computed without gradient, float32 (or float64)."""
    with torch.no_grad():
        return precise(encode())


def precise(x: Tensor) -> Tensor:
    """Float32, where autocast left something smaller: losses are computed in it."""
    return x.float() if x.dtype.itemsize < 4 else x


def gram(x: Tensor) -> Tensor:
    """x.T @ x (width, width) of (n, width), n ≥ 0: little more than the half of it is computed, and mirrored."""
    width = x.shape[1]
    step = max(1, -(-width // 4))
    found = x.new_empty(width, width)
    for first in range(0, width, step):
        part = x[:, first : first + step].T @ x[:, first:]
        found[first : first + step, first:] = part
        found[first:, first : first + step] = part.T
    return found


def text_states(tower: TextTower, texts: Sequence[str]) -> tuple[Tensor, Tensor, int]:
    """Frozen states (n, L, width) of English texts behind the tower's last block, normalised without weights, their
    mask (n, L), n ≥ 1, and how many of the texts fill the tower's context: its tokeniser cuts longer ones to that.
    """
    with torch.no_grad():
        x, mask, _ = tower.embed_native(at_least_one(texts))
        h = tower.states(x, mask)
        return layer_norm(precise(h), h.shape[-1:]), mask, int((mask.sum(1) >= tower.context_length).sum())
