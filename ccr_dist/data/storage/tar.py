"""Writes tar shards, equal content as equal bytes, and indexes their members.

A shard is a plain WebDataset tar. Nothing here knows about columns, and nothing is extracted to disk. Members are read
by position (`file_ranges.py`).
"""

from __future__ import annotations

import io
import math
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from ccr_dist.data.storage.store import disk_errors
from ccr_dist.errors import DataError

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META = re.compile(r"^__[^/]*__(?:$|/)")
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_KINDS = {
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"BZh": "compressed with bzip2",
    b"\x04\x22\x4d\x18": "compressed with lz4",
    b"PK\x03\x04": "a ZIP archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"version https://git-lfs": "a pointer of Git LFS (run `git lfs pull`)",
    b"<!DOCTYPE": "a page of HTML (a download that failed?)",
    b"<html": "a page of HTML (a download that failed?)",
}


def split_name(name: str) -> tuple[str, str] | None:
    """Splits a member's name by WebDataset's rule: the key ends at the first dot of the basename.

    Returns:
        (key, lower-case extension); None for what WebDataset itself ignores (names without an extension, `__meta__/`
        members) and for hidden files.
    """
    match = _NAME.match(name)
    if match is None or _META.match(name) or match[1].endswith("/"):
        return None
    return match[1], match[2].lower()


def is_key(key: str) -> bool:
    """Whether a dataset can have this key: printable, relative, without a dot in its last part."""
    return (
        split_name(f"{key}.x") == (key, "x")
        and key.isprintable()
        and not key.startswith("/")
        and ".." not in key.split("/")
    )


