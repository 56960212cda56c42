"""People's own files of pictures and videos: recognises them by content and suffix, and opens them.

Columns hold six formats (`pictures.FORMATS`). A person's folder may hold all formats that Pillow decodes by itself, and
HEIC if pillow-heif is installed (the extra `heif`). Formats without a signature are tried only if the suffix names
them, so that a broken JPEG is not read as one of these.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Literal

from ccr_dist.data.media import pictures
from ccr_dist.data.media.decode import video_extension
from ccr_dist.data.media.pictures import on_white, open_picture, picture_extension
from ccr_dist.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Kind = Literal["image", "video"]
HEAD = 64  # first bytes that say what a file is
# EPS starts Ghostscript; of the others Pillow only reads the header, or needs a handler that nobody registers.
_NEVER = frozenset({"EPS", "BUFR", "GRIB", "HDF5", "WMF", "MPEG"})
_VIDEOS = (
    ".mp4", ".m4v", ".mov", ".qt", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".m2v", ".wmv", ".asf", ".flv", ".ogv",
    ".3gp", ".3g2", ".mts", ".m2ts", ".vob", ".mxf",
)  # fmt: skip
_HEIF = (b"hei", b"hev", b"mif", b"msf")  # beginnings of the brands of ISO files that pillow-heif reads
_STILL = (*_HEIF, b"avi")  # and AVIF, whose brands begin with `avi`


@functools.cache
def heif() -> str | None:
    """Let Pillow open HEIC. Returns the version of pillow-heif, or None if it is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return None
    pillow_heif.register_heif_opener()
    return str(pillow_heif.__version__)


def readers() -> str:
    """Versions that decide which files can be read; if they change, unreadable files can be tried again."""
    import PIL

    with contextlib.suppress(ImportError):
        import av

        return f"pictures {pictures.VERSION}, Pillow {PIL.__version__}, pillow-heif {heif()}, PyAV {av.__version__}"
    return f"pictures {pictures.VERSION}, Pillow {PIL.__version__}, pillow-heif {heif()}, PyAV None"


@functools.cache
def _formats() -> tuple[tuple[str, ...], dict[str, str]]:
    """Formats with a signature, and format by suffix, of those that are read."""
    from PIL import Image

    heif()
    Image.init()
    known = [name for name in Image.OPEN if name not in _NEVER]
    named = {suffix: name for suffix, name in Image.EXTENSION.items() if name in known}
    signed = [name for name in known if Image.OPEN[name][1] is not None]
    return tuple(dict.fromkeys([*pictures.FORMATS, *signed])), named


def named_kind(suffix: str) -> Kind | None:
    """The kind of a file by its suffix (`.JPG`), or None. HEIC counts as a picture even without a decoder."""
    suffix = suffix.lower()
    if suffix in _VIDEOS:
        return "video"
    return "image" if suffix in _formats()[1] or suffix in (".heic", ".heif", ".hif") else None


def kind_of(head: bytes, suffix: str) -> Kind | None:
    """The kind of a file by its first `HEAD` bytes, otherwise by its suffix; None if it is neither picture nor
    video.
    """
    if head[4:8] == b"ftyp":
        return "image" if head[8:11] in _STILL else "video"
    with contextlib.suppress(DataError):
        if picture_extension(head) != "bmp":  # whose signature, BM, begins words
            return "image"
    with contextlib.suppress(DataError):
        video_extension(head)
        return "video"
    if head.startswith((b"\x00\x00\x00\x0cjP", b"\xff\x4f\xff\x51")):  # JPEG 2000, as a file and bare
        return "image"
    return named_kind(suffix)


def open_file(data: bytes, suffix: str, what: object) -> Image.Image:
    """The picture in a file as people see it: RGB, upright, on white.

    Args:
        data: The file's bytes.
        suffix: Suffix of its name, such as `.tga`.
        what: Its name in messages.

    Raises:
        DataError: The file is broken, of an unknown format, or of an unusable size.
    """
    if data[4:8] == b"ftyp" and data[8:11] in _HEIF and heif() is None:
        raise DataError(f"{what}: HEIC pictures need pillow-heif; install it with: pip install 'ccr-dist[heif]'")
    signed, named = _formats()
    own = named.get(suffix.lower())
    formats = signed if own is None or own in signed else (*signed, own)
    return on_white(open_picture(data, what, formats=formats))
