"""Opens pictures: the only place that does, so that all commands see them as people do.

The rule, numbered by `VERSION` (part of the plans of columns that are made from pictures or videos):

    rotation    by the EXIF orientation (or XMP's, without one); an unreadable orientation counts as upright
    frames      the first one, of an animated picture and of a file with several pictures
    alpha       blended onto white; so is the transparent colour of a palette, grey or RGB file
    16 bit      the high byte, for grey and RGB; of a TIFF with 12 bits the highest 8; WhiteIsZero is inverted
    32 bit      grey integers and floats do not say which values are black and white. The smallest of the ranges 0 to 1
                (floats), 0 to 255 and 0 to 65535 that holds all values; DataError for values outside of them, for NaN,
                and for floats whose maximum is between 1 and 16
    CMYK        (255 - C)(255 - K) / 255 and so on; JPEGs hold it inverted, as Adobe's do
    LAB         from CIE L*a*b* of D50 to sRGB
    YCbCr       as JFIF defines it
    ICC         profiles are not applied: the encoders were trained on pictures that were read without them

A picture of more than MAX_PIXELS, or with one side more than MAX_RATIO times the other, is a DataError before its
pixels are decoded: resizing its short side to a fixed length would take gigabytes.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from ccr_dist.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

VERSION = 1  # raise it when some picture or video is decoded to other pixels than before
FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
)  # no other format is tried: some of Pillow's start Ghostscript, others are barely maintained
MAX_PIXELS = 178_956_970  # Pillow's own limit; half a gigabyte as RGB
MAX_RATIO = 200  # as Qwen2-VL's
_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png", b"GIF8": "gif", b"BM": "bmp"}
_MAGIC |= {start: "tif" for start in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")}
_OTHERS = {
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"8BPS": "Photoshop",
    b"%!PS": "PostScript",
    b"%PDF": "PDF",
    b"<svg": "SVG",
}
# of ISO files, by the first letters
_BRANDS = {b"hei": "HEIC", b"hev": "HEIC", b"mif": "HEIF", b"msf": "HEIF", b"avi": "AVIF"}
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262  # TIFF's and EXIF's tags
_RANGES = (1.0, 255.0, 65535.0)
_UNCLEAR = (1.0, 16.0)  # the largest float: too much for 0 to 1, too little for 0 to 255


def picture_extension(data: bytes, what: object = "picture") -> str:
    """The format of a picture by its first bytes: jpg, png, gif, bmp, tif or webp.

    Raises:
        DataError: It is another format; says how to convert known ones.
    """
    for magic, extension in _MAGIC.items():
        if data.startswith(magic):
            return extension
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        other = _BRANDS.get(data[8:11])
    else:
        other = next((name for magic, name in _OTHERS.items() if data.startswith(magic)), None)
    found = f"it is {other}: convert it to JPEG or PNG" if other else f"first bytes {data[:8]!r}"
    raise DataError(f"{what}: not a JPEG, PNG, WebP, GIF, BMP or TIFF picture ({found})")


def check_size(width: int, height: int, what: object) -> None:
    """Raises DataError for a picture or frame that is too large or too narrow to be processed."""
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise DataError(f"{what}: {width} x {height} pixels; expected at most {MAX_PIXELS:,} in all: make it smaller")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise DataError(
            f"{what}: {width} x {height} pixels; expected one side at most {MAX_RATIO} times the other: crop it"
        )


def open_picture(data: bytes | None, what: object = "picture", *, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The picture upright.

    Args:
        data: The encoded picture; None stands for a null row.
        what: How messages name it.
        formats: Pillow's names of those that are tried; columns hold the six of `FORMATS`, folders of people more
            (`media_files.py`).

    Returns:
        An RGB picture, or RGBA where some of it may be transparent.

    Raises:
        DataError: The bytes are not a whole picture, or its size is unusable.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise DataError(f"{what}: there is no picture (null row)")
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            check_size(*image.size, what)
            image.load()
            return upright(image, what)
    except (MemoryError, DataError):
        raise
    except Image.DecompressionBombError as e:
        raise DataError(f"{what}: {e}; expected at most {MAX_PIXELS:,} pixels: make it smaller") from e
    except (
        Exception
    ) as e:  # the bytes are in memory: whatever Pillow's decoders raise (OSError included) is about the format
        said = str(e)
        if isinstance(e, UnidentifiedImageError):
            picture_extension(data, f"{what}: broken picture of {len(data)} bytes")
            said = "cannot identify the picture"  # Pillow names an object in memory
        raise DataError(f"{what}: broken picture of {len(data)} bytes ({type(e).__name__}: {said})") from e


def upright(image: Image.Image, what: object = "picture") -> Image.Image:
    """An opened picture by the rule above: RGB or RGBA, turned by its orientation. Raises DataError where the size or
    the range of its values is unusable.
    """
    from PIL import Image

    check_size(*image.size, what)
    turn = _TURNS.get(_orientation(image))
    seen = _colours(image, what)
    return seen.transpose(Image.Transpose[turn]) if turn else seen


def decode_image(data: bytes | None, what: object = "picture") -> Image.Image:
    """The picture as people see it: RGB, upright, on white. Raises the errors of `open_picture`."""
    return on_white(open_picture(data, what))


def on_white(image: Image.Image) -> Image.Image:
    """The picture as RGB, with transparent parts white."""
    from PIL import Image

    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # EXIF is written by everybody, in every way
        return None


def _colours(image: Image.Image, what: object) -> Image.Image:
    """Converts a picture of any mode to RGB or RGBA."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return _sixteen(image)
    if image.mode in ("I", "F"):
        return Image.fromarray(_inverted(image, _scaled(np.asarray(image), what))).convert("RGB")
    if image.mode == "LAB":
        return Image.fromarray(_srgb(np.asarray(image)))
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # of RGB with 16 bits, of which Pillow gives the high bytes
        image.info["transparency"] = tuple(part >> 8 for part in clear)
    if image.mode == "La":
        image = image.convert("LA")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _sixteen(image: Image.Image) -> Image.Image:
    from PIL import Image

    tags, values = getattr(image, "tag_v2", {}), np.asarray(image)
    bits = tags.get(_BITS, (16,))
    seen = Image.fromarray(_inverted(image, (values >> (4 if bits == (12,) else 8)).astype(np.uint8))).convert("RGB")
    if isinstance(clear := image.info.get("transparency"), int):
        seen.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return seen


