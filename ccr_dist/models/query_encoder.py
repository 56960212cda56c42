"""The encoder of queries whose vectors a method maps into the backbone's text space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ccr_dist.config import QueryEncoderConfig
from ccr_dist.errors import ConfigError
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.sentence.backbone import SentenceBackbone, folder_of
from ccr_dist.models.backbones.sentence.options import SentenceConfig
from ccr_dist.models.backbones.sentence_files import recipe_of
from ccr_dist.models.towers import TextTower


def build_query_encoder(cfg: QueryEncoderConfig) -> SentenceBackbone:
    """The encoder of a section `method.query`, frozen, on the CPU; ConfigError when it cannot be loaded.

    It is the backbone of kind `sentence` with the same text and prompt: their cached features are the same. With
    `layers` its features are others, and so is its name.
    """
    if cfg.layers is not None:
        encoder: Any = LayeredEncoder(query_backbone(cfg), cfg.layers)
        encoder.trainable_parameters("none")
    else:
        encoder = build_backbone(query_backbone(cfg))
    assert isinstance(encoder, SentenceBackbone)
    return encoder.eval()


def query_backbone(cfg: QueryEncoderConfig) -> SentenceConfig:
    """The same section as one of a backbone."""
    return SentenceConfig(kind="sentence", text=cfg.text, prompt=cfg.prompt)


def prompt_of(cfg: QueryEncoderConfig) -> str:
    """What stands before every query: the section's prompt, or else that of the encoder's own files. ConfigError when
    these cannot be read.
    """
    if cfg.prompt is not None:
        return cfg.prompt
    return recipe_of(folder_of(cfg.text), what=f"method.query: text encoder '{cfg.text}'").prompt


class LayeredEncoder(SentenceBackbone):
    """A sentence encoder whose vector is made of several layers, each pooled as the last one is, and of unit length, so
    that none outweighs another.

    Args:
        cfg: The encoder.
        layers: Numbers of the layers, 0 for the embeddings; `dim` is the width of all of them.

    Raises:
        ConfigError: The encoder cannot be loaded, has no such layer, or has more behind its pooling.
    """

    def __init__(self, cfg: SentenceConfig, layers: Sequence[int]) -> None:
        super().__init__(cfg)
        last = int(self.text.config.num_hidden_layers)
        if wrong := [layer for layer in layers if layer > last]:
            raise ConfigError(
                f"method.query.layers: {wrong[0]}, but the query encoder '{cfg.text}' has the layers 0 (embeddings) to"
                f" {last}"
            )
        if self.recipe.layers:
            raise ConfigError(
                f"method.query.layers: the query encoder '{cfg.text}' has more behind its pooling"
                f" ({', '.join(kind for kind, _ in self.recipe.layers)}), which fits its last layer alone; leave"
                " `layers` out"
            )
        self.layers = tuple(layers)
        self.dim *= len(self.layers)
        self.name = f"{self.name}-layers-{'-'.join(map(str, self.layers))}"

    def text_features(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.dim, device=self.device)
        ids, mask = self._tokenize(list(texts))
        states = self.text(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return torch.cat([normalize(self.text_head(states[layer], mask), dim=-1) for layer in self.layers], dim=-1)

    def description(self) -> dict[str, Any]:
        return {**super().description(), "layers": list(self.layers)}

    @property
    def tower(self) -> TextTower:
        """None: a tower ends in one layer."""
        raise ConfigError(
            f"method.query.layers: {list(self.layers)} of '{self.short}' are pooled beside each other, which this form"
            " has no place for; leave `layers` out"
        )
