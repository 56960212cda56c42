"""Finds the pictures or videos of items by name, in folders or foreign tars. Nothing is decoded here."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from ccr_dist.data.corpora.foreign_tars import expand
from ccr_dist.data.corpora.formats.files import walk
from ccr_dist.data.media.decode import file_extension
from ccr_dist.data.storage import store
from ccr_dist.data.storage.file_ranges import read_at
from ccr_dist.data.storage.tar import Members, ShardIndex
from ccr_dist.errors import DataError

SUFFIXES = {
    "image": ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff"),
    "video": ("mp4", "webm", "mkv", "avi", "mov", "gif"),
}

EXTENSIONS = ("jpg", "png", "webp", "gif", "bmp", "tif")  # of pictures in our own tars


@dataclass(frozen=True)
class Medium:
    """The place of a picture or video.

    Attributes:
        path: A file, or the tar that holds it.
        size: Its bytes.
        offset: Its first byte in the tar; None for a file.
        caption: (offset, size) of the tar's own `.txt` for it, if any.
    """

    path: str
    size: int
    offset: int | None = None
    caption: tuple[int, int] | None = None

    def read(self) -> bytes:
        """The bytes. Raises StorageError if they cannot be read after several attempts."""
        if self.offset is None:
            return store.retry_io(Path(self.path).read_bytes, what=self.path)
        return store.retry_io(lambda: read_at(self.path, self.offset or 0, self.size), what=self.path)

    def read_caption(self) -> str | None:
        """The tar's own caption, or None."""
        if self.caption is None:
            return None
        offset, size = self.caption
        return store.retry_io(lambda: read_at(self.path, offset, size), what=self.path).decode(errors="replace")


def find_media(
    roots: Sequence[str], kind: str, wanted: Container[str], item_of: Callable[[str], str | None]
) -> dict[str, Medium]:
    """Find the media of items.

    Args:
        roots: Folders, searched recursively, and tars (with braces and globs).
        kind: "image" or "video".
        wanted: The items.
        item_of: The item of a file name, or None.

    Returns:
        Medium by item, for the items that were found.

    Raises:
        DataError: Two files belong to one item.
        ConfigError: A tar does not exist.
    """
    found: dict[str, Medium] = {}

    def add(name: str, medium: Callable[[], Medium]) -> None:
        item = item_of(name) if name.rpartition(".")[2].lower() in SUFFIXES[kind] else None
        if item is None or item not in wanted:
            return
        new = medium()
        if item in found:
            raise DataError(
                f"two files belong to the item {item!r}: {found[item].path} and {new.path} ({name}); keep one of them"
            )
        found[item] = new

    for root in roots:
        if Path(root).is_dir():
            for name in walk(Path(root)):
                path = os.path.join(root, name)  # noqa: PTH118 (a hundred thousand times)
                add(os.path.basename(name), lambda path=path: Medium(path, os.stat(path).st_size))  # type: ignore[misc]  # noqa: PTH116, PTH119
            continue
        for tar in expand([root]):
            index = ShardIndex.scan(tar)
            starts, lengths = index.members.get("txt", ([], []))
            said = {
                key: (int(start), int(size))
                for key, start, size in zip(index.keys, starts, lengths, strict=False)
                if size > 0
            }
            assert isinstance(index.members, Members)
            for extension, row, offset, size in index.members.each():
                if size > 0:
                    key = index.keys[row]
                    medium = Medium(str(tar), size, offset, said.get(key))
                    add(f"{key}.{extension}", lambda medium=medium: medium)  # type: ignore[misc]
    return found


def read_medium(medium: Medium, kind: str) -> bytes:
    """The bytes of a medium. Raises DataError if they do not begin like a picture or video (`kind`)."""
    data = medium.read()
    file_extension(kind, data, medium.path)
    return data
