"""How pictures become rows, apart into steps on a picture that are data and a function of pixels: for the forms of an
export that take pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ccr_dist.errors import ConfigError
from ccr_dist.models.backbones.image_encoders import Square
from ccr_dist.models.backbones.transformers.pictures import Pictures
from ccr_dist.retriever.retriever import Retriever


@dataclass(frozen=True)
class PicturePath:
    """The way from pictures to rows.

    Attributes:
        steps: what is done to an RGB picture before the model sees it, as data: {"resize": "shorter", "squash" or
            "pad", "to": [height, width] or a number, "interpolation", "crop": [height, width] or null, "mean", "std",
            "scale"}; pixels are (value / scale - mean) / std.
            Empty: a processor of transformers does it.
        module: pixels (n, 3, H, W) float32 to unit rows (n, D).
        size: (H, W).
    """

    steps: dict[str, Any]
    module: nn.Module
    size: tuple[int, int]


class _Encoder(nn.Module):
    def __init__(self, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.encode = encode

    def forward(self, pixel_values: Tensor) -> Tensor:
        return F.normalize(self.encode(pixel_values).float(), dim=-1)


def picture_path(retriever: Retriever) -> PicturePath:
    """The way of a model's pictures.

    Raises:
        ConfigError: it has none that other tools could go; the message is the reason.
    """
    method = retriever.method
    if retriever.reads_descriptions:
        raise ConfigError(f"method {method.name} reads a description of each picture, and other tools give it none")
    if getattr(method.options, "visual", "image") != "image":
        raise ConfigError(f"method {method.name} reads cached features of videos, not pictures")
    if method.visual_parts != ("global",):
        raise ConfigError(
            f"method {method.name} scores several parts of a picture ({', '.join(method.visual_parts)}); other tools"
            " compare one vector"
        )
    steps, size = steps_of(retriever.image_transform())
    return PicturePath(steps, _Encoder(lambda pixels: method.encode_visual(pixels)["global"]), size)


def steps_of(transform: Any) -> tuple[dict[str, Any], tuple[int, int]]:
    """`PicturePath.steps` and the size of a backbone's transform. ConfigError where a step is not known."""
    if isinstance(transform, Pictures):
        if transform.flexible:
            raise ConfigError("its pictures are cut into grids of different shapes")
        blank = transform(Image.new("RGB", (64, 48)))
        return {}, (blank.shape[1], blank.shape[2])
    if isinstance(transform, Square):
        size = (transform.size, transform.size)
        return {
            "resize": "pad", "to": list(size), "interpolation": "bicubic", "fill": "white", "crop": None,
            "scale": 1.0, "mean": [float(transform.mean)] * 3, "std": [float(transform.scale)] * 3,
        }, size  # fmt: skip
    from torchvision import transforms as tv

    steps: dict[str, Any] = {"crop": None, "scale": 255.0, "mean": [0.0] * 3, "std": [1.0] * 3}
    for step in getattr(transform, "transforms", [transform]):
        kind = type(step).__name__
        if isinstance(step, tv.Resize):
            exact = not isinstance(step.size, int) and len(step.size) == 2
            to = list(step.size) if exact else step.size if isinstance(step.size, int) else step.size[0]
            steps |= {
                "resize": "squash" if exact else "shorter", "to": to, "interpolation": step.interpolation.value
            }  # fmt: skip
        elif isinstance(step, tv.CenterCrop):
            steps["crop"] = [int(side) for side in step.size]
        elif isinstance(step, tv.Normalize):
            steps |= {name: [float(v) for v in getattr(step, name)] for name in ("mean", "std")}
        elif kind not in ("ToTensor", "MaybeToTensor", "MaybeConvertMode", "function"):
            raise ConfigError(f"the step {kind} of this model's pictures is not known to export")
    sides = steps["crop"] or (steps.get("to") if isinstance(steps.get("to"), list) else None)
    if sides is None:
        raise ConfigError("this model's pictures have no fixed size, which exports need")
    return steps, (sides[0], sides[1])
