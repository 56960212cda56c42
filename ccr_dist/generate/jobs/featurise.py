"""Encodes pictures, videos or texts with a frozen backbone, so that training need not run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ccr_dist.data.media import pictures, text
from ccr_dist.data.media.decode import decode_image
from ccr_dist.data.media.text import has_text, texts_of
from ccr_dist.data.media.video import decode_video
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, EngineError
from ccr_dist.generate.engines.base import torch_device
from ccr_dist.generate.jobs.request_stream import spare_cores
from ccr_dist.generate.processor import Processor, RowOutcome

if TYPE_CHECKING:
    from torch import Tensor

    from ccr_dist.models.backbones.backbone import Backbone

Precision = Literal["fp32", "bf16", "fp16"]
Pool = Literal["mean", "none"]
_PICTURES = 64  # frames in a forward batch


@dataclass(frozen=True)
class RowTexts:
    """The texts of a row; None (a null row) if all are blank."""

    column: str

    def __call__(self, key: str, values: dict[str, Any]) -> list[str] | None:
        texts = texts_of(values[self.column])
        return texts if any(map(has_text, texts)) else None


@dataclass(frozen=True)
class Pixels:
    """The pixels of a row, (n, 3, H, W) float32: a picture, or frames of a video.

    Attributes:
        column: Column of pictures or videos.
        transform: The backbone's transform of a picture.
        frames: Frames of a video; 0 for pictures.
    """

    column: str
    transform: Callable[[Any], Any]
    frames: int

    def __call__(self, key: str, values: dict[str, Any]) -> np.ndarray | None:
        data = values[self.column]
        if not data:
            return None
        pictures = decode_video(data, key, frames=self.frames) if self.frames else [decode_image(data, key)]
        return np.stack([self.transform(picture).numpy() for picture in pictures])


class Featurise(Processor):
    """Makes vectors: (1, F) or tokens (T, F) of a picture, (1, F) or (frames, F) of a video, (n, F) of n texts.

    A row whose texts are all blank is a null row; in other rows blank texts are encoded, so that vector i belongs to
    text i. Vectors are stored as float16; a row with a vector that float16 cannot hold is a bad item.

    Args:
        backbone: Builds the model; called once, when the plan needs its identity.
        column: Column of pictures, videos or texts.
        precision: Precision of the forward pass (autocast).
        device: auto, cpu, cuda, ...
        frames: Frames of a video; fewer if it has fewer.
        pool: "mean" of a video's frames, or "none".
        tokens: Whether to store a picture's tokens (`Backbone.image_tokens`) instead of its global vector.
        grid: Average the patches over the cells of a grid x grid, so that T = 1 + grid²; None: all patches.

    Raises:
        ConfigError: Settings do not fit each other.
    """

    kind = "matrix"
    extension = "npy"

    def __init__(
        self,
        backbone: Callable[[], Backbone],
        column: str,
        *,
        precision: Precision = "fp32",
        device: str = "auto",
        frames: int = 8,
        pool: Pool = "mean",
        tokens: bool = False,
        grid: int | None = None,
    ) -> None:
        if frames < 1:
            raise ConfigError(f"{frames} frames of a video: expected at least 1")
        if grid is not None and not tokens:
            raise ConfigError("a grid is one of tokens: give --tokens, too")
        self.inputs = (column,)
        self._build, self._precision, self._device = backbone, precision, device
        self._frames, self._pool = frames, pool
        self._tokens, self._grid = tokens, grid
        self._backbone: Backbone | None = None
        self._kind = "image"

    @property
    def backbone(self) -> Backbone:
        """The model, built on first use."""
        if self._backbone is None:
            self._backbone = self._build()
        return self._backbone

    @property
    def _side(self) -> Literal["image", "text"]:
        return "image" if self._kind in ("image", "video") else "text"

    @property
    def workers(self) -> int:  # type: ignore[override]
        """Preparing processes: only for an accelerator, since on the CPU the model itself uses all cores."""
        return 0 if self._side == "text" or torch_device(self._device) == "cpu" else spare_cores()

    def default_column(self) -> str:
        """The name of the column by default."""
        tokens = (f".tokens-{self._grid}" if self._grid else ".tokens") if self._tokens else ""
        return f"feature.{self.backbone.name}.{self.inputs[0]}{tokens}"

    def check(self, dataset: Dataset) -> None:
        column = dataset.column(self.inputs[0])
        column.require_kind(("image", "video", "texts", "views"), "featurise")
        if self._tokens:
            column.require_kind(("image",), "--tokens")
        self._kind = column.kind
        if self._side == "image" and not self.backbone.sees:
            raise ConfigError(
                f"{column.name}: a column of kind {column.kind}, and {self.backbone.name} encodes texts alone; name a"
                " column of texts, as in --from caption.en"
            )
        if column.kind == "video":
            self.batch = max(1, _PICTURES // self._frames)

    def plan(self) -> dict[str, Any]:
        video = {"frames": self._frames, "pool": self._pool} if self._kind == "video" else {}
        tokens = {"tokens": {"grid": self._grid}} if self._tokens else {}
        identity = self.backbone.feature_identity(self._side)
        seen = {"pictures": pictures.VERSION} if self._side == "image" else {"texts": text.VERSION}
        return {"processor": "featurise", "backbone": identity, "precision": self._precision, **video, **tokens, **seen}

    def provenance(self) -> dict[str, Any]:
        import torch

        return {"torch": torch.__version__}

    def load(self) -> None:
        self.backbone.to(torch_device(self._device)).eval()

    @property
    def width(self) -> int:  # type: ignore[override]
        """F, found by running the model; needed only for a shard of null rows."""
        if self._side == "text":
            return self._features([[""]]).shape[-1]
        from PIL import Image

        return self._features([self.backbone.image_transform()(Image.new("RGB", (64, 64))).numpy()[None]]).shape[-1]

    def preparer(self) -> Callable[[str, dict[str, Any]], Any]:
        if self._side == "text":
            return RowTexts(self.inputs[0])
        return Pixels(self.inputs[0], self.backbone.image_transform(), self._frames if self._kind == "video" else 0)

    def prepare(self, key: str, values: dict[str, Any]) -> Any:
        return self.preparer()(key, values)

    def process(self, items: list[Any]) -> list[RowOutcome]:
        counts = [len(item) for item in items]
        features = self._features(items)
        if len(features) != sum(counts):
            raise EngineError(
                f"backbone {self.backbone.name}: {len(features)} vectors for {sum(counts)} inputs of {self.inputs[0]}"
            )
        rows = list(features) if self._tokens else np.split(features, np.cumsum(counts)[:-1])
        if self._kind == "video" and self._pool == "mean":
            rows = [row.mean(0, keepdims=True) for row in rows]
        with np.errstate(over="ignore"):
            return [RowOutcome(row.astype(np.float16)) for row in rows]

    def _features(self, items: list[Any]) -> np.ndarray:
        """(sum of the items' lengths, F) float32; with tokens (pictures, T, F)."""
        import torch

        from ccr_dist.models.backbones.backbone import features_by_length

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self._precision]
        device = self.backbone.device
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=self._precision != "fp32"):
            if self._side == "text":
                features = features_by_length(self.backbone, [text for item in items for text in item])
            else:
                encode = self._image_tokens if self._tokens else self.backbone.image_features
                features = encode(torch.from_numpy(np.concatenate(items)).to(device))
        return features.float().cpu().numpy()

    def _image_tokens(self, pixels: Tensor) -> Tensor:
        from ccr_dist.models.backbones.backbone import pool_grid

        tokens = self.backbone.image_tokens(pixels)
        return tokens if self._grid is None else pool_grid(tokens, self._grid)
