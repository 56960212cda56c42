"""A method as people use it, trained or not: texts, pictures and videos to rows of numbers, and rows to scores."""

from __future__ import annotations

import contextlib
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ccr_dist.config import ENGLISH, RunConfig
from ccr_dist.data.media.text import has_text
from ccr_dist.data.media.video import decode_video
from ccr_dist.data.storage.store import digest_json
from ccr_dist.errors import ConfigError, DataError, Notice
from ccr_dist.evaluate.retrieval import Fusion
from ccr_dist.methods.base import Method
from ccr_dist.retriever.inputs import file_bytes, listed, opened, positive
from ccr_dist.retriever.language import Detected, detect, detect_any, own_tag
from ccr_dist.retriever.model_folder import Record
from ccr_dist.retriever.rows import Layout, finite, layout_of, to_bank, to_rows, width

if TYPE_CHECKING:
    from PIL import Image

    from ccr_dist.retriever.inputs import Picture

GLOBAL = "global"


class Retriever:
    """A model that finds pictures and videos with sentences. `ccr_dist.load` makes one.

    Rows are float32. Where `cosine` holds they have unit length, and the similarity of two is their dot product.
    Methods whose score has several parts (LECCR, hybrid) have the parts flattened one after another in a row;
    `similarity` alone knows what they mean.

    Attributes:
        name: of the run, such as `dasd-s0`.
        digest: sha256 of all that decides the rows: indexes and exports record it.
        folder: the model folder, or None.
        config: of the run.
        method: in eval mode, on `device`.
        languages: of queries, English first where the method reads it; those it was fitted on, where it reads others,
            too (`any_language`).
        facts: what the model folder records for people: data with licences, the selected step, versions.
        fusion: how the parts of a score become one.
    """

    def __init__(self, record: Record, config: RunConfig, method: Method, *, folder: Path | None, device: str) -> None:
        """For `load_model`; `method` holds the weights of the record."""
        self.name, self.facts, self.folder, self.config = record.name, record.facts, folder, config
        self.record, self.method = record, method
        self.languages: tuple[str, ...] = tuple(record.languages)
        self.device = torch.device(device)
        method.backbone.to(self.device)
        method.net.to(self.device)
        method.net.eval()
        method.backbone.eval()
        ranges = {name: (float(low), float(high)) for name, (low, high) in record.fusion["ranges"].items()}
        self.fusion = Fusion(record.fusion["weights"], record.fusion["minmax"], ranges or None)

    # What it is.

    @cached_property
    def digest(self) -> str:
        record = self.record
        weights = {name: sha256 for name, sha256 in record.files.items() if not name.startswith("results/")}
        decisive = [record.config["method"], record.config["backbone"], self.config.runtime.precision]
        return digest_json([*decisive, record.state, record.languages, record.fusion, record.base, weights])

    @property
    def cosine(self) -> bool:
        """Rows have unit length, and `similarity` is their dot product."""
        parts = {name for name, weight in self.fusion.weights.items() if weight}
        return self.method.text_parts == self.method.visual_parts == (GLOBAL,) and parts == {GLOBAL}

    @cached_property
    def text_layout(self) -> Layout:
        """Part -> shape of one text. Encodes a short text the first time."""
        lang = self.languages[0]
        companion = ["a"] if self.asks_twice(lang) else []
        return layout_of(self._text_bank(["a"], lang, companion), self.method.text_parts)

    @cached_property
    def visual_layout(self) -> Layout:
        """Part -> shape of one item. Encodes a blank picture the first time, or a blank vector where the model reads
        vectors alone.
        """
        return layout_of(self._visual_bank(self._blank_item(), None, [""]), self.method.visual_parts)

    @property
    def text_width(self) -> int:
        """Numbers in a row of a text."""
        return width(self.text_layout)

    @property
    def visual_width(self) -> int:
        """Numbers in a row of a picture or video."""
        return width(self.visual_layout)

    @property
    def reads_descriptions(self) -> bool:
        """The model reads a text that describes each item; without one an item has an empty one."""
        return "description" in self.config.method.gallery()

    @property
    def reads_tokens(self) -> bool:
        """The model reads several vectors an item: tokens of a picture, or frames of a video."""
        return "tokens" in self.config.method.gallery()

    @property
    def any_language(self) -> bool:
        """Queries in languages that are not in `languages` are encoded as well as the method's encoder knows them."""
        return self.config.method.learner().any_language

    def asks_twice(self, lang: str) -> bool:
        """The model scores a query in this language together with its English translation (`companion`)."""
        return lang != ENGLISH and bool(self.config.method.companions(self.config.data))

    @property
    def truncated(self) -> int:
        """Texts that were longer than the model reads, and were cut, so far."""
        return self.method.truncated

    # Encoding.

    def encode_text(
        self, texts: Sequence[str], lang: str | None = None, *, companion: Sequence[str] = (), batch: int = 64
    ) -> np.ndarray:
        """Encodes queries. Letters whose marks are characters of their own, as macOS writes them, are composed
        (Unicode's NFC): not all tokenisers do that.

        Args:
            texts: n ≥ 0 queries.
            lang: their language, as a BCP 47 tag; None: detected for each of them.
            companion: their English translations, for methods that ask each query twice (fusion; NRCCR with `fusion`).
            batch: texts at a time.

        Returns:
            (n, text_width) float32.

        Raises:
            ConfigError: the method cannot encode this language, or needs `companion`.
            DataError: a text is blank.
            NonFiniteError: a row is not finite.
        """
        texts, companion, batch = listed(texts, "texts"), listed(companion, "companion"), positive(batch, "batch")
        for at, text in enumerate(texts):
            if not has_text(text):
                raise DataError(f"text {at} is blank: {text!r}; there is nothing to search for")
        texts, companion = ([unicodedata.normalize("NFC", text) for text in some] for some in (texts, companion))
        spoken = [self.language(lang) if lang is not None else self.detect(text).lang for text in texts]
        rows = np.zeros((len(texts), self.text_width), np.float32)
        for each in dict.fromkeys(spoken):
            places = [at for at, its in enumerate(spoken) if its == each]
            self._require_companion(each, companion, len(texts))
            for start in range(0, len(places), batch):
                some = places[start : start + batch]
                beside = [companion[at] for at in some] if companion else []
                rows[some] = to_rows(
                    self._text_bank([texts[at] for at in some], each, beside), self.text_layout, unit=self.cosine
                )
        return finite(rows, "text")

    def encode_images(self, images: Sequence[Picture], *, batch: int = 32) -> np.ndarray:
        """Encodes pictures, as evaluation sees them: upright by their EXIF orientation, on white where they are
        transparent.

        Args:
            images: paths, PIL pictures, or (H, W, 3) uint8 arrays; n ≥ 0.
            batch: pictures at a time.

        Returns:
            (n, visual_width) float32.

        Raises:
            ConfigError: the model reads no pictures.
            DataError: a picture is missing or broken; names it.
            NonFiniteError: a row is not finite.
        """
        images, batch = listed(images, "images"), positive(batch, "batch")
        transform = self.image_transform()
        rows = np.zeros((len(images), self.visual_width), np.float32)
        for start in range(0, len(images), batch):
            some = enumerate(images[start : start + batch], start)
            pixels = torch.stack([transform(opened(image, f"picture {at}")) for at, image in some])
            rows[start : start + batch] = self.encode_pixels(pixels)
        return rows

    def encode_videos(self, paths: Sequence[str | Path], *, frames: int = 8, batch: int = 64) -> np.ndarray:
        """Encodes video files by evenly spaced frames: each frame a vector for models that read several, else their
        mean, as `ccr-dist featurise` makes it.

        Args:
            paths: n ≥ 0 files.
            frames: of each video.
            batch: frames at a time.

        Returns:
            (n, visual_width) float32.

        Raises:
            ConfigError: the model reads no pictures, or PyAV is not installed.
            DataError: a video is missing or broken; names it.
            NonFiniteError: a row is not finite.
        """
        paths, batch = listed(paths, "paths"), positive(batch, "batch")
        rows = np.zeros((len(paths), self.visual_width), np.float32)
        for at, path in enumerate(paths):
            rows[at] = self.encode_frames(decode_video(file_bytes(path), path, frames=frames), batch=batch)
        return rows

    def encode_frames(self, frames: Sequence[Image.Image], *, batch: int = 64) -> np.ndarray:
        """The row (visual_width,) of one video, of its frames in order."""
        transform = self.image_transform()
        return self.encode_film(torch.stack([transform(frame) for frame in frames]), batch=batch)

    def encode_film(self, pixels: Tensor | np.ndarray, *, description: str = "", batch: int = 64) -> np.ndarray:
        """Encodes one video whose frames are decoded already.

        Args:
            pixels: (frames, 3, H, W), each frame as `image_transform` makes it, in order.
            description: of the video, for models that read descriptions.
            batch: frames at a time.

        Returns:
            (visual_width,) float32.

        Raises:
            NonFiniteError: the row is not finite.
        """
        features = []
        for some in torch.as_tensor(pixels).split(batch):
            with self._inference():
                features.append(self.method.backbone.image_features(some.to(self.device)).float())
        vectors = torch.cat(features)
        item = vectors[None] if self.reads_tokens else vectors.mean(0, keepdim=True)
        return self.encode_pixels(item, description=[description])[0]

    def encode_pixels(
        self, visual: Tensor | np.ndarray, mask: Tensor | np.ndarray | None = None, description: Sequence[str] = ()
    ) -> np.ndarray:
        """Encodes one batch of items that are decoded already.

        Args:
            visual: pictures (n, 3, H, W) as `image_transform` makes them, cached features (n, F), or several vectors an
                item (n, T, F); n ≥ 1.
            mask: (n, T) bool, True where there is a vector; None: everywhere.
            description: n texts, for models that read descriptions; empty: none of the items has one.

        Returns:
            (n, visual_width) float32.

        Raises:
            DataError: `visual` or `mask` has another shape.
            NonFiniteError: a row is not finite.
        """
        tensor = torch.as_tensor(visual).to(self.device).float()
        if tensor.ndim not in (2, 3, 4) or not len(tensor) or (tensor.ndim == 4 and tensor.shape[1] != 3):
            raise DataError(
                f"items of shape {tuple(tensor.shape)}; expected pictures (n, 3, H, W), vectors (n, F) or several of"
                " them an item (n, T, F), with n of at least 1"
            )
        if mask is not None and tuple(np.shape(mask)) != tuple(tensor.shape[:2]):
            raise DataError(f"a mask of shape {np.shape(mask)} for items of shape {tuple(tensor.shape)}")
        if description and len(description) != len(tensor):
            raise DataError(f"{len(description)} descriptions for {len(tensor)} items; expected one for each")
        there = None if mask is None else torch.as_tensor(mask).to(self.device)
        texts = list(description) or [""] * len(tensor)
        return finite(to_rows(self._visual_bank(tensor, there, texts), self.visual_layout, unit=self.cosine), "item")

    def image_transform(self) -> Callable[[Image.Image], Tensor]:
        """PIL picture to (3, H, W) float32, for `encode_pixels`. It can be pickled.

        Raises:
            ConfigError: the model reads no pictures.
        """
        return self.method.backbone.image_transform()

    # Scores.

    @torch.inference_mode()
    def similarity(self, text: np.ndarray, visual: np.ndarray) -> np.ndarray:
        """Scores of texts with items, larger is better, as evaluation computes them. A score does not depend on the
        other texts and items: min-max uses the ranges that validation had.

        Args:
            text: (n, text_width).
            visual: (m, visual_width).

        Returns:
            (n, m) float32.
        """
        parts = self.method.scores(
            to_bank(text, self.text_layout, self.device, self.name),
            to_bank(visual, self.visual_layout, self.device, self.name),
        )
        return self.fusion.fused(parts).cpu().numpy()

    @torch.inference_mode()
    def visual_similarity(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Cosines (n, m) float32 of items (n, visual_width) and (m, visual_width), by their part "global"."""
        x, y = (
            normalize(to_bank(rows, self.visual_layout, self.device, self.name)[GLOBAL], dim=-1)
            for rows in (one, other)
        )
        return (x @ y.T).float().cpu().numpy()

    # Languages.

    def language(self, tag: str) -> str:
        """The model's own name of a language: `pt` for `pt-BR`. A language that was not trained is returned as it is,
        with a warning unless the model reads any (`any_language`); `encode_text` refuses it where the method cannot
        encode it.
        """
        if own := own_tag(tag, self.languages):
            return own
        if self.any_language:
            return tag
        known = ", ".join(self.languages)
        warnings.warn(f"{self.name} was not trained for language {tag!r} but for {known}", Notice, stacklevel=2)
        return tag

    def detect(self, text: str) -> Detected:
        """The language of a query, and whether that is sure: of `languages`, or of all that the identifier knows where
        the method encodes languages that were not trained.

        Raises:
            ConfigError: the identifier is not installed.
        """
        return detect_any(text, self.languages) if self.any_language else detect(text, self.languages)

    # Inside.

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """Without gradients, in the precision that the run was evaluated in."""
        precision = self.config.runtime.precision
        half = torch.bfloat16 if precision == "bf16" else torch.float16
        with torch.inference_mode(), torch.autocast(self.device.type, half, enabled=precision != "fp32"):
            yield

    def _text_bank(self, texts: Sequence[str], lang: str, companion: Sequence[str]) -> dict[str, Tensor]:
        with self._inference():
            bank = self.method.encode_text(texts, lang, companion)
        return {name: bank[name].float() for name in self.method.text_parts}

    def _visual_bank(self, visual: Tensor, mask: Tensor | None, description: Sequence[str]) -> dict[str, Tensor]:
        with self._inference():
            bank = self.method.encode_visual(visual, mask, description if self.reads_descriptions else ())
        return {name: bank[name].float() for name in self.method.visual_parts}

    def _blank_item(self) -> Tensor:
        from PIL import Image

        try:
            transform = self.image_transform()
            return transform(Image.new("RGB", (64, 64)))[None].to(self.device)
        except ConfigError:
            width = getattr(self.method.options, "frame_width", None) or self.method.backbone.dim
            return torch.zeros((1, 1, width) if self.reads_tokens else (1, width), device=self.device)

    def _require_companion(self, lang: str, companion: Sequence[str], texts: int) -> None:
        if companion and len(companion) != texts:
            raise DataError(f"{len(companion)} companion texts for {texts} texts; expected one for each")
        if self.asks_twice(lang) and not companion:
            raise ConfigError(
                f"{self.name} scores a query in {lang!r} together with its English translation; give it as `companion`"
                " (`ccr-dist search --via-english average` translates)"
            )


def query_languages(config: RunConfig, learnt: Sequence[str]) -> list[str]:
    """The languages that a run's method takes queries in: English, and the trained ones.

    Args:
        config: of the run.
        learnt: the languages that it trains on.
    """
    return [ENGLISH, *(lang for lang in learnt if lang != ENGLISH)]
