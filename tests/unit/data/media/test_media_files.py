"""Which files are pictures and videos, and which decoder may read them."""

from __future__ import annotations

import pytest

from ccr_dist.data.media import media_files
from ccr_dist.data.media.media_files import kind_of, open_file
from ccr_dist.errors import DataError
from tests.searching import encoded, picture


@pytest.mark.parametrize(
    ("head", "suffix", "kind"),
    [
        (b"\xff\xd8\xff\xe0", ".txt", "image"),
        (b"\x00\x00\x00\x18ftypmp42", ".jpg", "video"),
        (b"\x00\x00\x00\x18ftypheic", "", "image"),
        (b"\x00\x00\x00\x18ftypavif", "", "image"),
        (b"\x1aE\xdf\xa3webm", ".bin", "video"),
        (b"GIF89a", ".mp4", "image"),
        (b"BMW is a word", ".txt", None),
        (b"BM6\x00\x00\x00", ".BMP", "image"),
        (b"", ".HEIC", "image"),
        (b"", ".TGA", "image"),
        (b"", ".MOV", "video"),
        (b"%!PS-Adobe", ".eps", None),
        (b"\x89HDF", ".h5", None),
        (b"%PDF-1.7", ".pdf", None),
    ],
)
def test_content_counts_before_the_suffix(head: bytes, suffix: str, kind: str | None) -> None:
    assert kind_of(head, suffix) == kind


def test_a_format_without_a_signature_is_tried_where_the_suffix_names_it() -> None:
    data = encoded(picture("red"), "TGA")
    assert open_file(data, ".tga", "a").getpixel((3, 3)) == (230, 30, 30)
    with pytest.raises(DataError, match="a: broken picture"):
        open_file(data, ".jpg", "a")


def test_no_program_is_started_for_a_picture() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(DataError, match="it is PostScript"):
        open_file(postscript, ".eps", "a")


def test_heic_without_its_decoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_files, "heif", lambda: None)
    with pytest.raises(DataError, match=r"a: HEIC pictures need pillow-heif; .*ccr-dist\[heif\]"):
        open_file(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", ".heic", "a")
