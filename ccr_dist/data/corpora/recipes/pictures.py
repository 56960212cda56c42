"""Renders pictures for recipes: SVG or bitmap bytes to an RGB square of a fixed size, on white. Runs in worker
processes.
"""

from __future__ import annotations

import io
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ccr_dist.config import Frozen
from ccr_dist.data.storage import store
from ccr_dist.errors import DataError


class Picture(Frozen):
    """How pictures are rendered and stored."""

    size: int = Field(default=224, gt=0, description="side of the square, pixels")
    format: Literal["png", "jpg"] = "png"
    quality: int = Field(default=92, ge=1, le=100, description="of jpg")
    crop: bool = Field(default=False, description="crop to what is not transparent, then pad to a square with `margin`")
    margin: float = Field(default=0.1, ge=0, lt=0.5, description="of the side, around a cropped picture")

    def provenance(self) -> dict[str, Any]:
        """Versions that belong into a column's provenance."""
        return {"pillow": metadata.version("pillow")}


def render(path: str, picture: Picture) -> bytes:
    """Render a file: .svg by resvg, anything else by Pillow.

    Args:
        path: The file.
        picture: How to render it.

    Returns:
        Encoded bytes of a square picture.

    Raises:
        DataError: The picture is broken, empty or wholly transparent.
    """
    from PIL import Image

    from ccr_dist.data.media.pictures import MAX_RATIO, on_white, open_picture

    data = store.retry_io(Path(path).read_bytes, what=path)
    if path.endswith(".svg"):
        import resvg_py

        width = picture.size * (2 if picture.crop else 1)
        try:
            # dpi: at the default of 0, resvg reads sizes in pt or mm as zero and refuses the file. Proportions are kept
            # within width x height; the height suffices for every shape that is not refused below
            data = bytes(resvg_py.svg_to_bytes(svg_path=path, width=width, height=width * MAX_RATIO, dpi=96))
        except ValueError as e:
            raise DataError(f"{path}: cannot be rendered ({e})") from e
    image = open_picture(data, path).convert("RGBA")
    box = image.getchannel("A").getbbox()
    if box is None:
        raise DataError(f"{path}: nothing but transparency")
    if picture.crop:
        image = image.crop(box)
    inner = round(picture.size * (1 - 2 * picture.margin)) if picture.crop else picture.size
    scale = inner / max(image.size)
    # on white before resizing: colours hidden under transparent pixels must not bleed into the edges
    image = on_white(image).resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )
    square = Image.new("RGB", (picture.size, picture.size), "white")
    square.paste(image, ((picture.size - image.width) // 2, (picture.size - image.height) // 2))
    out = io.BytesIO()
    if picture.format == "jpg":
        square.save(out, "JPEG", quality=picture.quality)
    else:
        square.save(out, "PNG", optimize=True)
    return out.getvalue()
