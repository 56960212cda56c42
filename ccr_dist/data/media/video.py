"""Decodes videos to frames with PyAV (the extra `video`). `decode.py` defines what a video column stores.

Frames are as a player shows them: rotated and mirrored by the file's display matrix, with square pixels, and on white
if the codec has transparency. This is part of the rule that `pictures.VERSION` numbers. A video beyond MAX_FRAMES or
MAX_DECODED is a DataError before any frame is decoded.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ccr_dist.data.media.pictures import check_size, on_white
from ccr_dist.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image


# By the signs of a display matrix: where the right and the lower neighbour of a pixel go.
_TURNS: dict[tuple[int, ...], str] = {
    (-1, 0, 0, 1): "FLIP_LEFT_RIGHT",
    (-1, 0, 0, -1): "ROTATE_180",
    (1, 0, 0, -1): "FLIP_TOP_BOTTOM",
    (0, 1, 1, 0): "TRANSPOSE",
    (0, 1, -1, 0): "ROTATE_270",
    (0, -1, -1, 0): "TRANSVERSE",
    (0, -1, 1, 0): "ROTATE_90",
}
# Pixel formats with these prefixes can be transparent.
_ALPHA = ("rgba", "bgra", "argb", "abgr", "yuva", "gbrap", "ya", "pal8")


MAX_FRAMES = 60 * 60 * 60  # an hour at 60 per second: all frames up to the last wanted one are decoded
MAX_DECODED = MAX_FRAMES * 1920 * 1080  # pixels of all frames


class About(NamedTuple):
    """Length in seconds, and the size in pixels at which the frames are shown."""

    seconds: float
    width: int
    height: int


def decode_video(data: bytes | None, what: object = "video", *, frames: int = 8) -> list[Image.Image]:
    """Evenly spaced frames: what a player shows at the moments (i + 1/2) / frames of the duration.

    Everything up to the last moment is decoded: clips are short, and seeking is not exact in all formats.

    Args:
        data: The encoded video; None stands for a null row.
        what: Its name in messages.
        frames: Number of moments.

    Returns:
        RGB pictures in order. A frame that is shown at several of these moments is returned once, so a video with
        fewer frames gives fewer pictures.

    Raises:
        DataError: There is no frame, the file is broken, or the video is too large.
        ConfigError: PyAV is not installed.
    """
    if frames < 1:
        raise ConfigError(f"{frames} frames of a video: expected at least 1")
    start, length, unit = _extent(data, what)
    moments = [start + (i + 0.5) * length / frames for i in range(frames)]
    shown: list[Any] = []
    with _opened(data, what) as container:
        last, time = None, start
        for number, frame in enumerate(container.decode(video=0)):
            if not unit:
                time = number
            elif frame.pts is not None:
                time = frame.pts
            while moments and last is not None and time > moments[0]:
                shown.append(last)
                moments.pop(0)
            if not moments:
                break
            last = frame
        if last is None:
            raise DataError(f"{what}: no frame of the video can be decoded")
        shown += [last] * len(moments)
        pixel = container.streams.video[0].sample_aspect_ratio
        return [_seen(frame, float(pixel or 1)) for frame in dict.fromkeys(shown)]


def probe(data: bytes | None, what: object = "video") -> About:
    """Length and size, found by decoding one frame. Raises the errors of `decode_video`."""
    _, length, unit = _extent(data, what)
    picture = decode_video(data, what, frames=1)[0]
    return About(length * unit, picture.width, picture.height)


def _extent(data: bytes | None, what: object) -> tuple[int, float, float]:
    """(time of the first frame, duration, seconds per tick), both times in ticks.

    0 seconds per tick: packets carry no times, and a tick is a frame.
    """
    with _opened(data, what) as container:
        stream = container.streams.video[0]
        pixels = max(1, stream.width * stream.height)
        packets = []
        for packet in container.demux(stream):
            if not packet.size:
                continue
            packets.append((packet.pts, packet.duration, packet.is_corrupt))
            if len(packets) > MAX_FRAMES or len(packets) * pixels > MAX_DECODED:
                raise DataError(
                    f"{what}: more than {len(packets) - 1:,} frames of {stream.width} x {stream.height} pixels;"
                    f" expected at most {MAX_FRAMES:,} frames and {MAX_DECODED:,} pixels in all: cut it into clips, or"
                    " make it smaller"
                )
    if not packets:
        raise DataError(f"{what}: the video has no frames")
    if any(corrupt for _, _, corrupt in packets):
        raise DataError(f"{what}: broken video of {len(data or b'')} bytes: it is cut off or damaged")
    times = sorted((pts, duration or 0) for pts, duration, _ in packets if pts is not None)
    if len(times) < len(packets):
        return 0, len(packets), 0.0
    first, last = times[0][0], times[-1][0]
    step = times[-1][1] or (last - first) / max(1, len(times) - 1) or 1
    return first, last - first + step, float(stream.time_base)


@contextmanager
def _opened(data: bytes | None, what: object) -> Iterator[Any]:
    try:
        import av
    except ImportError as e:
        raise ConfigError(f"{what}: videos need PyAV ({e}); install it with: pip install 'ccr-dist[video]'") from e
    if not data:
        raise DataError(f"{what}: there is no video (null row)")
    try:
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.video:
                raise DataError(f"{what}: the file has no video stream")
            stream = container.streams.video[0]
            check_size(round(stream.width * float(stream.sample_aspect_ratio or 1)), stream.height, what)
            yield container
    except (av.FFmpegError, ValueError) as e:
        if isinstance(e, DataError):
            raise
        said = getattr(e, "strerror", None) or e  # FFmpeg's own errors have numbers and no names of files
        raise DataError(
            f"{what}: broken video of {len(data)} bytes: it is cut off, damaged, or of an unknown format ({said})"
        ) from e


def _seen(frame: Any, pixel: float) -> Image.Image:
    """A frame as RGB, rotated as the file says (phones film upright). pixel: its width divided by its height."""
    from PIL import Image

    if frame.format.name.startswith(_ALPHA):
        picture = on_white(Image.fromarray(frame.to_ndarray(format="rgba")))
    else:
        picture = frame.to_image()
    if pixel != 1:
        picture = picture.resize((max(1, round(picture.width * pixel)), picture.height), Image.Resampling.BICUBIC)
    turn = _TURNS.get(_signs(frame))
    return picture.transpose(Image.Transpose[turn]) if turn else picture


def _signs(frame: Any) -> tuple[int, ...]:
    """The signs of the display matrix (a, b, c, d): x' = ax + cy, y' = bx + dy; less than a thousandth counts as 0."""
    for side in frame.side_data:
        if side.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = struct.unpack("=9i", bytes(side))
            return tuple((n > 65) - (n < -65) for n in (a, b, c, d))
    return (1, 0, 0, 1)
