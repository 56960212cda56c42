"""Pictures as people see them: every mode in every orientation against pixels that are computed here, by rules of their
own.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccr_dist.data.corpora.recipes.pictures import Picture, render
from ccr_dist.data.media import pictures
from ccr_dist.data.media.pictures import decode_image, open_picture
from ccr_dist.data.table.dataset import create_column, create_dataset
from ccr_dist.data.table.inspect import describe
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import DataError

H, W = 2, 3
GREY = [[0, 50, 100], [150, 200, 255]]
WORDS = [[0x0000, 0x32FF, 0x6480], [0x9601, 0xC8FE, 0xFFFF]]  # of 16 bits; their high bytes are those of GREY
RED, BLUE, HALF = (255, 0, 0), (0, 0, 255), (0, 0, 0, 128)
# where the stored pixel (r, c) is seen: EXIF 2.3, 4.6.4 A, "the 0th row is at the visual ... and the 0th column at the
# visual ..."
SEEN = {
    1: lambda r, c: (r, c),
    2: lambda r, c: (r, W - 1 - c),
    3: lambda r, c: (H - 1 - r, W - 1 - c),
    4: lambda r, c: (H - 1 - r, c),
    5: lambda r, c: (c, r),
    6: lambda r, c: (c, H - 1 - r),
    7: lambda r, c: (W - 1 - c, H - 1 - r),
    8: lambda r, c: (W - 1 - c, r),
}


def grid(mode: str, values: Any) -> Image.Image:
    """A picture of the pixels values[r][c]."""
    image = Image.new(mode, (W, H))
    for r in range(H):
        for c in range(W):
            image.putpixel((c, r), values[r][c])
    return image


def saved(image: Image.Image, format: str, orientation: int = 1, **options: Any) -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    exif[274] = orientation
    image.save(out, format, exif=exif, **options)
    return out.getvalue()


def grey(value: int) -> tuple[int, int, int]:
    return (value, value, value)


def each(rule: Any, values: Any) -> list[list[tuple[int, int, int]]]:
    return [[rule(value) for value in row] for row in values]


def over_white(colour: tuple[int, ...], alpha: int) -> tuple[int, ...]:
    return tuple(round((part * alpha + 255 * (255 - alpha)) / 255) for part in colour)


def palette() -> Image.Image:
    image = grid("P", [[0, 1, 2], [2, 1, 0]])
    image.putpalette([*RED, *BLUE, 10, 20, 30])
    return image


PALETTE = each(lambda i: (RED, BLUE, (10, 20, 30))[i], [[0, 1, 2], [2, 1, 0]])
COLOURS = [[RED, BLUE, (10, 20, 30)], [(1, 2, 3), (255, 255, 255), (0, 255, 0)]]
INKS = [[(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 255, 0)], [(0, 0, 0, 255), (0, 0, 0, 128), (100, 50, 25, 60)]]
YCC = [[(0, 128, 128), (255, 128, 128), (76, 85, 255)], [(29, 255, 107), (150, 44, 21), (128, 128, 128)]]
YCC_SEEN = [[(0, 0, 0), (255, 255, 255), (254, 0, 0)], [(0, 0, 254), (0, 255, 1), (128, 128, 128)]]
# red, blue, green of sRGB
LABS = [[(0, 128, 128), (255, 128, 128), (138, 209, 198)], [(138, 128, 128), (75, 196, 16), (224, 49, 209)]]
LAB_SEEN = [[(0, 0, 0), (255, 255, 255), (255, 0, 0)], [(129, 129, 129), (0, 0, 255), (0, 255, 0)]]
MODES: dict[str, tuple[Any, str, dict[str, Any], Any, int]] = {
    # name: picture, file format, how it is saved, what is seen, tolerance a channel
    "1": (grid("1", [[0, 255, 0], [255, 255, 0]]), "PNG", {}, each(grey, [[0, 255, 0], [255, 255, 0]]), 0),
    "L": (grid("L", GREY), "PNG", {}, each(grey, GREY), 0),
    "L, one value transparent": (grid("L", GREY), "PNG", {"transparency": 50},
    each(lambda v: grey(255 if v == 50 else v), GREY), 0),
    "LA": (grid("LA", each(lambda v: (v, 255 - v), GREY)), "PNG", {}, each(lambda v: over_white(grey(v), 255 - v),
    GREY), 1),
    "P": (palette(), "PNG", {}, PALETTE, 0),
    "P, transparent": (palette(), "PNG", {"transparency": b"\xff\x80\x00"}, each(
        lambda i: (RED, over_white(BLUE, 128), (255, 255, 255))[i], [[0, 1, 2], [2, 1, 0]]), 1),
    "PA": (grid("RGBA", [[(*RED, 255), (*BLUE, 0), (*RED, 128)]] * 2).convert("PA"), "TIFF", {},
           [[RED, (255, 255, 255), over_white(RED, 128)]] * 2, 1),
    "RGB": (grid("RGB", COLOURS), "PNG", {}, COLOURS, 0),
    "RGB, lossless WebP": (grid("RGB", COLOURS), "WEBP", {"lossless": True}, COLOURS, 0),
    "RGB, TIFF": (grid("RGB", COLOURS), "TIFF", {}, COLOURS, 0),
    "RGB, TIFF by libtiff": (grid("RGB", COLOURS), "TIFF", {"compression": "tiff_lzw"}, COLOURS, 0),
    "RGB, one colour transparent": (
        grid("RGB", COLOURS), "PNG", {"transparency": BLUE}, each(lambda v: (255, 255, 255) if v == BLUE else v,
        COLOURS), 0),
    "RGBA": (
        grid("RGBA", [[(0, 0, 0, 0), HALF, (9, 9, 9, 255)]] * 2), "PNG", {}, [[grey(255), over_white((0, 0, 0), 128),
        grey(9)]] * 2, 1),
    "I;16": (grid("I;16", WORDS), "PNG", {}, each(grey, GREY), 0),
    "I;16, TIFF": (grid("I;16", WORDS), "TIFF", {}, each(grey, GREY), 0),
    "I;16B": (grid("I;16B", WORDS), "TIFF", {}, each(grey, GREY), 0),
    "I;16, white is 0": (grid("I;16", WORDS), "TIFF", {}, each(lambda v: grey(255 - v), GREY), 0),
    "I, of 16 bits": (grid("I", WORDS), "TIFF", {}, each(grey, GREY), 0),
    "I, of 8 bits": (grid("I", GREY), "TIFF", {}, each(grey, GREY), 0),
    "F, to 1": (grid("F", [[v / 255 for v in row] for row in GREY]), "TIFF", {}, each(grey, GREY), 0),
    "F, to 255": (grid("F", GREY), "TIFF", {}, each(grey, GREY), 0),
    "F, to 65535": (grid("F", [[v * 257.0 for v in row] for row in GREY]), "TIFF", {}, each(grey, GREY), 0),
    "CMYK": (grid("CMYK", INKS), "TIFF", {},
    each(lambda i: tuple(round((255 - x) * (255 - i[3]) / 255) for x in i[:3]), INKS), 1),
    "YCbCr": (grid("YCbCr", YCC), "TIFF", {}, YCC_SEEN, 1),
    "LAB": (grid("LAB", LABS), "TIFF", {}, LAB_SEEN, 11),  # green: a step of a in the file is ten of red
}  # fmt: skip


@pytest.mark.parametrize("orientation", SEEN)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_in_every_orientation(mode: str, orientation: int) -> None:
    image, format, options, pixels, tolerance = MODES[mode]
    data = saved(image, format, orientation, **options)
    if "white is 0" in mode:
        data = data.replace(struct.pack("<HHIHH", 262, 3, 1, 1, 0), struct.pack("<HHIHH", 262, 3, 1, 0, 0))
    assert Image.open(io.BytesIO(data)).getexif()[274] == orientation  # the file says so
    seen = decode_image(data)
    assert (seen.mode, seen.size) == ("RGB", (W, H) if orientation < 5 else (H, W))
    for r in range(H):
        for c in range(W):
            row, column = SEEN[orientation](r, c)
            assert np.abs(np.subtract(seen.getpixel((column, row)), pixels[r][c])).max() <= tolerance, (r, c)


@pytest.mark.parametrize("orientation", SEEN)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs(mode: str, orientation: int) -> None:
    """Blocks of 16 x 16, looked at in their middle. Those of CMYK are inverted in the file, as Adobe's are."""
    colours = {"RGB": COLOURS, "L": GREY, "CMYK": INKS}[mode]
    pixels = {"RGB": COLOURS, "L": each(grey, GREY), "CMYK": MODES["CMYK"][3]}[mode]
    data = saved(
        grid(mode, colours).resize((W * 16, H * 16), Image.Resampling.NEAREST),
        "JPEG",
        orientation,
        quality=100,
        subsampling=0,
    )
    assert (b"Adobe" in data) == (mode == "CMYK")
    seen = decode_image(data)
    for r in range(H):
        for c in range(W):
            row, column = SEEN[orientation](r, c)
            assert np.abs(np.subtract(seen.getpixel((column * 16 + 8, row * 16 + 8)), pixels[r][c])).max() <= 4


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_of_several_frames_the_first_is_seen(format: str) -> None:
    out, frames = io.BytesIO(), [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    frames[0].save(
        out, format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
    )
    assert getattr(Image.open(io.BytesIO(out.getvalue())), "n_frames", 1) == 2
    assert np.abs(np.subtract(decode_image(out.getvalue()).getpixel((8, 8)), RED)).max() <= 2


def test_a_grey_of_16_bits_with_a_transparent_value() -> None:
    data = saved(grid("I;16", WORDS), "PNG")
    chunk = b"tRNS" + struct.pack(">H", WORDS[0][1])
    at = data.index(b"IDAT") - 4
    data = data[:at] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at:]
    assert [decode_image(data).getpixel((c, 0)) for c in range(W)] == [grey(0), grey(255), grey(100)]
    assert open_picture(data).mode == "RGBA"


