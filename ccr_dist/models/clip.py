"""Any open_clip model as a `Backbone`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccr_dist.config import OpenClipConfig
from ccr_dist.errors import ConfigError
from ccr_dist.models.backbones import Backbone, slug
from ccr_dist.models.hf_tower import HuggingFaceTower
from ccr_dist.models.packages import version
from ccr_dist.models.towers import OpenClipTower, TextTower, unsupported


class OpenClipBackbone(Backbone):
    """Features are the model's own image and text features: `project_*` is the identity."""

    def __init__(self, cfg: OpenClipConfig) -> None:
        """ConfigError when open_clip knows no such model or weights, or cannot fetch them."""
        super().__init__()
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        pretrained = cfg.pretrained is not None or ":" in cfg.model  # a repository or folder brings its weights
        if cfg.pretrained is not None and ":" in cfg.model:
            raise ConfigError(
                f"backbone.pretrained: {cfg.pretrained!r} would be ignored, since '{cfg.model}' brings its own weights; leave it out"
            )
        try:
            # A scale that is a vector of one element, because DeepSpeed and FSDP take no scalars; checkpoints of either kind load.
            self.model: Any = open_clip.create_model(
                cfg.model, cfg.pretrained, precision="fp32", nonscalar_logit_scale=True, require_pretrained=pretrained
            )
            self.tokenizer: Any = open_clip.get_tokenizer(cfg.model)
        except (RuntimeError, OSError, ValueError) as error:
            raise ConfigError(
                f"backbone: open_clip cannot make model '{cfg.model}' with weights '{cfg.pretrained}' ({error}). "
                "`open_clip.list_pretrained()` lists what there is; weights that are not in the local cache need network, or give a "
                "checkpoint file as `pretrained`."
            ) from error
        self.model_name = cfg.model
        self.weights_name = Path(cfg.weights or cfg.pretrained or ("own" if pretrained else "random")).stem
        self.name = slug(f"{Path(cfg.model).name if ':' in cfg.model else cfg.model}-{self.weights_name}")
        self.preprocess: dict[str, Any] = dict(self.model.visual.preprocess_cfg)
        self._transform = image_transform_v2(PreprocessCfg(**self.preprocess), is_train=False)
        self._transform.random = False
        self.eval()
        with torch.no_grad():
            self.dim = self.model.encode_text(self.tokenizer(["?"])).shape[-1]  # the architectures keep it in different places

    def image_transform(self) -> Callable[[Any], Tensor]:
        return self._transform

    def image_features(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.dim, device=self.device)
        return self.model.encode_text(self.tokenizer(list(texts)).to(self.device))

    @cached_property
    def tower(self) -> TextTower:
        from open_clip.hf_model import HFTextEncoder
        from open_clip.model import CLIP, CustomTextCLIP

        if isinstance(self.model, CLIP):
            return OpenClipTower(self.model, self.tokenizer, name=self.name)
        if not isinstance(self.model, CustomTextCLIP):
            raise unsupported(self.name, f"it is a {type(self.model).__name__}")
        if not isinstance(self.model.text, HFTextEncoder):
            return OpenClipTower(self.model.text, self.tokenizer, name=self.name)
        return self._hugging_face_tower(self.model.text)

    def _hugging_face_tower(self, text: Any) -> TextTower:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
            ids = self.tokenizer(texts).to(self.device)
            return ids, ids != text.config.pad_token_id

        def pool(h: Any, mask: Tensor) -> Tensor:
            head = getattr(text.transformer, "pooler", None)
            output: Any = BaseModelOutputWithPooling(last_hidden_state=h, pooler_output=None if head is None else head(h))
            return text.pooler(output, mask.long())

        return HuggingFaceTower(
            text.transformer,
            self.tokenizer.tokenizer,
            encode,
            pool=pool,
            project=text.proj,
            dim=self.dim,
            context_length=self.tokenizer.context_length,
            name=self.name,
        )

    def description(self) -> dict[str, Any]:
        return {
            "kind": "open_clip",
            "model": Path(self.model_name).name if ":" in self.model_name else self.model_name,
            "pretrained": self.weights_name,
            "preprocess": {key: list(value) if isinstance(value, tuple) else value for key, value in self.preprocess.items()},
            "packages": {"open_clip_torch": version("open_clip_torch")},
        }

    def part_of(self, tensor: str) -> str:
        return "image" if tensor.startswith("model.visual.") else "text"
