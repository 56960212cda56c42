"""Pictures as a model's own image processor prepares them, one tensor each; NaFlex patches in the form of a picture."""

from __future__ import annotations

import json
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ccr_dist.errors import ConfigError, let_pass
from ccr_dist.models.huggingface import at_revision, not_loaded


class Pictures:
    """PIL picture to (3, H, W) float32.

    A NaFlex processor (`flexible`) cuts a picture into a grid of patches whose shape is the picture's. They travel as
    (3, N + 1, patch²): a row a patch, and a last one that begins with the grid's height and width (`patches` takes them
    out again).
    """

    random = False

    def __init__(self, processor: Any, *, flexible: bool) -> None:
        self.processor, self.flexible = processor, flexible

    def __call__(self, picture: Image.Image) -> Tensor:
        found = self.processor(images=picture.convert("RGB"), return_tensors="pt")
        pixels: Tensor = found["pixel_values"][0].float()
        if not self.flexible:
            return pixels
        rows = pixels.unflatten(1, (-1, 3)).permute(2, 0, 1)
        last = torch.zeros(3, 1, rows.shape[-1])
        last[:, 0, :2] = found["spatial_shapes"][0]
        return torch.cat([rows, last], dim=1)

    def description(self) -> dict[str, Any]:
        """JSON: the processor and its settings."""
        settings: dict[str, Any] = json.loads(self.processor.to_json_string())
        kept = {key: value for key, value in settings.items() if value is not None and not key.startswith("_")}
        return {"class": type(self.processor).__name__, **kept}


def patches(pixels: Tensor) -> dict[str, Tensor]:
    """What travels as (n, 3, N + 1, patch²), as a NaFlex model takes it."""
    shapes = pixels[:, 0, -1, :2].long()
    body = pixels[:, :, :-1].permute(0, 2, 3, 1).flatten(2)
    place = torch.arange(body.shape[1], device=pixels.device)
    mask = (place[None] < shapes.prod(1, keepdim=True)).int()
    return {"pixel_values": body, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def load_pictures(name: str, *, revision: str | None, flexible: bool, what: str) -> Pictures:
    """The image processor of an id or local folder.

    Raises:
        ConfigError: it cannot be loaded, or gives tensors of different shapes for different pictures.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(name, **at_revision(revision))
        pictures = Pictures(processor, flexible=flexible)
        shapes = [tuple(pictures(Image.new("RGB", size)).shape) for size in ((64, 48), (30, 90))]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        let_pass(error, name)
        raise not_loaded(
            error, what, name, "image processor", " Its preprocessor_config.json says how pictures are prepared."
        ) from error
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"{what}: the image processor of '{name}' gives a tensor of the shape {shapes[0]} for one picture and"
            f" {shapes[1]} for another, which cannot be a batch. Set a size for both sides, or crop, in its"
            " preprocessor_config.json."
        )
    return pictures