class TarWriter:
    """Writes members in the given order. The bytes depend only on names and contents, not on times, owners or modes.

    Args:
        target: A path, or a binary file object, which stays open.
    """

    def __init__(self, target: str | Path | IO[bytes]) -> None:
        self._own = Path(target).open("wb") if isinstance(target, str | Path) else None  # noqa: SIM115
        fileobj: Any = self._own or target
        self._tar = tarfile.open(fileobj=fileobj, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8")  # noqa: SIM115

    def add(self, name: str, data: bytes) -> None:
        """Append a member."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        self._tar.addfile(info, io.BytesIO(data))

    def close(self) -> None:
        """Write the end mark, and close a file that was opened here."""
        try:
            self._tar.close()
        finally:
            if self._own:
                self._own.close()

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._own:  # a failed tar gets no end mark, so that it is not taken for a complete one
            self._own.close()


class Members(Mapping[str, tuple[np.ndarray, np.ndarray]]):
    """Maps an extension to (offsets, sizes), two int64 arrays (rows,); the size is -1 if a row has no such member.

    Only members that exist are held. With names like `cam_1.1690.jpg` WebDataset's rule finds as many extensions as
    rows, and full arrays would need memory in the square of the rows.

    Args:
        rows: Number of rows.
        found: (row numbers, offsets, sizes) of the members that exist, by extension.
    """

    def __init__(self, rows: int, found: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        self._rows, self._found = rows, dict(found)

    def __getitem__(self, extension: str) -> tuple[np.ndarray, np.ndarray]:
        rows, theirs, lengths = self._found[extension]
        offsets, sizes = np.zeros(self._rows, np.int64), np.full(self._rows, -1, np.int64)
        offsets[rows], sizes[rows] = theirs, lengths
        return offsets, sizes

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def count(self, extension: str) -> int:
        """How many rows have such a member."""
        return len(self._found[extension][0]) if extension in self._found else 0

    def each(self) -> Iterator[tuple[str, int, int, int]]:
        """(extension, row, offset, size) of every member."""
        for extension, places in self._found.items():
            for row, offset, size in zip(*(part.tolist() for part in places), strict=True):
                yield extension, row, offset, size


@dataclass(frozen=True)
class ShardIndex:
    """The position of every member of a tar.

    Attributes:
        keys: Keys of the rows, in the order of the tar.
        members: (offsets, sizes) by extension: int64 arrays in the order of `keys`; the size is -1 for no such member.
        ignored: Number of members that WebDataset ignores as well (see `split_name`).
        odd: Names of members that are left out because no dataset can have their key.
    """

    keys: tuple[str, ...]
    members: Members | dict[str, tuple[np.ndarray, np.ndarray]]
    ignored: int = 0
    odd: tuple[str, ...] = ()

    @staticmethod
    def scan(path: str | Path, *, prefix: str = "", usable: bool = False) -> ShardIndex:
        """Reads the headers of a tar.

        Args:
            path: The tar.
            prefix: Put before every key.
            usable: Leave out members whose key a dataset cannot have, and name them in `odd`.

        Raises:
            DataError: The file is truncated, damaged or compressed, holds more than one archive, two members of one
                name, or members that are not plain files; names tar, offset and member.
        """
        rows: dict[str, int] = {}
        found: dict[str, dict[int, tuple[int, int]]] = {}
        ignored, odd = 0, list[str]()
        with disk_errors(path), Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if kind := _other_kind(file.read(_BLOCK)):
                raise DataError(
                    f"{path}: {kind}, not a plain tar; members are read by their position in plain tars: unpack or"
                    " convert it"
                )
            file.seek(0)
            tar = None
            try:
                tar = tarfile.open(fileobj=file, mode="r:", encoding="utf-8")  # noqa: SIM115
                for member in tar:
                    if member.isdir():
                        continue
                    if not member.isreg() or member.issparse():
                        what = f"member {member.name!r} at byte {member.offset}"
                        raise DataError(f"{path}: {what} is a link, a device or sparse; expected plain files")
                    if (end := member.offset_data + member.size) > size:
                        raise DataError(
                            f"{path}: truncated inside member {member.name!r}: it ends at byte {end}, the file at"
                            f" {size}"
                        )
                    name = split_name(member.name)
                    if name is None:
                        ignored += 1
                        continue
                    if usable and not is_key(name[0]):
                        odd.append(member.name)
                        continue
                    key, extension = prefix + name[0], name[1]
                    row = rows.setdefault(key, len(rows))
                    column = found.setdefault(extension, {})
                    if row in column:
                        raise DataError(f"{path}: two members {key}.{extension} (the second at byte {member.offset})")
                    column[row] = (member.offset_data, member.size)
            except (OSError, DataError):
                raise
            except Exception as e:  # a damaged header: tarfile's own errors, and those of its number and text parsers
                raise DataError(
                    f"{path}: not a complete tar: {e} (at byte {tar.offset if tar else 0} of {size})"
                ) from e
            # tarfile takes a damaged header for the end of the archive; the real end is a block of zeros.
            file.seek(tar.offset)
            mark = file.read(_BLOCK)
            if mark != bytes(_BLOCK):
                fault = "truncated: no end mark" if len(mark) < _BLOCK else "damaged: no tar header and no end mark"
                raise DataError(f"{path}: {fault} at byte {tar.offset} of {size}; copy or build this shard again")
            _require_end(file, path, size)
        members = {}
        for extension, places in found.items():
            theirs = np.array([*places.values()], np.int64).reshape(-1, 2)
            members[extension] = (np.fromiter(places, np.int64, len(places)), theirs[:, 0], theirs[:, 1])
        return ShardIndex(tuple(rows), Members(len(rows), members), ignored, tuple(odd))

    def only(self, extensions: str) -> ShardIndex:
        """The same index with only the members of the extensions `a;b;c`."""
        return ShardIndex(
            self.keys, {e: self.members[e] for e in extensions.split(";") if e in self.members}, self.ignored
        )

    def count(self, extension: str) -> int:
        """How many rows have such a member."""
        if isinstance(self.members, Members):
            return self.members.count(extension)
        return int((self.members[extension][1] >= 0).sum()) if extension in self.members else 0

    def to_json(self) -> dict[str, Any]:
        """The content of an index file."""
        members = {ext: {"offsets": o.tolist(), "sizes": s.tolist()} for ext, (o, s) in self.members.items()}
        return {"keys": list(self.keys), "members": members, "ignored": self.ignored}

    @staticmethod
    def from_json(obj: dict[str, Any]) -> ShardIndex:
        """The index in the content of an index file."""
        members = {
            ext: (np.asarray(m["offsets"], np.int64), np.asarray(m["sizes"], np.int64))
            for ext, m in obj["members"].items()
        }
        return ShardIndex(tuple(obj["keys"]), members, obj.get("ignored", 0))


def _other_kind(start: bytes) -> str | None:
    """The kind of a file that begins with this block, if it is a known one other than tar."""
    if start[257:262] == b"ustar":
        return None
    return next((kind for magic, kind in _KINDS.items() if start.startswith(magic)), None)


def _require_end(file: IO[bytes], path: str | Path, size: int) -> None:
    """Raises DataError unless only zeros follow. WebDataset, like tar itself, would stop here and ignore the rest."""
    while chunk := file.read(_CHUNK):
        if chunk.count(0) == len(chunk):
            continue
        at = file.tell() - len(chunk)
        padded = chunk.ljust(math.ceil(len(chunk) / _BLOCK) * _BLOCK, b"\0")
        blocks = np.frombuffer(padded, np.uint8).reshape(-1, _BLOCK)
        first = int(np.flatnonzero(blocks.any(axis=1))[0])
        if blocks[first, 257:262].tobytes() == b"ustar":
            what = (
                "another archive follows its end mark, as `cat a.tar b.tar` makes: readers of WebDataset stop before it"
                " and lose its rows; "
            )
            raise DataError(
                f"{path}: {what}pass the tars one by one (or join them with `tar --concatenate`); it begins at byte"
                f" {at + first * _BLOCK}"
            )
        raise DataError(
            f"{path}: bytes that are not a tar follow its end mark (the first at byte {at + first * _BLOCK} of"
            f" {size}): damaged, or something was appended; copy or build this shard again"
        )
