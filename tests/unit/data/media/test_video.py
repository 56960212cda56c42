"""Videos: which frames are chosen, formats, broken files; the column kind from commit to verify."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from fractions import Fraction

import pytest
from PIL import Image

pytest.importorskip("av")
from ccr_dist.data.media import decode
from ccr_dist.data.media import video as film_reader
from ccr_dist.data.media.video import decode_video, probe
from ccr_dist.data.stream.sweep import Sweep
from ccr_dist.data.table.dataset import create_column, create_dataset
from ccr_dist.data.table.inspect import describe
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import ConfigError, DataError
from tests.generation import video

FILM = video()


def numbers(data: bytes, frames: int) -> list[int]:
    """Which frames came out."""
    return [round(picture.getpixel((20, 20))[0] / 10) for picture in decode_video(data, "film", frames=frames)]


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (1, [10]),
        (2, [5, 15]),
        (4, [2, 7, 12, 17]),
        (5, [2, 6, 10, 14, 18]),
        (20, list(range(20))),
        (64, list(range(20))),
    ],
)
def test_frames_are_those_shown_at_the_middles_of_equal_parts(frames, expected):
    # 20 frames of 0.1 s; the middle of one half of two seconds is 0.5 s, when frame 5 begins or frame 4 has just ended
    assert all(abs(a - b) <= 1 for a, b in zip(numbers(FILM, frames), expected, strict=True))
    if frames in (5, 20, 64):  # no middle falls on a border between frames
        assert numbers(FILM, frames) == expected


@pytest.mark.parametrize("container", ["mp4", "mov", "webm", "matroska", "avi"])
def test_formats(container):
    data = video(12, container=container)
    assert decode.video_extension(data) == {"matroska": "mkv"}.get(container, container)
    assert numbers(data, 12) == list(range(12))
    about = probe(data)
    assert (round(about.seconds, 1), about.width, about.height) == (1.2, 64, 48)


@pytest.mark.parametrize("bound", [{"MAX_FRAMES": 19}, {"MAX_DECODED": 20 * 64 * 48 - 1}])
def test_a_video_that_would_be_decoded_for_hours_is_refused(monkeypatch, bound):
    assert len(decode_video(FILM, "film", frames=2)) == 2
    for name, most in bound.items():
        monkeypatch.setattr(film_reader, name, most)
    monkeypatch.setattr(film_reader, "_seen", lambda *_: pytest.fail("a frame was decoded"))
    for read in (decode_video, probe):
        with pytest.raises(DataError, match=r"film: more than 19 frames of 64 x 48 pixels; .*cut it into clips"):
            read(FILM, "film")


def test_a_gif_is_a_video_too():
    data = video(5, container="gif")
    assert decode.video_extension(data) == "gif"
    assert len(decode_video(data, frames=3)) == 3


def test_a_video_of_one_frame():
    assert numbers(video(1), 8) == [0]


@pytest.mark.parametrize("data", [b"", b"no film", FILM[: len(FILM) // 2], b"\x00" * 100])
def test_broken_ones_are_named(data):
    with pytest.raises(DataError, match=r"^this one: "):
        decode_video(data, "this one")


ONE = 1 << 16
# of MP4: x' = ax + cy, y' = bx + dy. What is seen in the corners, in reading order, of a film with A B above C D
MATRICES = {
    "upright": ((ONE, 0, 0, ONE), "ABCD"),
    "turned right": ((0, ONE, -ONE, 0), "CADB"),
    "upside down": ((-ONE, 0, 0, -ONE), "DCBA"),
    "turned left": ((0, -ONE, ONE, 0), "BDAC"),
    "mirrored": ((-ONE, 0, 0, ONE), "BADC"),
    "mirrored, upside down": ((ONE, 0, 0, -ONE), "CDAB"),
    "mirrored, turned left": ((0, ONE, ONE, 0), "ACBD"),
    "mirrored, turned right": ((0, -ONE, -ONE, 0), "DBCA"),
}
CORNERS = {"A": 20, "B": 90, "C": 160, "D": 230}  # grey


def corners(pixel: int = 1) -> bytes:
    import av
    import numpy as np

    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(pixel, 1)
        grey = np.repeat(np.repeat(np.array([[20, 90], [160, 230]], np.uint8), 24, 0), 32, 1)
        for packet in [*stream.encode(av.VideoFrame.from_ndarray(np.stack([grey] * 3, -1), "rgb24")), *stream.encode()]:
            out.mux(packet)
    return data.getvalue()


@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_turned_and_mirrored_as_a_player_does(name):
    (a, b, c, d), seen = MATRICES[name]
    data = corners()
    at = data.index(b"tkhd") + 44
    assert struct.unpack(">9i", data[at : at + 36]) == (ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    data = data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]
    (frame,) = decode_video(data, frames=1)
    assert frame.size == ((64, 48) if a else (48, 64)) == probe(data)[1:]
    places = [(x * frame.width // 4, y * frame.height // 4) for y in (1, 3) for x in (1, 3)]
    found = [min(CORNERS, key=lambda corner: abs(CORNERS[corner] - frame.getpixel(place)[0])) for place in places]
    assert "".join(found) == seen


def test_pixels_are_square():
    (frame,) = decode_video(corners(pixel=2), frames=1)
    assert frame.size == (128, 48)
    assert abs(frame.getpixel((96, 12))[0] - 90) < 8


def test_what_is_transparent_is_white():
    data, clear = io.BytesIO(), Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    clear.save(data, "GIF", save_all=True, append_images=[Image.new("RGBA", (10, 10), "red")], duration=100)
    assert [frame.getpixel((3, 3)) for frame in decode_video(data.getvalue(), frames=2)] == [
        (255, 255, 255),
        (255, 0, 0),
    ]


def test_a_film_whose_frames_would_take_gigabytes_is_refused_by_its_header():
    with pytest.raises(DataError, match="film: 4096 x 16 pixels; expected one side at most 200 times"):
        decode_video(video(1, size=(4096, 16)), "film")
    gif = b"GIF89a" + struct.pack("<HH", 14_000, 14_000) + video(2, container="gif")[10:]
    with pytest.raises(DataError, match="film: 14000 x 14000 pixels"):
        decode_video(gif, "film")


def test_sound_alone_is_no_video():
    import av
    import numpy as np

    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        for packet in [*stream.encode(frame), *stream.encode()]:
            out.mux(packet)
    with pytest.raises(DataError, match="has no video stream"):
        decode_video(data.getvalue(), "song")


def test_without_pyav_it_says_what_to_install():
    code = (
        "import sys; sys.modules['av'] = None\nfrom ccr_dist.data.media.video import decode_video\ndecode_video(b'x',"
        " 'film')"
    )
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ConfigError" in failed.stderr and "ccr-dist[video]" in failed.stderr
    with pytest.raises(ConfigError, match="at least 1"):
        decode_video(FILM, frames=0)


def test_the_column(tmp_path):
    dataset = create_dataset(tmp_path / "d", name="films", split="train", keys=[["a", "b", "c"]])
    column = create_column(dataset, "video", kind="video", extension="mp4;webm", plan={}, provenance={})
    webm = video(4, container="webm")
    with pytest.raises(DataError, match="a gif video in a column of mp4;webm"):
        column.commit(0, [b"GIF89a....", None, None])
    assert column.commit(0, [FILM, None, webm])
    assert [column.value(0, row) for row in range(3)] == [FILM, None, webm]
    assert column.present(0).tolist() == [True, False, True]
    shown = describe(dataset.root, rows=1)["datasets"][0]["shown"][0]["values"]["video"]
    assert shown == f"video of 2.0 s, 64 x 48, {len(FILM)} bytes"
    assert verify(dataset.root) == []
    assert Sweep(dataset, "video")[0].values == [FILM, webm]


def test_verify_finds_a_film_that_does_not_decode(tmp_path):
    dataset = create_dataset(tmp_path / "d", name="films", split="train", keys=[["a", "b"]])
    create_column(dataset, "video", kind="video", extension="mp4", plan={}, provenance={}).commit(0, [FILM, FILM[:700]])
    (problem,) = verify(dataset.root)
    assert "'b'" in str(problem) and "broken video" in str(problem) and "Errno" not in str(problem)
    assert verify(dataset.root, decode=False) == []


@pytest.mark.parametrize(
    "value",
    [
        {"views": {"a": "x"}, "tokens": {"a": 3}, "finish": {"a": "stop"}},
        {"views": {}, "finish": {"a": "refused"}},
        {"views": {"a": "x"}},
    ],
)
def test_views_with_tokens_and_finish(value):
    assert decode.decode("views", decode.encode("views", value)) == value
    assert decode.is_present("views", value) == bool(value["views"])


@pytest.mark.parametrize(
    "value",
    [
        {"tokens": {}},
        {"views": {"a": 1}},
        {"views": {}, "tokens": {"a": "3"}},
        {"views": {}, "other": {}},
        {"views": {}, "tokens": {"a": True}},
    ],
)
def test_other_views_are_refused(value):
    with pytest.raises(DataError, match="expected JSON"):
        decode.decode("views", json.dumps(value).encode())
