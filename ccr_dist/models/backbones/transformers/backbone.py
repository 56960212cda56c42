"""Dual encoders of transformers as a `Backbone`: its features are those of `get_text_features` and
`get_image_features`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ccr_dist.errors import ConfigError, let_pass
from ccr_dist.models import token_counts
from ccr_dist.models.backbones.backbone import Backbone, no_tokens, slug
from ccr_dist.models.backbones.registry import register_backbone
from ccr_dist.models.backbones.transformers.families import Family, check_ends, family_of, lowers
from ccr_dist.models.backbones.transformers.options import TransformersConfig
from ccr_dist.models.backbones.transformers.pictures import load_pictures, patches
from ccr_dist.models.backbones.transformers.towers import ClipTower, SiglipTower
from ccr_dist.models.backbones.weightless import only_architecture
from ccr_dist.models.hf_tower import HuggingFaceTower
from ccr_dist.models.huggingface import (
    at_revision,
    encode_texts,
    load_tokenizer,
    not_loaded,
    positions,
    quiet_loading,
)
from ccr_dist.models.packages import version
from ccr_dist.models.towers import TextTower


@register_backbone("transformers")
class TransformersBackbone(Backbone):
    """Features are the model's own image and text features: `project_*` is the identity."""

    def __init__(self, cfg: TransformersConfig) -> None:
        """ConfigError when the model cannot be loaded, is of another kind, or its parts do not fit together."""
        super().__init__()
        what = f"backbone: '{cfg.model}'"
        if cfg.revision is not None and Path(cfg.model).is_dir():
            raise ConfigError(
                f"backbone.revision: '{cfg.model}' is a local folder, which has no revisions; leave it out"
            )
        self.model, self.family = _load(cfg, what)
        # a vector of one element, because DeepSpeed and FSDP take no scalars
        self.model.logit_scale = nn.Parameter(self.model.logit_scale.detach().reshape(1))
        self.tokenizer: Any = load_tokenizer(cfg.model, what=what, revision=cfg.revision)
        self.context_length = self._context(cfg)
        self.lower = self.family.lower and not lowers(self.tokenizer)
        self.pictures = load_pictures(cfg.model, revision=cfg.revision, flexible=self.family.flexible, what=what)
        self.short, self.revision = Path(cfg.model).name, cfg.revision
        self.name = slug(f"{self.short}-{Path(cfg.weights).stem}" if cfg.weights else self.short)
        self.eval()
        self._check(what)

    def _context(self, cfg: TransformersConfig) -> int:
        longest = positions(self._text)
        if not self.family.fixed:
            longest = min(longest, self.tokenizer.model_max_length)
        if cfg.max_tokens is None:
            return longest
        if self.family.fixed or cfg.max_tokens > longest:
            raise ConfigError(
                f"backbone.max_tokens: texts of '{cfg.model}' are "
                + (f"padded to {longest} tokens; leave it out" if self.family.fixed else f"at most {longest} tokens")
            )
        return cfg.max_tokens

    def _check(self, what: str) -> None:
        """Its parts fit together, and give vectors of one space. Sets dim."""
        ids, mask = self._encode(["?", "? ? ? ?", "? " * 1000])
        self.truncated = 0
        words = self._text.get_input_embeddings().weight.shape[0]
        if max(self.tokenizer.get_vocab().values()) >= words:
            raise ConfigError(f"{what}: its tokeniser has more pieces than the model's {words}: not of the same model")
        if self.family.pooled == "end":
            check_ends(self.model.config.text_config, {"ids": ids, "mask": mask}, what=what)
        try:
            with torch.no_grad():
                text = self._text_features(ids[:1], mask[:1])
                picture = self.image_features(self.pictures(Image.new("RGB", (64, 48)))[None])
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ConfigError(
                f"{what}: its image processor, tokeniser and model do not fit together ({error})"
            ) from error
        self.dim = text.shape[-1]
        if picture.shape[-1] != self.dim:
            raise ConfigError(
                f"{what}: its picture vectors have {picture.shape[-1]} values and its text vectors {self.dim}; they are"
                " in no common space"
            )

    @property
    def _text(self) -> Any:
        """The text model, with its embeddings and blocks."""
        text = self.model.text_model
        return text.roberta if hasattr(text, "roberta") else text

    def image_transform(self) -> Callable[[Any], Tensor]:
        return self.pictures

    def image_features(self, pixels: Tensor) -> Tensor:
        inputs = patches(pixels) if self.family.flexible else {"pixel_values": pixels}
        return self.model.get_image_features(**inputs).pooler_output

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """As of open_clip's models: final norm and projection applied to every position."""
        if not self.family.tokens:
            raise no_tokens(self.name, f"its image encoder {type(self.model.vision_model).__name__} pools by attention")
        vision = self.model.vision_model
        states = vision(pixel_values=pixels).last_hidden_state
        return self.model.visual_projection(vision.post_layernorm(states))

    def text_features(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.dim, device=self.device)
        return self._text_features(*self._encode(list(texts)))

    def _text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        seen = {} if self.family.fixed else {"attention_mask": mask}
        return self.model.get_text_features(input_ids=ids, **seen).pooler_output

    def _encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        if self.lower:
            texts = [text.lower() for text in texts]
        ids, mask, cut = encode_texts(self.tokenizer, texts, self.context_length, fill=self.family.fixed)
        self.truncated += token_counts.once(cut)
        return ids.to(self.device), mask.to(self.device)

    @cached_property
    def tower(self) -> TextTower:
        model, text = self.model, self._text
        common: dict[str, Any] = {"dim": self.dim, "context_length": self.context_length}
        if self.family.pooled == "end":
            return ClipTower(text, self.tokenizer, self._encode, project=model.text_projection, **common)
        if self.family.pooled == "last":
            return SiglipTower(text, self.tokenizer, self._encode, project=text.head, **common)

        def pool(h: Tensor, mask: Tensor) -> Tensor:
            whole = model.text_model
            return h[:, 0] if whole is text else whole.transformation(whole.pre_LN(h[:, 0]))

        return HuggingFaceTower(
            text, self.tokenizer, self._encode, pool=pool, project=model.text_projection, name=self.name, **common
        )

    def description(self) -> dict[str, Any]:
        return {
            "kind": "transformers",
            "model": self.short,
            "revision": self.revision,
            "class": type(self.model).__name__,
            "preprocess": self.pictures.description(),
            "context_length": self.context_length,
            "lower": self.lower,
            "packages": {name: version(name) for name in ("transformers", "torchvision")},
        }

    def part_of(self, tensor: str) -> str:
        return "image" if tensor.startswith(("model.vision_model.", "model.visual_projection.")) else "text"


def _load(cfg: TransformersConfig, what: str) -> tuple[Any, Family]:
    """The model with its weights in float32, and its family."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(cfg.model, **at_revision(cfg.revision))
        family = family_of(config, what=what)
        if only_architecture():
            return AutoModel.from_config(config), family
        with quiet_loading():
            model, found = AutoModel.from_pretrained(
                cfg.model, dtype=torch.float32, output_loading_info=True, **at_revision(cfg.revision)
            )
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        let_pass(error, cfg.model)
        raise not_loaded(error, what, "") from error
    if missing := sorted(found["missing_keys"]):
        raise ConfigError(
            f"{what}: the weights lack {len(missing)} tensors of a {type(model).__name__}, for example {missing[0]};"
            " they would be random"
        )
    return model, family
