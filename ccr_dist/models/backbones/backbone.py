"""The pretrained dual encoder that every method stands on: `Backbone` is the contract, `build_backbone` makes one from
its config.

Each kind has a folder here and is found by its name (`registry.py`). Other languages do not belong here.
"""

from __future__ import annotations

import hashlib
import math
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ccr_dist.errors import ConfigError, EngineError
from ccr_dist.models.backbones.weightless import only_architecture
from ccr_dist.models.towers import TextTower

Trained = Literal["none", "heads", "text", "all"]
PARTS = ("image", "text", "heads")


class Backbone(nn.Module):
    """Frozen image and text encoders into one space of `dim` dimensions. Float32 weights; features are not normalised.

    It stays in eval mode whatever `train()` says, except for heads that are being trained: statistics of a batch and
    dropout inside the encoders would make a run depend on how batches are cut over processes.
    """

    name: str  # slug for column names
    dim: int  # D
    sees: bool = True  # pictures
    heads: nn.Module | None  # the trainable projections into the shared space, where the architecture has them apart
    # buffers that are computed when the model is made, and whose last bits may depend on the machine
    computed: frozenset[str] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.heads = None
        self.truncated = 0  # texts that the tokeniser has truncated in this process so far
        # a batch may come in parts; not where weights are in shards, since all ranks then have to call it alike
        self.slices = True
        self._unfrozen: Trained = "none"
        self._digests: dict[str, str] = {}

    # What a kind of backbone provides.

    @abstractmethod
    def image_transform(self) -> Callable[[Any], Tensor]:
        """PIL picture to (3, H, W) float32; its attribute `random` is False: the same picture gives the same tensor."""

    @abstractmethod
    def image_features(self, pixels: Tensor) -> Tensor:
        """(n, 3, H, W) to (n, F): what `featurise` caches."""

    @abstractmethod
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """English texts to (n, Ft), the wrapped library's own path: what `featurise` caches."""

    @property
    @abstractmethod
    def tower(self) -> TextTower:
        """The text transformer with adapter slots; ConfigError naming the architecture where it has none."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """JSON: kind, models, preprocessing and package versions, no paths."""

    def settings(self) -> dict[str, bytes]:
        """Files that a copy of the folder named by `backbone.model` needs besides, or in place of, those that it has,
        so that it is whole on another machine: place in the folder -> content.
        """
        return {}

    @abstractmethod
    def part_of(self, tensor: str) -> str:
        """The part, "image", "text" or "heads", that a parameter or buffer belongs to, by its name."""

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """(n, 3, H, W) to (n, T, F): the global feature, then one vector a patch or position, row by row.

        The global one is `image_features` where that is as wide as the others. ConfigError naming the architecture
        where there are none.
        """
        raise no_tokens(self.name, "it has no image encoder")

    def project_image(self, features: Tensor) -> Tensor:
        """Cached (n, F) to the shared space (n, D)."""
        return features

    def project_text(self, features: Tensor) -> Tensor:
        """Cached (n, Ft) to the shared space (n, D)."""
        return features

    # What follows from it.

    def encode_image(self, visual: Tensor) -> Tensor:
        """Pixels (n, 3, H, W) or cached features (n, F) to (n, D)."""
        return self.project_image(self.image_features(visual) if visual.ndim == 4 else visual)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """English texts to (n, D), exactly as the wrapped library encodes them."""
        return self.project_text(self.text_features(texts))

    @cached_property
    def token_width(self) -> int:
        """F of `image_tokens`, by asking the model. ConfigError as there."""
        from PIL import Image

        with torch.no_grad():
            return self.image_tokens(self.image_transform()(Image.new("RGB", (64, 64)))[None].to(self.device)).shape[-1]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def identity(self) -> dict[str, Any]:
        """JSON that names this model and its weights: the description and a digest of each part's tensors, and of all
        of them.
        """
        digests = {part: self._digest(part) for part in PARTS}
        return {
            **self.description(),
            "parts": digests,
            "digest": hashlib.sha256("".join(digests.values()).encode()).hexdigest(),
        }

    def feature_identity(self, side: Literal["image", "text"]) -> dict[str, Any]:
        """JSON that names what `image_features` or `text_features` depends on: training the heads leaves cached
        features valid.
        """
        return {**self.description(), "side": side, "digest": self._digest(side)}

    def _digest(self, part: str) -> str:
        if only_architecture():
            return "architecture alone"
        if self._unfrozen in ("all", part):
            self._digests.pop(part, None)
        if part not in self._digests:
            tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
            self._digests[part] = digest_tensors(
                {
                    name: tensor
                    for name, tensor in tensors.items()
                    if self.part_of(name) == part and name not in self.computed
                }
            )
        return self._digests[part]

    def trainable_parameters(self, part: Trained) -> list[nn.Parameter]:
        """Unfreezes "heads", "text" (the text encoder) or "all", freezes the rest, and returns what is trained.
        ConfigError where there are no heads.
        """
        if part == "heads" and self.heads is None:
            raise ConfigError(
                f"backbone {self.name}: it has no projection heads apart from its encoders; train 'all' instead"
            )
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(part in ("all", self.part_of(name)))
        self._unfrozen = part
        self._digests.clear()
        self.train(self.training)
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def trains(self, part: str) -> bool:
        """Something of this part is trained."""
        return any(parameter.requires_grad for name, parameter in self.named_parameters() if self.part_of(name) == part)

    def train(self, mode: bool = True) -> Backbone:
        super().train(False)
        if self.heads is not None:
            self.heads.train(mode and self._unfrozen in ("heads", "all"))
        return self


def features_by_length(backbone: Backbone, texts: Sequence[str]) -> Tensor:
    """`text_features` (n, Ft), without gradient, for n ≥ 0 texts of any lengths: those of like length go through the
    encoder together, since a text costs as much as the longest beside it. EngineError when vectors are missing.
    """
    size = 16 if backbone.device.type == "cpu" else 128
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    with torch.no_grad():
        parts = [
            backbone.text_features([texts[i] for i in order[start : start + size]])
            for start in range(0, max(1, len(order)), size)
        ]
    features = torch.cat(parts)
    if len(features) != len(texts):
        raise EngineError(f"backbone {backbone.name}: {len(features)} vectors for {len(texts)} texts")
    return features[torch.tensor(order, dtype=torch.long, device=features.device).argsort()]


def no_tokens(what: str, reason: str) -> ConfigError:
    """The error for an image side that gives no tokens; its global feature is not affected."""
    return ConfigError(
        f"{what}: methods that look at the tokens of a picture cannot be used with it ({reason}). Tokens come from"
        " open_clip's vision transformers pooled at the class token or by the mean, from timm encoders as wide before"
        " as behind their pooling, and from efficientnet-lite0."
    )


def pool_grid(tokens: Tensor, side: int) -> Tensor:
    """Tokens of pictures (n, 1 + P, F), P a square grid, to (n, 1 + side², F): the mean of the patches in each cell.

    ConfigError where P is no square or smaller than asked for.
    """
    n, count, width = tokens.shape
    own = math.isqrt(count - 1)
    if own * own != count - 1 or not 0 < side <= own:
        raise ConfigError(
            f"a grid of {side} x {side} tokens: expected a square of patches, at least as large; there are {count - 1}"
        )
    patches = tokens[:, 1:].transpose(1, 2).reshape(n, width, own, own)
    cells = torch.nn.functional.adaptive_avg_pool2d(patches, side)
    return torch.cat([tokens[:, :1], cells.flatten(2).transpose(1, 2)], dim=1)


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def slug(text: str) -> str:
    """Lower-case letters, digits, dots and dashes: usable in a column name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
