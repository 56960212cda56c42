"""A folder of a person's pictures, with all that such folders hold: indexed without captions, searched, changed."""

from __future__ import annotations

import os
import shutil
import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccr_dist.data.media import media_files
from ccr_dist.errors import DataError
from ccr_dist.search.index import Index, begin
from ccr_dist.search.update import JobSettings, Update
from tests.searching import COLOURS, Colours, dataset, encoded, half, picture, put

QUIET = JobSettings(progress=False)
EXIF_ORIENTATION, RIGHT_TOP = 0x0112, 6  # shown turned by 90 degrees clockwise


def fill(folder: Path) -> dict[str, str]:
    """60 files; the result: name -> what a search for it asks, for those that can be found."""
    wanted = {}

    def add(name: str, data: bytes, query: str) -> None:
        put(folder / name, data)
        wanted[name] = query

    for number, colour in enumerate(COLOURS):  # 40 plain ones, all different
        for form, suffix in (("PNG", ".png"), ("JPEG", ".JPG"), ("WEBP", ".WebP"), ("BMP", ".bmp"), ("GIF", ".GIF")):
            add(f"plain/{colour} {number}{suffix}", encoded(picture(colour, (20 + number, 16)), form), colour)
    add(unicodedata.normalize("NFD", "é/praça.png"), encoded(half("red", (32, 32))), "left red")
    add(unicodedata.normalize("NFC", "ö.png"), encoded(half("blue", (32, 32))), "left blue")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = RIGHT_TOP
    lying = half("green", (32, 32)).transpose(Image.Transpose.ROTATE_90)  # as the camera's sensor saw it
    add("turned.jpg", encoded(lying, "JPEG", exif=exif, quality=95), "left green")
    add("print.jpg", encoded(picture("cyan", (31, 31)).convert("CMYK"), "JPEG"), "cyan")
    clear = half("magenta", (32, 32)).convert("RGBA")
    clear.putalpha(Image.new("L", (32, 32), 255))
    clear.paste((0, 0, 0, 0), (16, 0, 32, 32))  # black, where it is transparent: shown as white
    add("clear.png", encoded(clear), "left magenta")
    grey = Image.fromarray(np.full((16, 16), 65000, np.uint16))
    add("scan 16.tiff", encoded(grey, "TIFF"), "white")
    add(
        "moving.gif",
        encoded(picture("yellow", (30, 16)), "GIF", save_all=True, append_images=[picture("black")]),
        "yellow",
    )
    add("no suffix", encoded(picture("blue", (50, 20))), "blue")
    add("art.tga", encoded(picture("red", (51, 20)), "TGA"), "red")
    add("photo.jp2", encoded(picture("green", (52, 20)), "JPEG2000"), "green")
    add("photo.avif", encoded(picture("cyan", (64, 64)), "AVIF"), "cyan")
    if media_files.heif():
        add("IMG_1.HEIC", encoded(picture("magenta", (64, 64)), "HEIF"), "magenta")
    else:
        add("IMG_1.png", encoded(picture("magenta", (64, 64))), "magenta")
    put(folder / "broken.jpg", encoded(picture("red", (60, 60)), "JPEG")[:300])
    put(folder / "empty.png", b"")
    put(folder / "not one.jpeg", b"this is a text")
    put(folder / "notes.txt", b"BMW, Berlin")
    put(folder / ".hidden.png", encoded(picture("red")))
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to(folder / "art.tga")
    (folder / "outside.png").symlink_to(put(folder.parent / "private.png", encoded(picture("black", (9, 9)))))
    (folder / "plain" / "circle").symlink_to(folder, target_is_directory=True)
    assert sum(1 for path in folder.rglob("*") if not path.is_dir()) == 60
    return wanted


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], Index, Colours, Update]:
    folder = tmp_path_factory.mktemp("folder")
    wanted = fill(folder / "my pictures")
    retriever = Colours()
    index = begin(folder / "index", retriever)
    done = index.update(retriever, [str(folder / "my pictures")], settings=QUIET)
    return folder, wanted, index, retriever, done


def test_every_picture_is_found_by_what_it_shows(filled: tuple[Path, dict[str, str], Index, Colours, Update]) -> None:
    folder, wanted, index, retriever, done = filled
    assert index.items == len(wanted) == 52
    assert retriever.encoded == done.encoded == 52
    for name, query in wanted.items():
        numbers, scores = index.search(retriever.encode_text([query]), 52)
        names = [index.named(number).names for number in numbers[0].tolist()]
        (rank,) = (at for at, some in enumerate(names) if str(folder / "my pictures" / name) in some)
        assert scores[0, rank] > 0.97, (name, query)