def test_rgb_of_16_bits_with_a_transparent_colour() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    first, second = (0x1234, 0x8000, 0xFFFF), (0x00FF, 0xFF00, 0x7F80)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
        + chunk(b"tRNS", struct.pack(">3H", *first))
    )
    data += chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">6H", *first, *second))) + chunk(b"IEND", b"")
    assert [decode_image(data).getpixel((c, 0)) for c in range(2)] == [(255, 255, 255), (0x00, 0xFF, 0x7F)]


@pytest.mark.parametrize(
    "mode, values, said",
    [
        ("F", [[0.0, 0.5, 1.5]], "floats from 0 to 1.5"),
        ("F", [[-1.0, 0.5, 1.0]], "floats from -1 to 1"),
        ("F", [[0.0, float("nan"), 1.0]], "floats from nan"),
        ("F", [[0.0, float("inf"), 1.0]], "floats from 0 to inf"),
        ("I", [[0, 5, 70_000]], "32-bit integers from 0 to 70000"),
        ("I", [[-5, 5, 7]], "32-bit integers from -5 to 7"),
    ],
)
def test_greys_without_a_known_range_are_refused_rather_than_guessed(mode: str, values: Any, said: str) -> None:
    with pytest.raises(DataError, match=rf"item 'k': {said}.*8 or 16 bits"):
        decode_image(saved(grid(mode, values * 2), "TIFF"), "item 'k'")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_exif_that_cannot_be_read_is_none() -> None:
    out = io.BytesIO()
    grid("RGB", COLOURS).save(out, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode_image(out.getvalue()).getpixel((1, 0)) == BLUE
    for orientation in (0, 9, 77):
        assert decode_image(saved(grid("RGB", COLOURS), "PNG", orientation)).size == (W, H)


def header_of(width: int, height: int, format: str) -> bytes:
    """A file that says it is that large."""
    if format == "GIF":
        return (
            b"GIF89a"
            + struct.pack("<HH", width, height)
            + b"\0\0\0,"
            + struct.pack("<4HB", 0, 0, width, height, 0)
            + b"\x02\0;"
        )
    if format == "BMP":
        return (
            b"BM"
            + struct.pack("<IHHI", 54, 0, 0, 54)
            + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        )
    data = io.BytesIO()
    Image.new("RGB", (1, 1)).save(data, format)
    raw = data.getvalue()
    if format == "PNG":
        chunk = b"IHDR" + struct.pack(">II", width, height) + raw[24:29]
        return raw[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + raw[33:]
    at = raw.index(b"\xff\xc0") + 5  # JPEG: start of frame
    return raw[:at] + struct.pack(">HH", height, width) + raw[at + 4 :]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP"])
@pytest.mark.parametrize(
    "size, said",
    [((60_000, 60_000), "at most 178,956,970"), ((14_000, 13_000), "at most 178,956,970"), ((1, 60_000),
    "1 x 60000 pixels.*200 times"),
     ((60_000, 1), "200 times"), ((10_050, 50), "10050 x 50.*200 times")],
)  # fmt: skip
def test_what_would_take_gigabytes_is_refused_by_its_header(
    format: str, size: tuple[int, int], said: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("its pixels were decoded"))
    with pytest.raises(DataError, match=rf"item 'k': .*{said}"):
        decode_image(header_of(*size, format), "item 'k'")


def test_long_pictures_within_the_limit_are_read() -> None:
    assert decode_image(saved(Image.new("L", (2000, 10)), "PNG")).size == (2000, 10)


@pytest.mark.parametrize(
    "data, said",
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "it is PostScript"),
        (b"\0\0\0\x18ftypheic\0\0\0\0heic", "it is HEIC"),
        (b"\0\0\0\x1cftypavif", "it is AVIF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "it is JPEG 2000"),
        (b"P6 1 1 255 abc", "first bytes b'P6 1 1 2'"),
    ],
)
def test_only_six_formats_are_opened(data: bytes, said: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: pytest.fail("a program was started"))
    with pytest.raises(DataError, match=f"item 'k'.*{said}"):
        decode_image(data, "item 'k'")


def test_pictures_are_opened_in_one_place() -> None:
    """`Image.open` tries every format that Pillow knows. Other uses: animations that a recipe downloads, and what an
    export gives to its users, who have no ccr_dist.
    """
    root = Path(pictures.__file__).parents[2]
    found = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if "Image.open(" in path.read_text()}
    own = {path for path in found if not path.startswith("export/forms/")}
    assert own == {"data/media/pictures.py", "data/corpora/recipes/animoji.py"}
    assert found - own == {"export/forms/example_pictures.py", "export/forms/sentence.py"}
    assert 'Image.open(path, formats=("WEBP",))' in (root / "data/corpora/recipes/animoji.py").read_text()


