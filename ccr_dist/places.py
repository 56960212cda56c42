"""Places that a command is given to read or to write, checked before it begins its work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ccr_dist.errors import ConfigError

P = TypeVar("P", bound=Sequence[str | Path] | str | Path | None)


def folder_to_make(path: Path | None) -> Path | None:
    """Check an option that names a folder to be made, before a command begins its work.

    Args:
        path: The folder, which may exist; or None.

    Returns:
        `path`.

    Raises:
        ConfigError: A file is at the path, or at one of its parents.
    """
    if path is None:
        return None
    for place in (path, *path.parents):
        if place.is_dir():
            break
        if os.path.lexists(place):
            if place.is_dir():  # another process has made it since the line above
                break
            what = "link to nothing" if place.is_symlink() and not place.exists() else "file"
            raise ConfigError(
                f"{path}: {f'{place}: ' if place != path else ''}a {what} is there, and a folder is expected; name"
                " another place, or move the file away"
            )
    return path


def file_to_make(path: Path) -> Path:
    """As `folder_to_make`, for a file to be made."""
    if path.is_dir():
        raise ConfigError(f"{path}: a folder is there, and a file is expected; name the file, such as {path / 'NAME'}")
    folder_to_make(path.parent)
    return path


def file_to_read(paths: P) -> P:
    """Check an option that names files to be read: what is there must not be a folder. Whether something is there is
    found when it is read.

    Args:
        paths: One, several, or None.

    Returns:
        `paths`.

    Raises:
        ConfigError: One of them is a folder.
    """
    for path in _each(paths):
        if os.path.isdir(path):  # noqa: PTH112 (of names that no file can have, it says no)
            raise ConfigError(f"{path}: expected a file, and this is a folder")
    return paths


def folder_to_read(paths: P) -> P:
    """As `file_to_read`, for folders."""
    for path in _each(paths):
        if os.path.isfile(path):  # noqa: PTH113
            raise ConfigError(f"{path}: expected a folder, and this is a file")
    return paths


def _each(paths: Sequence[str | Path] | str | Path | None) -> Sequence[str | Path]:
    return [paths] if isinstance(paths, str | Path) else paths or ()


def require_writable(folder: Path) -> None:
    """Check that files can be made in a folder, before work whose results are written at its end.

    Args:
        folder: The folder; it need not exist yet. Nothing is left in it.

    Raises:
        OSError: The system's error, naming `folder`.
    """
    there = next(up for up in (folder.absolute(), *folder.absolute().parents) if up.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        error.filename = str(folder)
        raise