def test_what_cannot_be_read_is_listed_with_the_reason(
    filled: tuple[Path, dict[str, str], Index, Colours, Update],
) -> None:
    folder, _, _, _, done = filled
    root = folder / "my pictures"
    bad = {Path(path).relative_to(root).as_posix(): why for path, why in done.bad.items()}
    assert bad.keys() == {"broken.jpg", "empty.png", "not one.jpeg"}
    assert "broken picture of 300 bytes" in bad["broken.jpg"] and bad["empty.png"] == "the file is empty"
    assert "not a JPEG, PNG" in bad["not one.jpeg"] and str(root) not in bad["not one.jpeg"]
    passed = {Path(path).relative_to(root).as_posix(): why for path, why in done.passed.items()}
    assert passed == {
        "notes.txt": "neither a picture nor a video",
        "outside.png": "a link that leads out of the folder",
        "pipe.png": "not a plain file",
        "plain/circle": "a link to a folder, which is looked through at its own place",
    }


def test_a_link_inside_the_folder_is_another_name(filled: tuple[Path, dict[str, str], Index, Colours, Update]) -> None:
    folder, _, index, _, _ = filled
    names = [index.named(int(n)).names for n in index.numbers()]
    root = folder / "my pictures"
    assert (str(root / "art.tga"), str(root / "link.png")) in names


