"""Pictures or texts -> the vectors that a frozen backbone makes of them, so that the frozen part never runs again in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ccr_dist.data.decode import decode_image
from ccr_dist.data.table import Dataset
from ccr_dist.errors import DataError, EngineError
from ccr_dist.generate.processor import Outcome, Processor

if TYPE_CHECKING:
    from torch import Tensor

    from ccr_dist.models.backbones import Backbone

Precision = Literal["fp32", "bf16", "fp16"]


class Featurise(Processor):
    """A picture gives one vector (1, F), n texts give (n, F), blank ones included so that vector i belongs to text i; no texts: null row.

    `backbone` builds the model; that happens once, when the plan asks for its identity. precision: of the forward pass (autocast);
    vectors are stored as float16, and one that float16 cannot hold is a bad item. device: auto, cpu, cuda, ...
    """

    kind = "matrix"
    extension = "npy"

    def __init__(self, backbone: Callable[[], Backbone], column: str, *, precision: Precision = "fp32", device: str = "auto") -> None:
        self.inputs = (column,)
        self._build, self._precision, self._device = backbone, precision, device
        self._backbone: Backbone | None = None
        self._side: Literal["image", "text"] = "image"

    @property
    def backbone(self) -> Backbone:
        if self._backbone is None:
            self._backbone = self._build()
        return self._backbone

    def default_column(self) -> str:
        return f"feature.{self.backbone.name}.{self.inputs[0]}"

    def check(self, dataset: Dataset) -> None:
        column = dataset.column(self.inputs[0])
        sides: dict[str, Literal["image", "text"]] = {"image": "image", "texts": "text"}
        if column.kind not in sides:
            raise DataError(f"{column.folder}: a {column.kind} column; featurise takes image or texts")
        self._side = sides[column.kind]

    def plan(self) -> dict[str, Any]:
        return {"processor": "featurise", "backbone": self.backbone.feature_identity(self._side), "precision": self._precision}

    def provenance(self) -> dict[str, Any]:
        import torch

        return {"torch": torch.__version__}

    def load(self) -> None:
        import torch

        if self._device == "auto":
            accelerator = torch.accelerator.current_accelerator(check_available=True)
            self._device = "cpu" if accelerator is None else str(accelerator)
        self.backbone.to(self._device).eval()
        self._transform = self.backbone.image_transform() if self._side == "image" else None

    @property
    def width(self) -> int:  # type: ignore[override]
        """F, by asking the model: only a shard of null rows alone needs it."""
        if self._side == "text":
            return self._features([[""]]).shape[1]
        from PIL import Image

        return self._features([self.backbone.image_transform()(Image.new("RGB", (64, 64)))]).shape[1]

    def prepare(self, key: str, values: dict[str, Any]) -> Tensor | list[str] | None:
        value = values[self.inputs[0]]
        if not value:
            return None
        return self._transform(decode_image(value, key)) if self._transform else value

    def process(self, items: list[Any]) -> list[Outcome]:
        counts = [len(item) if self._side == "text" else 1 for item in items]
        with np.errstate(over="ignore"):
            features = self._features(items).astype(np.float16)
        if len(features) != sum(counts):
            raise EngineError(f"backbone {self.backbone.name}: {len(features)} vectors for {sum(counts)} inputs of {self.inputs[0]}")
        return [Outcome(part) for part in np.split(features, np.cumsum(counts)[:-1])]

    def _features(self, items: list[Any]) -> np.ndarray:
        """(n, F) float32."""
        import torch

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self._precision]
        device = self.backbone.device
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=self._precision != "fp32"):
            if self._side == "text":
                features = self.backbone.text_features([text for item in items for text in item])
            else:
                features = self.backbone.image_features(torch.stack(items).to(device))
        return features.float().cpu().numpy()
