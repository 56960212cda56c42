"""What is trained of a pretrained sentence encoder, and what stays."""

from __future__ import annotations

from typing import Any

from torch import nn

from ccr_dist.errors import ConfigError
from ccr_dist.methods.distill.options import DistillOptions
from ccr_dist.methods.lora.network import variant
from ccr_dist.models.backbones.sentence.backbone import SentenceBackbone
from ccr_dist.models.opened import Opened, opened
from ccr_dist.models.text_encoder import freeze


def keep_trained(encoder: SentenceBackbone, options: DistillOptions) -> None:
    """Leaves as parameters what the options train; the rest become buffers, which no checkpoint holds.

    Low-rank matrices are put into the encoder's attention; they change nothing at the start.

    Raises:
        ConfigError: the encoder's blocks cannot be told apart, or there are fewer than are to be trained.
    """
    if options.train == "all":
        pooler = getattr(encoder.text, "pooler", None)
        if isinstance(pooler, nn.Module):  # nothing reads it
            freeze(pooler)
        return
    parts = _blocks_of(encoder, options)
    count = len(parts.blocks)
    if options.train == "blocks":
        if options.blocks > count:
            raise ConfigError(
                f"method.blocks: {options.blocks}, but the query encoder '{options.query.text}' has {count} blocks"
            )
        freeze(encoder, but=parts.blocks[count - options.blocks :])
        return
    low_rank: list[nn.Module] = []
    places: Any = parts.blocks
    for number, block in enumerate(list(parts.blocks)):
        what = f"method.train: lora: query encoder '{options.query.text}'"
        places[number], matrices = variant(
            block, options.targets, what, r=options.rank, lora_alpha=options.alpha, lora_dropout=0.0
        )
        low_rank.append(matrices)
    freeze(encoder, but=low_rank)


def _blocks_of(encoder: SentenceBackbone, options: DistillOptions) -> Opened:
    parts = opened(encoder.text)
    if parts is None:
        raise ConfigError(
            f"method.train: {options.train}: the blocks of the query encoder '{options.query.text}' (of type"
            f" '{encoder.text.config.model_type}') are not known apart; set `train: all`, or take another encoder"
        )
    return parts
