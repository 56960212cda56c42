"""Any open_clip model as a `Backbone`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccr_dist.config.base_files import LOCAL_DIR
from ccr_dist.errors import ConfigError, let_pass
from ccr_dist.models import token_counts
from ccr_dist.models.attention import use_self_attention
from ccr_dist.models.backbones.backbone import Backbone, no_tokens, slug
from ccr_dist.models.backbones.image_encoders import trunk_tokens
from ccr_dist.models.backbones.open_clip.options import OpenClipConfig
from ccr_dist.models.backbones.registry import register_backbone
from ccr_dist.models.backbones.weightless import only_architecture
from ccr_dist.models.hf_tower import HuggingFaceTower
from ccr_dist.models.huggingface import bounded
from ccr_dist.models.packages import version
from ccr_dist.models.towers import OpenClipTower, TextTower, unsupported

CONFIG = "open_clip_config.json"
TEXT = "text-tower"  # in a model's folder: how its text encoder of transformers is made


@register_backbone("open_clip")
class OpenClipBackbone(Backbone):
    """Features are the model's own image and text features: `project_*` is the identity."""

    def __init__(self, cfg: OpenClipConfig) -> None:
        """ConfigError when open_clip knows no such model or weights, or cannot fetch them."""
        super().__init__()
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2
        from safetensors import SafetensorError

        tag = None if only_architecture() else cfg.pretrained
        # a repository or folder brings its weights
        pretrained = not only_architecture() and (tag is not None or ":" in cfg.model)
        if cfg.pretrained is not None and ":" in cfg.model:
            raise ConfigError(
                f"backbone.pretrained: {cfg.pretrained!r} would be ignored, since '{cfg.model}' brings its own weights;"
                " leave it out"
            )
        if cfg.pretrained is not None:
            _check_activation(cfg.model, cfg.pretrained)
        made: dict[str, Any] = {
            "precision": "fp32",
            "force_preprocess_cfg": {"resize_mode": {"crop": "shortest", "squash": "squash", None: None}[cfg.resize]},
            "nonscalar_logit_scale": True,
            "require_pretrained": pretrained,
            "load_weights": not only_architecture(),
            "pretrained_text": not only_architecture(),
            **_with_text_inside(cfg.model),
        }
        try:
            # A scale that is a vector of one element, because DeepSpeed and FSDP take no scalars; checkpoints of either
            # kind load.
            self.model: Any = open_clip.create_model(cfg.model, tag, force_image_size=cfg.image_size, **made)
            if cfg.positions == "plain":
                _resize_plainly(self.model, open_clip.create_model(cfg.model, tag, **made), cfg.model)
            self.tokenizer: Any = open_clip.get_tokenizer(cfg.model)
        except (
            RuntimeError,
            OSError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            AssertionError,
            SafetensorError,
        ) as error:
            let_pass(error, cfg.model)
            raise ConfigError(
                f"backbone: open_clip cannot make model '{cfg.model}'"
                + (f" with weights '{cfg.pretrained}'" if cfg.pretrained else "")
                + f" ({type(error).__name__}: {str(error).partition(' Available: ')[0]})."
                " `open_clip.list_models()` and `open_clip.list_pretrained()` list what there is; weights that are not"
                " in the local cache need network, or give a checkpoint file as `pretrained`."
            ) from error
        use_self_attention(self.model)
        self.model_name = cfg.model
        self.weights_name = Path(cfg.weights or cfg.pretrained or ("own" if pretrained else "random")).stem
        size = f"-{cfg.image_size}" if cfg.image_size else ""
        self.name = slug(f"{Path(cfg.model).name if ':' in cfg.model else cfg.model}-{self.weights_name}{size}")
        self.preprocess: dict[str, Any] = dict(self.model.visual.preprocess_cfg)
        self._transform = image_transform_v2(PreprocessCfg(**self.preprocess), is_train=False)
        self._transform.random = False
        self.eval()
        try:
            with torch.no_grad():
                # the architectures keep it in different places
                self.dim = self.model.encode_text(self.tokenizer(["?"])).shape[-1]
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"backbone: the text side of '{cfg.model}' does not work in this open_clip ({error})"
            ) from error

    def settings(self) -> dict[str, bytes]:
        if (found := described(self.model_name)) is None:
            return {}
        text = found["model_cfg"]["text_cfg"]
        tower = Path(text.get("hf_model_name") or "") / "config.json"
        if not text.get("hf_model_name") or not tower.is_file():
            return {}
        text["hf_model_name"] = TEXT
        if Path(text.get("hf_tokenizer_name") or "").is_absolute():  # the model's own folder is read
            text["hf_tokenizer_name"] = TEXT
        return {f"{TEXT}/config.json": tower.read_bytes(), CONFIG: json.dumps(found, indent=1).encode()}

    def image_transform(self) -> Callable[[Any], Tensor]:
        return self._transform

    def image_features(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """As LECCR has them: final norm and projection applied to every position, so that all are in the shared
        space.
        """
        from open_clip.timm_model import TimmModel
        from open_clip.transformer import VisionTransformer

        visual = self.model.visual
        if isinstance(visual, TimmModel) and not hasattr(visual.head, "pool"):
            return visual.head(trunk_tokens(visual.trunk, pixels))
        if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None:
            pooling = "" if isinstance(visual, VisionTransformer) else f" {type(visual).__name__}"
            raise no_tokens(self.name, f"its image encoder{pooling} pools by attention")
        found = visual.forward_intermediates(pixels, indices=1, normalize_intermediates=True, output_fmt="NLC")
        patches = found["image_intermediates"][0]
        if visual.proj is not None:
            patches = patches @ visual.proj
        return torch.cat([found["image_features"].unsqueeze(1), patches], dim=1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.dim, device=self.device)
        texts, cut = bounded(texts, self.tokenizer.context_length)
        ids = self.tokenizer(texts)
        token_counts.add(int((ids != self._pad).sum()))
        known = torch.tensor(cut)
        self.truncated += token_counts.once(
            sum(cut) + self._cut([text for text, long in zip(texts, cut, strict=True) if not long], ids[~known])
        )
        return self.model.encode_text(ids.to(self.device))

    def _cut(self, texts: Sequence[str], ids: Tensor) -> int:
        """How many texts lost their ends: those that look different where there is room for one token more."""
        full = (ids[:, -2:] != self._pad).any(1).nonzero()[:, 0]
        if not len(full):
            return 0
        roomier = self.tokenizer([texts[i] for i in full.tolist()], context_length=ids.shape[1] + 1)
        return int((roomier != torch.nn.functional.pad(ids[full], (0, 1), value=self._pad)).any(1).sum())

    @cached_property
    def _pad(self) -> int:
        return int(self.tokenizer([""])[0, -1])

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
            ids = self.tokenizer(bounded(texts, self.tokenizer.context_length)[0])
            token_counts.add(int((ids != text.config.pad_token_id).sum()))
            ids = ids.to(self.device)
            return ids, ids != text.config.pad_token_id

        def pool(h: Any, mask: Tensor) -> Tensor:
            head = getattr(text.transformer, "pooler", None)
            output: Any = BaseModelOutputWithPooling(
                last_hidden_state=h, pooler_output=None if head is None else head(h)
            )
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
            "preprocess": {
                key: list(value) if isinstance(value, tuple) else value for key, value in self.preprocess.items()
            },
            "packages": {"open_clip_torch": version("open_clip_torch")},
        }

    def part_of(self, tensor: str) -> str:
        return "image" if tensor.startswith("model.visual.") else "text"