def test_pictures_that_would_fill_the_memory_are_listed_and_not_decoded(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    put(folder / "red.png", encoded(picture("red")))
    small = bytearray(encoded(picture("red")))
    head = struct.pack(">4sII", b"IHDR", 60_000, 60_000) + small[24:29]
    small[12:33] = head + struct.pack(">I", zlib.crc32(head))
    put(folder / "bomb.png", bytes(small))
    put(folder / "bomb.tga", struct.pack("<3B2HB4H2B", 0, 0, 2, 0, 0, 0, 0, 0, 60_000, 60_000, 24, 0))
    index = begin(tmp_path / "i", Colours())
    done = index.update(Colours(), [str(folder)], settings=QUIET)
    assert index.items == 1 and {Path(path).name for path in done.bad} == {"bomb.png", "bomb.tga"}
    assert all("60000 x 60000 pixels; expected at most" in why or "pixels" in why for why in done.bad.values()), (
        done.bad
    )


def test_adding_changing_renaming_and_deleting(tmp_path: Path) -> None:
    folder, retriever = tmp_path / "p", Colours()
    for colour in ("red", "green", "blue", "white"):
        put(folder / f"{colour}.png", encoded(picture(colour)))
    index = Index.build(tmp_path / "i", retriever, folder, progress=False)
    number = {index.named(int(n)).name: int(n) for n in index.numbers()}
    retriever.encoded = 0

    put(folder / "new.png", encoded(picture("cyan")))
    put(folder / "green.png", encoded(picture("yellow", (60, 60))))
    (folder / "blue.png").unlink()
    shutil.move(folder / "white.png", folder / "snow.png")
    os.utime(folder / "red.png", ns=(1, 1))
    done = index.update(retriever, [str(folder)], settings=QUIET)
    assert (done.new, done.changed, done.removed, done.encoded) == (2, 2, 2, 2)
    assert retriever.encoded == 2, "a picture that was renamed or touched was encoded again"
    found = {index.named(int(n)).name: int(n) for n in index.numbers()}
    assert found.keys() == {"red.png", "green.png", "snow.png", "new.png"} and index.items == 4
    assert found["red.png"] == number["red.png"] and found["snow.png"] == number["white.png"], "numbers are kept"
    assert best(index, retriever, "yellow") == "green.png" and best(index, retriever, "green") != "green.png"
    assert best(index, retriever, "blue") != "blue.png"
    with pytest.raises(DataError, match=f"no item has the number {number['blue.png']}"):
        index.item(number["blue.png"])

    again = index.update(retriever, [str(folder)], settings=QUIET)
    assert (again.new, again.changed, again.removed, again.encoded) == (0, 0, 0, 0)
    assert Index.open(tmp_path / "i").generation == index.generation == 2


def best(index: Index, retriever: Colours, query: str) -> str:
    return index.named(int(index.search(retriever.encode_text([query]), 1)[0][0, 0])).name


def test_same_size_and_time_is_taken_for_unchanged_unless_all_is_read_again(tmp_path: Path) -> None:
    folder, retriever = tmp_path / "p", Colours()
    path = put(folder / "a.bmp", encoded(picture("red"), "BMP"))
    put(folder / "b.bmp", encoded(picture("white"), "BMP"))
    index = Index.build(tmp_path / "i", retriever, folder, progress=False)
    when = path.stat().st_mtime_ns
    path.write_bytes(encoded(picture("green"), "BMP"))
    os.utime(path, ns=(when, when))
    assert index.update(retriever, [str(folder)], settings=QUIET).changed == 0
    number = int(index.search(retriever.encode_text(["red"]), 1)[0][0, 0])
    with pytest.raises(DataError, match=r"a\.bmp: changed since it was indexed"):
        index.picture(number)
    assert index.update(retriever, [str(folder)], check=True, settings=QUIET).changed == 1
    assert best(index, retriever, "green") == "a.bmp"
    number = int(index.search(retriever.encode_text(["green"]), 1)[0][0, 0])
    assert index.picture(number) == path.read_bytes()


def test_a_file_that_changes_while_it_is_indexed_is_looked_at_again(tmp_path: Path) -> None:
    folder, retriever = tmp_path / "p", Colours()
    put(folder / "a.png", encoded(picture("red")))
    put(folder / "b.png", encoded(picture("blue")))

    class Rewritten(Colours):
        def image_transform(self):  # the digests are known by now
            put(folder / "a.png", encoded(picture("green")))
            return super().image_transform()

    index = Index.build(tmp_path / "i", Rewritten(), folder, progress=False)
    assert index.items == 1
    done = index.update(retriever, [str(folder)], settings=QUIET)
    assert done.encoded == 1 and not done.bad and best(index, retriever, "green") == "a.png"


def test_what_could_not_be_read_is_tried_again_by_other_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, retriever = tmp_path / "p", Colours()
    put(folder / "a.png", encoded(picture("red")))
    put(folder / "b.avif", encoded(picture("blue", (64, 64)), "AVIF"))
    formats = media_files._formats()
    with monkeypatch.context() as without:
        without.setattr(media_files, "_formats", lambda: (formats[0][:5], {}))
        without.setattr("ccr_dist.search.plan.readers", lambda: "without AVIF")
        index = Index.build(tmp_path / "i", retriever, folder, progress=False)
        assert index.items == 1
        assert index.update(retriever, [str(folder)], settings=QUIET).encoded == 0, "it was tried again in vain"
    done = index.update(retriever, [str(folder)], settings=QUIET)
    assert done.encoded == 1 and best(index, retriever, "blue") == "b.avif" and not done.bad


def test_a_folder_that_cannot_be_listed_keeps_what_was_known(tmp_path: Path) -> None:
    folder, retriever = tmp_path / "p", Colours()
    put(folder / "a.png", encoded(picture("red")))
    put(folder / "far" / "b.png", encoded(picture("blue")))
    index = Index.build(tmp_path / "i", retriever, folder, progress=False)
    shutil.rmtree(folder / "far")
    (folder / "far").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("far"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        done = index.update(retriever, [str(folder)], settings=QUIET)
    assert list(done.closed) == [f"{folder}/far"] and done.removed == 0 and index.items == 2
    assert index.update(retriever, [str(folder)], settings=QUIET).removed == 1 and index.items == 1


def test_a_folder_in_which_nothing_is_left_is_not_believed(tmp_path: Path) -> None:
    folder, retriever = tmp_path / "p", Colours()
    put(folder / "a.png", encoded(picture("red")))
    put(tmp_path / "q" / "b.png", encoded(picture("blue")))
    words = [str(folder), str(tmp_path / "q")]
    index = Index.build(tmp_path / "i", retriever, words, progress=False)
    (folder / "a.png").unlink()
    with pytest.raises(
        DataError, match=r"/p: no pictures or videos any more; .* knows 1 there\. Is a disk not mounted"
    ):
        index.update(retriever, words, settings=QUIET)
    assert Index.open(tmp_path / "i").items == 2
    assert index.update(retriever, words, others="drop", settings=QUIET).removed == 1 and index.items == 1


def test_an_update_of_others_that_cannot_be_finished_can_be_dropped(tmp_path: Path) -> None:
    folder, retriever = tmp_path / "p", Colours()
    put(folder / "a.png", encoded(picture("red")))
    index = Index.build(tmp_path / "i", retriever, folder, progress=False)
    dataset(tmp_path / "d")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ccr_dist.search.update.run", lambda *a, **b: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            index.add(tmp_path / "d", retriever, progress=False)
    (tmp_path / "d").rename(tmp_path / "e")
    with pytest.raises(
        DataError, match=r"not a dataset(.|\n)*begun before\. If it cannot be finished, drop it: rm -r "
    ) as said:
        index.update(retriever, [str(folder)], settings=QUIET)
    for path in str(said.value).rpartition("rm -r ")[2].split():
        assert Path(path).exists()
        (shutil.rmtree if Path(path).is_dir() else os.unlink)(path)
    assert index.update(retriever, [str(folder)], settings=QUIET).encoded == 0 and index.items == 1
