"""Which files of a folder are pictures and videos. Reads nothing but names, sizes, times, and the first bytes of files
that are new.

Folders below are looked through, in the order of their names; hidden ones, and hidden files, are not. A link to a file
of the same folder is another name of it. A link that leads out of the folder is passed over, and so is one to a folder
inside of it, which is looked through at its own place: nothing can lead in circles.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ccr_dist.data.media.media_files import HEAD, Kind, kind_of
from ccr_dist.errors import DataError


class Found(NamedTuple):
    """A picture or video.

    Attributes:
        path: relative to the folder, with `/`.
        bytes: its size.
        mtime: when it was last written, in ns.
        kind: by its content, else by its suffix.
    """

    path: str
    bytes: int
    mtime: int
    kind: Kind


@dataclass
class Listing:
    """What a folder holds.

    Attributes:
        found: pictures and videos, by path.
        bad: pictures and videos by name that cannot be read, with the reason.
        passed: other files, and links that are not followed, with the reason.
        closed: folders that cannot be listed, with the reason: what is in them is not known.
    """

    found: dict[str, Found] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    passed: dict[str, str] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)


Known = Callable[[str, int, int], Kind | None]  # (path, bytes, mtime) -> the kind of a file that was listed before


def listed(root: Path, known: Known = lambda path, size, mtime: None) -> Listing:
    """The pictures and videos of a folder.

    Args:
        root: the folder.
        known: tells the kinds of files that need not be looked into.

    Raises:
        DataError: there is no such folder.
        OSError: it cannot be listed.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    listing = Listing()
    _look_through(root, os.path.realpath(root), "", known, listing)
    return listing


def _look_through(root: Path, real: str, below: str, known: Known, listing: Listing) -> None:
    folders = [below]
    while folders:
        below = folders.pop()
        try:
            with os.scandir(root / below) as entries:
                there = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not below:
                raise
            listing.closed[below] = error.strerror or str(error)
            continue
        inner = []
        for entry in there:
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith("."):
                continue
            if not _is_text(entry.name):
                listing.bad[path.encode(errors="backslashreplace").decode()] = (
                    "its name is not valid Unicode: rename it"
                )
            elif entry.is_dir(follow_symlinks=False):
                inner.append(path)
            else:
                _look_at(entry, path, real, known, listing)
        folders += reversed(inner)


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _look_at(entry: os.DirEntry[str], path: str, real: str, known: Known, listing: Listing) -> None:
    suffix = os.path.splitext(entry.name)[1]  # noqa: PTH122 (very many names)
    try:
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if not is_below(target, real):
                listing.passed[path] = "a link that leads out of the folder"
                return
            if os.path.isdir(target):  # noqa: PTH112
                listing.passed[path] = "a link to a folder, which is looked through at its own place"
                return
        about = entry.stat()
        if not stat.S_ISREG(about.st_mode):
            listing.passed[path] = "not a plain file"
            return
        kind = known(path, about.st_size, about.st_mtime_ns)
        if kind is None:
            with open(entry.path, "rb") as file:  # noqa: PTH123
                kind = kind_of(file.read(HEAD), suffix)
    except OSError as error:  # a link to nothing, a file that may not be read
        why = error.strerror or str(error)
        (listing.bad if kind_of(b"", suffix) else listing.passed)[path] = f"cannot be read: {why}"
        return
    if kind is None:
        listing.passed[path] = "neither a picture nor a video"
    else:
        listing.found[path] = Found(path, about.st_size, about.st_mtime_ns, kind)


def is_below(path: str, folder: str) -> bool:
    """Whether a path, both without links, is inside a folder."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
