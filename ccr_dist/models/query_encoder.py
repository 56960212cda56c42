"""The encoder of queries whose vectors a method maps into the backbone's text space."""

from __future__ import annotations

from ccr_dist.config import QueryEncoderConfig
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.sentence.backbone import SentenceBackbone
from ccr_dist.models.backbones.sentence.options import SentenceConfig


def build_query_encoder(cfg: QueryEncoderConfig) -> SentenceBackbone:
    """The encoder of a section `method.query`, frozen, on the CPU; ConfigError when it cannot be loaded.

    It is the backbone of kind `sentence` with the same text and prompt: their cached features are the same.
    """
    encoder = build_backbone(query_backbone(cfg))
    assert isinstance(encoder, SentenceBackbone)
    return encoder.eval()


def query_backbone(cfg: QueryEncoderConfig) -> SentenceConfig:
    """The same section as one of a backbone."""
    return SentenceConfig(kind="sentence", text=cfg.text, prompt=cfg.prompt)
