"""What people give to a retriever: files, pictures and arrays."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ccr_dist.data.media.pictures import check_size, decode_image, on_white, upright
from ccr_dist.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

    Picture = str | Path | Image.Image | np.ndarray


def listed(values: Iterable[Any], what: str) -> list[Any]:
    """Some values as a list. Raises TypeError for one text or path, whose letters would be taken for its items."""
    if isinstance(values, str | bytes | Path) or not isinstance(values, Iterable):
        raise TypeError(f"{what}: expected a list of {what}, not one {type(values).__name__}")
    return list(values)


def positive(number: int, what: str) -> int:
    """A whole number of at least 1. Raises ConfigError for others."""
    if not isinstance(number, int | np.integer) or number < 1:
        raise ConfigError(f"{what} {number!r}: expected a whole number, at least 1")
    return int(number)


def file_bytes(path: str | Path) -> bytes:
    """The content of a file. Raises DataError naming it."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def opened(image: Picture, what: str = "picture") -> Image.Image:
    """The picture upright and in RGB, by one rule for files and pictures that Pillow has opened.

    Args:
        image: as for `Retriever.encode_images`.
        what: how messages name one that is no file.

    Raises:
        DataError: it is missing, broken, or an array of another shape.
        TypeError: it is something else.
    """
    from PIL import Image

    if isinstance(image, str | Path):
        return decode_image(file_bytes(image), image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(f"{what}: an array of {image.dtype} {image.shape}; expected uint8 (height, width, 3), RGB")
        check_size(image.shape[1], image.shape[0], what)
        return Image.fromarray(image)
    if not isinstance(image, Image.Image):
        kind = type(image).__name__
        raise TypeError(f"{what}: expected a path, a PIL picture or a uint8 array (height, width, 3), not {kind}")
    return on_white(upright(image, what))