def test_recipes_draw_what_is_seen(tmp_path: Path) -> None:
    left_red = Image.new("RGB", (40, 20), BLUE)
    left_red.paste(RED, (0, 0, 20, 20))
    (tmp_path / "a.png").write_bytes(saved(left_red, "PNG", 6))  # seen: 20 x 40, red above
    drawn = decode_image(render(str(tmp_path / "a.png"), Picture(size=40)))
    assert [drawn.getpixel(at) for at in ((20, 5), (20, 35), (2, 20))] == [RED, BLUE, (255, 255, 255)]
    with pytest.raises(DataError, match=r"b\.png: 1 x 60000 pixels"):
        (tmp_path / "b.png").write_bytes(header_of(1, 60_000, "PNG"))
        render(str(tmp_path / "b.png"), Picture())


def test_inspect_and_verify_look_by_the_same_rule(tmp_path: Path) -> None:
    dataset = create_dataset(tmp_path, name="d", split="train", keys=[["phone", "long"]])
    column = create_column(dataset, "image", kind="image", extension="png", plan={}, provenance={})
    column.commit(0, [saved(Image.new("RGB", (64, 32)), "PNG", 6), header_of(1, 60_000, "PNG")])
    assert describe(tmp_path, rows=1)["datasets"][0]["shown"][0]["values"]["image"].startswith("picture of 32 x 64")
    (problem,) = verify(tmp_path)
    assert "item 'long'" in str(problem) and "1 x 60000" in str(problem)
