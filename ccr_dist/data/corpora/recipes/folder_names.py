"""Names of files in a user's folder: found as they are written, and the keys made of them."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ccr_dist.data.corpora.recipes.captions import safe_key
from ccr_dist.errors import DataError

SHOWN = 10  # names in a message


@dataclass
class PictureEntry:
    """What the captions file says about a picture.

    Attributes:
        place: Where the file first names it, for messages.
        captions: Captions by language, in the order of the file.
        id: Its `id`, if any.
        split: Its `split`, if any.
    """

    place: str
    captions: dict[str, list[str]] = field(default_factory=dict)
    id: str | None = None
    split: str | None = None


class FileNames:
    """Finds files by name, whatever Unicode normal form or slash the name is written with.

    Args:
        root: The folder.
        names: Paths of its files, relative to it.
    """

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self._root, self._exact = root, set(names)
        self._meant: dict[str, list[str]] = {}
        for name in self._exact:
            self._meant.setdefault(unicodedata.normalize("NFC", name), []).append(name)

    def find(self, name: str, place: str) -> str | None:
        """The file that a name means.

        Args:
            name: Path as written by the user, relative to the folder.
            place: Where the name stands, for messages.

        Returns:
            Its path as it is on disk, or None if there is no such file.

        Raises:
            DataError: Several files have this name in another Unicode form, and none has it byte for byte.
        """
        for asked in (name, name.replace("\\", "/")):
            if asked in self._exact or (self._root / asked).is_file():  # hidden ones are not listed
                return asked
            meant = self._meant.get(unicodedata.normalize("NFC", asked), [])
            if len(meant) > 1:
                raise DataError(
                    f"{place}: {name!r} may be any of {', '.join(map(ascii, sorted(meant)))}: rename one of them"
                )
            if meant:
                return meant[0]
        return None


def base_key(name: str, item: PictureEntry) -> str:
    """The key made of the entry's id, or else of the path without its extension."""
    return safe_key(item.id or str(Path(name).with_suffix("")))


def distinct_key(key: str, name: str) -> str:
    """The key with a digest of the file's name."""
    return f"{key}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def keys_of(items: Mapping[str, PictureEntry], notes: list[str]) -> dict[str, str]:
    """A different key for each picture.

    Args:
        items: Entries by path.
        notes: Gets a line on the keys that needed a digest.

    Returns:
        Key by path.

    Raises:
        DataError: Two pictures have one `id`.
    """
    keys: dict[str, str] = {}
    owner: dict[str, str] = {}
    for name, item in items.items():
        if item.id:
            keys[name] = key = base_key(name, item)
            if key in owner:
                raise DataError(
                    f"{item.place}: the id {key!r} of {name} already belongs to {owner[key]}; give them different `id`s"
                )
            owner[key] = name
    alike: list[str] = []
    # first those whose names are keys as they are, so that they keep them
    for name in sorted(
        items.keys() - keys.keys(),
        key=lambda name: (base_key(name, items[name]) != str(Path(name).with_suffix("")), name),
    ):
        key = base_key(name, items[name])
        if key in owner:
            key = distinct_key(key, name)
            alike.append(f"{plain(name)} is {key}")
        if key in owner:
            raise DataError(
                f"{items[name].place}: the key {key!r} of {name} already belongs to {owner[key]}; give them different"
                " `id`s"
            )
        keys[name], owner[key] = key, name
    if alike:
        more = ", ..." if len(alike) > SHOWN else ""
        notes.append(
            f"{len(alike)} names do not make a unique key; a digest is added: {', '.join(alike[:SHOWN])}{more}"
        )
    return keys


def plain(name: str) -> str:
    """A name that can be printed: names of files need not be Unicode."""
    return name.encode(errors="backslashreplace").decode()


def some(names: list[str]) -> str:
    """The first names, for messages."""
    return ", ".join(map(plain, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
