"""Indexes of a few pictures, and a retriever that sees colours: quick, and what it finds can be said beforehand."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.errors import ConfigError, DataError

COLOURS = {
    "red": (230, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 220), "yellow": (240, 220, 30),
    "white": (250, 250, 250), "black": (8, 8, 8), "cyan": (20, 210, 220), "magenta": (220, 20, 210),
}  # fmt: skip
WORDS = {"vermelho": "red", "verde": "green", "azul": "blue", "amarelo": "yellow"}  # Portuguese
NAMES = list(COLOURS)
SIDE = 4


class Tensorlike(NamedTuple):
    array: np.ndarray

    def numpy(self) -> np.ndarray:
        return self.array


def see(picture: Image.Image) -> Tensorlike:
    """(3, SIDE, SIDE): where which colour is."""
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return Tensorlike((np.asarray(small, np.float32).transpose(2, 0, 1) - 128) / 128)


class Colours:
    """Has the interface of `Retriever`. A text is the colour that it names; `left NAME` is that colour in the left half
    of a white picture.
    """

    languages = ("en", "pt")
    any_language = False
    cosine = True
    reads_descriptions = reads_tokens = False
    text_width = visual_width = 3 * SIDE * SIDE

    def __init__(self, name: str = "colours", seed: str = "", folder: Path | None = None) -> None:
        self.name, self.folder = name, folder
        self.digest = hashlib.sha256((name + seed).encode()).hexdigest()
        self.device = SimpleNamespace(type="cpu")
        self.config = SimpleNamespace(data=SimpleNamespace(visual="image", description=None))
        self.truncated = 0
        self.encoded = 0  # pictures

    def asks_twice(self, lang: str) -> bool:
        return False

    def encode_text(self, texts: Sequence[str], lang: str | None = None, **_: Any) -> np.ndarray:
        rows = []
        for text in texts:
            if not text.strip():
                raise DataError("text 0 is blank")
            if lang == "zz":
                raise ConfigError("colours cannot encode language 'zz'")
            self.truncated += len(text) > 40
            *place, word = text.lower().split()
            picture = Image.new("RGB", (SIDE, SIDE), COLOURS[WORDS.get(word, word)])
            if place == ["left"]:
                picture.paste((250, 250, 250), (SIDE // 2, 0, SIDE, SIDE))
            rows.append(see(picture).array)
        return self.encode_pixels(np.stack(rows), counted=False)

    def encode_pixels(
        self, pixels: np.ndarray, mask: Any = None, description: Sequence[str] = (), *, counted: bool = True
    ) -> np.ndarray:
        rows = np.asarray(pixels, np.float32).reshape(len(pixels), -1)
        self.encoded += len(rows) * counted
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def encode_images(self, images: Sequence[Any]) -> np.ndarray:
        return self.encode_pixels(np.stack([see(Image.open(image)).array for image in images]), counted=False)

    def encode_film(self, pixels: np.ndarray, *, description: str = "") -> np.ndarray:
        return self.encode_pixels(pixels.mean(0, keepdims=True), description=[description])[0]

    def image_transform(self) -> Any:
        return see

    def similarity(self, text: np.ndarray, visual: np.ndarray) -> np.ndarray:
        return text @ visual.T

    visual_similarity = similarity

    def detect(self, text: str) -> tuple[str, bool]:
        return ("pt", True) if text.split()[-1] in WORDS else ("en", len(text) > 3)


def picture(colour: str, size: tuple[int, int] = (24, 16), mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", size, COLOURS[colour]).convert(mode)


def half(colour: str, size: tuple[int, int] = (24, 24)) -> Image.Image:
    """White, and in its left half a colour."""
    image = Image.new("RGB", size, COLOURS["white"])
    image.paste(COLOURS[colour], (0, 0, size[0] // 2, size[1]))
    return image


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def dataset(root: Path, colours: list[str] = NAMES) -> Dataset:
    """Shards of 3; the last picture is null."""
    keys = [colours[at : at + 3] for at in range(0, len(colours), 3)]
    made = create_dataset(root, name="d", split="test", keys=keys)
    image = create_column(made, "image", kind="image", extension="png", plan={}, provenance={})
    said = create_column(made, "caption.pt", kind="texts", extension="json", plan={}, provenance={})
    tone = create_column(made, "label.tone", kind="label", extension="json", plan={}, provenance={})
    for shard, some in enumerate(keys):
        image.commit(shard, [None if key == colours[-1] else encoded(picture(key)) for key in some])
        said.commit(shard, [said.encode([f"cor {key}"]) for key in some])
        tone.commit(shard, [tone.encode("dark" if key in ("black", "blue") else "bright") for key in some])
    return made
