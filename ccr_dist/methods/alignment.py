"""The terms that draw captions towards the English feature of the same caption, or towards pictures.

Methods that have them have options of the same names: `mse`, `cosine`, `contrastive`, `scale`, `positives`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import cosine_similarity

from ccr_dist.data.stream.loader import Batch
from ccr_dist.losses.context import Context


def towards_english(options: Any, found: Tensor, english: Tensor, ctx: Context) -> dict[str, Tensor]:
    """Weighted "mse" and "cosine", this rank's shares.

    Args:
        options: the method's; a weight of 0 leaves a term out.
        found: (n, D) of captions.
        english: (n, D) of the English captions of the same rows.
        ctx: of the global batch.
    """
    terms: dict[str, Tensor] = {}
    if options.mse:
        terms["mse"] = options.mse * ctx.mean((found - english).square().mean(-1))
    if options.cosine:
        terms["cosine"] = options.cosine * ctx.mean(1 - cosine_similarity(found, english, dim=-1))
    return terms


def towards_pictures(options: Any, found: Tensor, visual: Tensor, batch: Batch, ctx: Context) -> dict[str, Tensor]:
    """Weighted "contrastive", the symmetric InfoNCE, this rank's share.

    Args:
        options: the method's; a weight of 0 leaves the term out.
        found: (n, D) of captions.
        visual: (n, D) of the pictures of the same rows.
        batch: this rank's rows.
        ctx: of the global batch.
    """
    if not options.contrastive:
        return {}
    group = batch.group if options.positives == "group" else None
    return {"contrastive": options.contrastive * ctx.contrastive(found, visual, scale=options.scale, group=group)}