def _inverted(image: Image.Image, grey: np.ndarray) -> np.ndarray:
    """Pillow inverts TIFFs in which white is 0 only up to 8 bits."""
    return 255 - grey if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0 else grey


def _scaled(values: np.ndarray, what: object) -> np.ndarray:
    """Grey values of an unstated range as uint8."""
    low, high = float(values.min()), float(values.max())
    floats = values.dtype.kind == "f"
    top = next((top for top in _RANGES[0 if floats else 1 :] if high <= top), None)
    if top is None or not low >= 0 or (floats and _UNCLEAR[0] < high < _UNCLEAR[1]):
        kind, ranges = ("floats", "0 to 1, 0 to 255") if floats else ("32-bit integers", "0 to 255")
        raise DataError(
            f"{what}: {kind} from {low:g} to {high:g}; expected values {ranges} or 0 to 65535: save it with 8 or 16"
            " bits"
        )
    if floats:
        return np.floor(values * (255 / top) + 0.5).astype(np.uint8)
    shift = 0 if top == 255 else 8
    return (values >> shift).astype(np.uint8)


def _srgb(lab: np.ndarray) -> np.ndarray:
    """(h, w, 3) bytes: L of 0 to 255, a and b signed, of D50, to sRGB; the matrix takes XYZ of D50 to linear sRGB
    (Bradford).
    """
    y = (lab[..., 0] * (100 / 255) + 16) / 116
    f = np.stack([y + lab[..., 1].astype(np.int8) / 500, y, y - lab[..., 2].astype(np.int8) / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * (0.96422, 1.0, 0.82521)
    matrix = (
        (3.1338561, -1.6168667, -0.4906146),
        (-0.9787684, 1.9161415, 0.0334540),
        (0.0719453, -0.2289914, 1.4052427),
    )
    linear = np.clip(xyz @ np.array(matrix).T, 0, 1)
    return np.round(255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)).astype(
        np.uint8
    )


def size_of(data: bytes, what: object = "picture") -> tuple[int, int]:
    """Width and height, as the head of a picture says: nothing is decoded. Raises the errors of `open_picture`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except MemoryError:
        raise
    except Exception as e:
        if isinstance(e, UnidentifiedImageError):
            picture_extension(data, what)
        raise DataError(f"{what}: broken picture of {len(data)} bytes ({type(e).__name__}: {e})") from e
