"""What people give to a retriever: files, pictures and arrays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ccr_dist.data.media.pictures import decode_image, on_white
from ccr_dist.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

    Picture = str | Path | Image.Image | np.ndarray


def file_bytes(path: str | Path) -> bytes:
    """The content of a file. Raises DataError naming it."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def opened(image: Picture) -> Image.Image:
    """The picture upright and in RGB. Raises DataError, naming the file, for one that is missing or broken."""
    from PIL import Image

    if isinstance(image, str | Path):
        return decode_image(file_bytes(image), image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(f"an array of {image.dtype} {image.shape}; expected uint8 (height, width, 3), RGB")
        return Image.fromarray(image)
    return on_white(image.convert("RGBA")) if image.has_transparency_data else image.convert("RGB")