def _resize_plainly(model: Any, original: Any, name: str) -> None:
    """Position embeddings of `original` (T, w), the first of them the class token's, to `model`'s grid as LECCR's
    release resizes them.

    Bicubic with a = -0.75. open_clip antialiases (a = -0.5), which gives other values for larger grids, too.
    ConfigError where the image encoder is none of open_clip's own vision transformers.
    """
    own, theirs = (getattr(each.visual, "positional_embedding", None) for each in (model, original))
    if own is None or theirs is None or own.ndim != 2:
        raise ConfigError(
            f"backbone.positions: the image encoder of '{name}' is no vision transformer of open_clip's own with one"
            " table of positions; leave it out"
        )
    sides = [math.isqrt(len(table) - 1) for table in (theirs, own)]
    grid = theirs[1:].T.reshape(1, -1, sides[0], sides[0])
    resized = torch.nn.functional.interpolate(grid, (sides[1], sides[1]), mode="bicubic", align_corners=False)
    with torch.no_grad():
        own.copy_(torch.cat([theirs[:1], resized.flatten(2)[0].T]))


def _check_activation(model: str, weights: str) -> None:
    """open_clip only warns where weights were trained with another activation than the architecture has; their features
    are wrong.
    """
    import open_clip

    known, architecture = open_clip.get_pretrained_cfg(model, weights), open_clip.get_model_config(model)
    if known and architecture and known.get("quick_gelu", False) and not architecture.get("quick_gelu", False):
        raise ConfigError(
            f"backbone: the weights '{weights}' were trained with QuickGELU, '{model}' has GELU: use model:"
            f" {model}-quickgelu"
        )


def described(model: str) -> dict[str, Any] | None:
    """What the folder of a model says of it; None: it is in no folder, or says nothing that open_clip could read."""
    if not model.startswith(LOCAL_DIR):
        return None
    try:
        found = json.loads((Path(model.removeprefix(LOCAL_DIR)) / CONFIG).read_text(encoding="utf-8"))
        return found if isinstance(found["model_cfg"]["text_cfg"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _with_text_inside(model: str) -> dict[str, Any]:
    """Arguments for open_clip where the text encoder is described by a folder inside of the model's: it would look for
    that in the working folder.
    """
    if (found := described(model)) is None:
        return {}
    text = found["model_cfg"]["text_cfg"]
    inside = Path(model.removeprefix(LOCAL_DIR)) / (text.get("hf_model_name") or ".")
    if not text.get("hf_model_name") or not (inside / "config.json").is_file():
        return {}
    return {"text_cfg": {**text, "hf_model_name": str(inside), "hf_model_pretrained": False}}
